# SPDX-License-Identifier: BSD-3-Clause
"""ThreadPoolExecutor on a pool of threads of the runtime's.

Programs that want threads of their own override ``_adjust_thread_count()``, to have daemons, or put
another queue in the place of ``_work_queue``.  An executor of theirs is the original's through and
through: it becomes an instance of :class:`_AsOriginal`, which is a subclass of both.  So does each
where threads are greenlets.
"""

from __future__ import annotations

import concurrent.futures.thread as _module
import itertools
import logging
import threading
import types
import weakref
from collections import deque
from concurrent.futures.thread import BrokenThreadPool
from concurrent.futures.thread import ThreadPoolExecutor as _Original
from itertools import islice
from typing import cast

from .. import _pool
from .._green import threads_are_green
from ._executor import _MAX_WORKERS, _SLOTS, Ending, PoolExecutor, _call, _until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["BrokenThreadPool", "ThreadPoolExecutor"]

_THEIRS = vars(_module)  # now: where the doors are open the name will be another's
_FAILED = "A thread initializer failed, the thread pool is not usable anymore"


def _refuse_broken(*_: Any, **__: Any) -> Any:
    raise BrokenThreadPool(_FAILED)


def _begin(
    executor: weakref.ref[ThreadPoolExecutor],
    known: list[tuple[str, int, int]],
    prefix: str,
    numbers: Callable[[], int],
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> None:
    """First thing in each thread: its name, and the user's initializer."""
    thread = threading.current_thread()
    thread.name = f"{prefix}_{numbers()}"
    thread._daemonic = False  # type: ignore[attr-defined]  # threads that tasks start inherit it
    known.append((thread.name, threading.get_ident(), threading.get_native_id()))
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


class _Thread(Ending):
    """A thread, as far as programs ask the items of ``executor._threads``."""

    def __init__(self, pool: _pool.Pool, name: str, ident: int, native_id: int) -> None:
        super().__init__(pool, name)
        self.ident = ident
        self.native_id = native_id

    def __repr__(self) -> str:
        how = "started" if self.is_alive() else "stopped"
        return f"<Thread({self.name}, {how} {self.ident})>"


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
        cls = type(self)
        if (
            issubclass(cls, _AsOriginal)
            or not _is_theirs(cls._adjust_thread_count)
            or threads_are_green()
        ):
            self._become_original()
            _Original.__init__(self, max_workers, thread_name_prefix, initializer, initargs)
            return
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
        # Of the threads that have come up: name, ident, native id.
        self._known: list[tuple[str, int, int]] = []
        self._shown: set[_Thread] = set()
        self._set_up()

    def _become_original(self) -> None:
        """Before the first task: be one of the original's from now on."""
        cls = type(self)
        if not issubclass(cls, _AsOriginal):
            for name in vars(_AsOriginal):
                vars(self).pop(name, None)
            self.__class__ = _as_original(cls)

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

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the threads when those submitted have ended.

        wait: return only then.  cancel_futures: cancel calls that no thread has started.
        """
        if isinstance(self, _AsOriginal):
            _Original.shutdown(self, wait, cancel_futures=cancel_futures)
        else:
            super().shutdown(wait, cancel_futures=cancel_futures)

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
    def _threads(self) -> set[_Thread]:  # type: ignore[override]
        pool = self._pool
        if pool is not None:
            # Those that are being started count: the original would have started them by now.
            _until(lambda: len(self._known) == pool.workers or self._why_broken is not None)
            self._shown = {_Thread(pool, *it) for it in islice(self._known, self._used(pool))}
        return self._shown

    @property
    def _work_queue(self) -> Any:
        return _Queue(self)

    @_work_queue.setter
    def _work_queue(self, queue: Any) -> None:
        """What the original's threads are fed from; such a program means these."""
        if self._pool is not None:
            raise AttributeError("an executor that has begun keeps its queue")
        self._become_original()
        prefix: Any = self._thread_name_prefix
        _Original.__init__(self, self._max_workers, prefix, self._initializer, self._initargs)
        vars(self)["_work_queue"] = queue


class _AsOriginal(ThreadPoolExecutor):
    """An executor that is the original's, whatever is called of it, and by whom."""

    __slots__ = ()
    _is_original = True  # for the report

    # The original's attributes are set in the object.
    _broken: Any = False
    _shutdown: Any = False
    _threads: Any = None
    _work_queue: Any = None
    _initializer_failed = _Original._initializer_failed  # type: ignore[attr-defined]

    # What PoolExecutor.submit() looks at, which somebody may have wrapped.
    _pids = None
    _born = None
    _counting = False
    _why_broken = None
    _down = False
    _look_at = 1 << 62
    _sent: Any = deque(maxlen=1)

    def _send(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        if fn is _call:
            fn, *args = args  # type: ignore[assignment]
        return _Original.submit(self, fn, *args, **kwargs)


def _is_theirs(method: Any) -> bool:
    """Whether a method is one that the original's module defines."""
    return type(method) is types.FunctionType and method.__globals__ is _THEIRS


def _as_original(cls: type[ThreadPoolExecutor]) -> Any:
    """The class of an object of *cls*, whose methods come first, that is the original's."""
    if cls is ThreadPoolExecutor:
        return _AsOriginal
    own = vars(cls).get("_own_original")
    if own is None:
        names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
        names["__slots__"] = ()
        own = types.new_class(cls.__name__, (cls, _AsOriginal), exec_body=lambda n: n.update(names))
        cls._own_original = own  # type: ignore[attr-defined]
    return own


# Who asks for it by name gets what the program wrote.
_AsOriginal.__name__ = _AsOriginal.__qualname__ = ThreadPoolExecutor.__name__


def __getattr__(name: str) -> Any:
    """What else the original's module has, for those who look behind the executor."""
    return getattr(_module, name)
