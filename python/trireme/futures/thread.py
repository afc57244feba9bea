# SPDX-License-Identifier: BSD-3-Clause
"""ThreadPoolExecutor on a pool of threads of the runtime's."""

from __future__ import annotations

import concurrent.futures.thread as _module
import itertools
import logging
import threading
import weakref
from concurrent.futures.thread import BrokenThreadPool
from concurrent.futures.thread import ThreadPoolExecutor as _Original
from itertools import islice
from typing import cast

from .. import _pool
from ._executor import _MAX_WORKERS, _SLOTS, Ending, PoolExecutor, _until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["BrokenThreadPool", "ThreadPoolExecutor"]

_FAILED = "A thread initializer failed, the thread pool is not usable anymore"


def _refuse_broken(*_: Any, **__: Any) -> Any:
    raise BrokenThreadPool(_FAILED)


def _begin(
    executor: weakref.ref[ThreadPoolExecutor],
    known: list[str],
    prefix: str,
    numbers: Callable[[], int],
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> None:
    """First thing in each thread: its name, and the user's initializer."""
    thread = threading.current_thread()
    thread.name = f"{prefix}_{numbers()}"
    thread._daemonic = False  # type: ignore[attr-defined]  # threads that tasks start inherit it
    known.append(thread.name)
    if initializer is None:
        return
    try:
        initializer(*initargs)
    except BaseException:
        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        own = executor()
        if own is not None:
            own._initializer_failed()
        raise BrokenThreadPool(_FAILED) from None


class _Item:
    """A call whose function and arguments are let go when it ends, not when its result is taken."""

    __slots__ = ("_what",)

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> None:
        self._what: Any = (fn, args, kwargs)

    def __call__(self) -> Any:
        fn, args, kwargs = self._what
        self._what = None
        return fn(*args, **kwargs)


class _Queue:
    """Tells programs that watch ``executor._work_queue`` how many calls wait for a thread."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor

    def qsize(self) -> int:
        """Calls that no thread has started, as far as one can tell."""
        pool = self._executor._pool
        return 0 if pool is None else max(0, pool._pending() - pool.workers)

    def empty(self) -> bool:
        """Whether there are none."""
        return self.qsize() == 0


class ThreadPoolExecutor(PoolExecutor, _Original):
    """concurrent.futures.ThreadPoolExecutor, on threads that C code feeds."""

    # An int of its own: names go on where the original's would.
    _number = itertools.count().__next__
    # Items share no pickle here, so there is nothing to gain by sending them together.
    _chunks = False
    _waits_again = True

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is None:
            max_workers = min(32, _pool.cpu_count() + 4)
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._max_workers = max_workers
        self._thread_name_prefix = thread_name_prefix or f"ThreadPoolExecutor-{self._number()}"
        self._initializer = cast("Any", initializer)
        self._initargs = initargs
        self._known: list[str] = []  # names of the threads that have come up
        self._shown: set[Ending] = set()
        self._set_up()

    def _make_pool(self) -> _pool.Pool:
        return _pool.Pool(
            min(int(self._max_workers), _MAX_WORKERS),
            kind="thread",
            slots=_SLOTS,
            initializer=_begin,
            initargs=(
                weakref.ref(self),
                self._known,
                self._thread_name_prefix,
                itertools.count().__next__,
                self._initializer,
                self._initargs,
            ),
        )

    def _sender(self, pool: _pool.Pool) -> Callable[..., Any]:
        submit = pool.submit

        def send(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            if not callable(fn):
                raise TypeError(f"{type(fn).__name__!r} object is not callable")
            return submit(_Item(fn, args, kwargs))

        return send

    def _initializer_failed(self) -> None:
        with self._lock:
            self._why_broken = _FAILED
            self._send = _refuse_broken

    def _broken_error(self) -> BaseException:
        return BrokenThreadPool(_FAILED)

    @property
    def _broken(self) -> str | bool:  # type: ignore[override]
        return self._why_broken or False

    @property
    def _shutdown(self) -> bool:  # type: ignore[override]
        return self._down

    @property
    def _threads(self) -> set[Ending]:  # type: ignore[override]
        pool = self._pool
        if pool is not None:
            # Those that are being started count: the original would have started them by now.
            _until(lambda: len(self._known) == pool.workers or self._why_broken is not None)
            names = sorted(islice(self._known, self._used(pool)))
            self._shown = {Ending(pool, name) for name in names}
        return self._shown

    @property
    def _work_queue(self) -> _Queue:  # type: ignore[override]
        return _Queue(self)


def __getattr__(name: str) -> Any:
    """What else the original's module has, for those who look behind the executor."""
    return getattr(_module, name)
