# SPDX-License-Identifier: BSD-3-Clause
"""Pool and ThreadPool of multiprocessing.pool, on Trireme's runtime.

A call, and each chunk of a map, is one task of a :class:`trireme.Pool`; what runs once per task is
that pool's ``submit``, in C.  There are no threads for tasks and results.  A thread runs while
callbacks wait to be told, and while an ``imap`` reads an input that is long or may have no end.

Semantics are the original's, to the exception's class.  Where the original hangs or loses work,
this one raises: a worker's death ends the tasks it had started with WorkerLost, terminate() ends
what it drops, an initializer that fails ends every task with its exception, and so does a chunk
size below one.
"""

from __future__ import annotations

import atexit
import importlib
import itertools
import operator
import os
import sys
import threading
import time
import warnings
import weakref
from functools import partial

from .. import _pickling
from .. import _pool as _native
from .._green import threads_are_green
from .._options import _task_options
from . import _born, _results, _script, _ways, _worker
from ._lend import Lender, describe
from ._results import ApplyResult as ApplyResult
from ._results import AsyncResult as AsyncResult
from ._results import Failed, Outcome, Teller, translated
from ._results import IMapIterator as IMapIterator
from ._results import IMapUnorderedIterator as IMapUnorderedIterator
from ._results import MapResult as MapResult
from .context import TimeoutError as TimeoutError
from .context import _default_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, Self, TypeVar

    R = TypeVar("R")

__all__ = ["Pool", "ThreadPool"]

# The original's names for a pool's states.  Its module, and what that imports, takes longer than a
# pool of ours takes to start, so what else is there is taken from it when it is asked for.
INIT, RUN, CLOSE, TERMINATE = "INIT", "RUN", "CLOSE", "TERMINATE"

# Tasks in flight: more than anybody submits at once, so that submitting does not block.  They are
# 256 bytes each, of memory that is not there before it is used.
_SLOTS = 1 << 16
_FUNCTIONS = 64  # functions of maps that a pool remembers
_SHORT = 64  # a chunk of a range of up to so many numbers goes as these
_OPTIONS = frozenset(("timeout", "retries", "priority"))  # of trireme.Pool.submit()

_setups = itertools.count(1)
_hooked: weakref.WeakSet[Pool] = weakref.WeakSet()  # pools whose workers have something to do last


def _leave_hooked() -> None:
    """At exit, before pools are ended: the workers of idle ones leave by themselves."""
    for pool in list(_hooked):
        if pool._is_idle_with_hooks():
            pool.terminate()


# ---------------------------------------------------------------------------------------------
# Pools
# ---------------------------------------------------------------------------------------------


class _Native(_native.Pool):
    _inherits = True
    _gives_futures = False  # but Outcomes


class _PoolWorker:
    """One worker as ``Pool._pool`` lists it: enough to ask who it is."""

    daemon = True

    def __init__(self, pid: int, name: str, pids: Callable[[], list[int]]) -> None:
        self.pid = self.ident = pid
        self.name = name
        self._pids = pids

    def is_alive(self) -> bool:
        """Is it one of the pool's still?"""
        return self.pid in self._pids()

    @property
    def exitcode(self) -> int | None:
        """None while it is alive; how it ended is not kept."""
        return None if self.is_alive() else 0

    def __repr__(self) -> str:
        return f"<{self.name} pid={self.pid}>"


class Pool:
    """A pool of worker processes with the original's methods.

    A pool that is dropped without close() or terminate() warns and is terminated.

    The arguments are the original's, and two more, with which the items of maps go one by one:

    timeout: seconds for each task; one that takes longer loses its worker and raises TaskTimeout,
        which is a TimeoutError.
    retries: how often a task is run again after its worker died.
    """

    _by_name = True  # results that only trireme could send fail, as in the original
    _has_hooks = False  # whether the program has something to do around a worker's life

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
    ) -> None:
        self._state = INIT
        self._ctx = context or _default_context.get_context()
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        if processes is None:
            processes = _native._default_workers()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._options = _task_options(timeout, retries)
        self._processes = operator.index(processes)
        self._functions: dict[int, tuple[Any, Any]] = {}
        self._born: _born.Born | None = None
        self._own: _script.Own | None = None
        self._feeders: list[threading.Thread] = []
        self._teller = Teller()
        self._native: Any = self._open()
        self._native._future_class = Outcome
        self._teller.native = weakref.ref(self._native)
        self._submit = self._native.submit
        if self._options:
            self._submit = partial(self._submit, **self._options)
        self._state = RUN

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:
        """The Process object that a worker has as its current_process()."""
        return ctx.Process(*args, **kwds)

    def _open(self) -> Any:
        method = self._ctx.get_start_method()
        if method not in _native.STARTS:
            method = "spawn"
        _script.expect(method)
        _native.begin_warden(method)
        _ways.follow()
        lender = Lender()
        try:
            info = self._worker_info(method, lender)
            options: dict[str, Any] = {"start": method, "slots": _SLOTS}
            if method == "fork":
                number = next(_setups)
                _worker.inherited[number] = info
                try:
                    native = self._open_native((number,), options)
                finally:
                    del _worker.inherited[number]
            else:
                # The worker runs the script before it reads what of the script's follows.
                setup = (_script.Prologue(info), info.pop("initializer"), info.pop("initargs"))
                with lender.spawning():
                    native = self._open_native(setup, options)
        except BaseException:
            lender.close()
            raise
        native._born = self._born or self._own
        self._register = lender.register
        self._close_lender = weakref.finalize(native, lender.close)
        self._close_lender.atexit = False
        return native

    def _open_native(self, setup: tuple[Any, ...], options: dict[str, Any]) -> Any:
        make = partial(
            _Native,
            self._processes,
            initializer=_worker.begin,
            initargs=setup,
            max_tasks_per_worker=self._maxtasksperchild,
            **options,
        )
        try:
            return make() if self._own is None else self._own(make)
        except _pickling.UnpicklableError as exc:
            raise translated(exc) from None

    def _worker_info(self, method: str, lender: Lender) -> dict[str, Any]:
        """What _worker.begin() needs."""
        models = []
        initargs = tuple(self._initargs)
        target = _worker.worker
        args = (None, None, self._initializer, initargs, self._maxtasksperchild, True)
        for _ in range(self._processes):
            model = self.Process(self._ctx, target=target, args=args)
            model.daemon = True
            models.append(model)
        self._has_hooks = _worker.has_hooks(models[0])
        if self._has_hooks:
            if not _hooked:
                atexit.register(_leave_hooked)
            _hooked.add(self)
        info = describe(models, method, lender.register)
        info["prefix"] = info["prefix"].replace("Process", "PoolWorker")
        self._prefix = info["prefix"]
        self._identities = info["identities"]
        info.update(
            by_name=self._by_name,
            initializer=self._initializer,
            initargs=initargs,
        )
        if method == "fork":
            self._born = _born.Born()
            info["modules"] = self._born.modules
        else:
            info["script"], self._own = _script.look()
        return info

    # ------------------------------------------------------------------ sending

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def _send(self, func: Any, args: Any, kwds: Any) -> Any:
        """A future of ``func(*args, **kwds)``; what cannot be sent is its exception."""
        if self._born is not None:
            func = self._born.sent_as(func)
        if kwds and not _OPTIONS.isdisjoint(kwds):
            func, kwds = partial(func, **kwds), {}
        try:
            return self._submit(func, *args, **kwds)
        except Exception as exc:
            if self._native._is_fork:
                raise
            return Failed(exc)

    def _mapper(self, func: Any, run: Any) -> Any:
        """*run* with *func*, the same object each time, so that it is sent once."""
        key = id(func) if run is _worker.run_chunk else -id(func)
        known = self._functions.get(key)
        if known is None or known[0] is not func:
            if len(self._functions) >= _FUNCTIONS:
                self._functions.clear()
            sent = func if self._born is None else self._born.sent_as(func)
            known = self._functions[key] = (func, self._stand(run, sent, func))
        return known[1]

    @staticmethod
    def _stand(run: Any, sent: Any, func: Any) -> Any:
        return _born.Stand(partial, (run, sent), func)

    def apply(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},  # noqa: B006
    ) -> R:
        """``func(*args, **kwds)`` on a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},  # noqa: B006
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> ApplyResult[R]:
        """Start :meth:`apply`."""
        if self._state != RUN:
            raise ValueError("Pool not running")
        future = self._send(func, args, kwds)
        return ApplyResult(future, self._teller, callback, error_callback)

    def map(
        self, func: Callable[[Any], R], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[R]:
        """*func* of each item, as a list."""
        return self._get(self._map(func, iterable, _worker.run_chunk, chunksize))

    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[R]:
        """*func* of the arguments in each item, as a list."""
        return self._get(self._map(func, iterable, _worker.run_star, chunksize))

    def map_async(
        self,
        func: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[R]:
        """Start :meth:`map`."""
        return self._map(func, iterable, _worker.run_chunk, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[R]:
        """Start :meth:`starmap`."""
        return self._map(func, iterable, _worker.run_star, chunksize, callback, error_callback)

    @staticmethod
    def _get(result: MapResult[R]) -> list[R]:
        try:
            return result.get()
        except KeyboardInterrupt as exc:
            result._cancel()
            _results.shorten(exc)
            raise

    def _map(
        self,
        func: Callable[..., R],
        iterable: Iterable[Any],
        run: Any,
        chunksize: int | None,
        callback: Any = None,
        error_callback: Any = None,
    ) -> MapResult[R]:
        self._check_running()
        futures: list[Any]
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        try:
            # A list is copied: its owner may change it while this sends, and so may a pickling.
            items: Any = iterable if type(iterable) in (tuple, range) else list(iterable)
        except Exception as exc:
            return MapResult([Failed(exc)], self._teller, callback, error_callback)
        if chunksize is None:
            chunksize, extra = divmod(len(items), self._processes * 4)
            if extra:
                chunksize += 1
        elif chunksize < 1 and items:
            # The original does nothing then, and returns a list of None.
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        if self._options:
            chunksize = 1
        if chunksize <= _SHORT and type(items) is range:
            items = tuple(items)  # whose slices need no pickle
        mapper = self._mapper(func, run)
        futures = []
        for first in range(0, len(items), chunksize or 1):
            futures.append(self._send(mapper, (items[first : first + chunksize],), {}))
        return MapResult(futures, self._teller, callback, error_callback)

    def imap(
        self, func: Callable[[Any], R], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator[R]:
        """An iterator over the results, in order."""
        return self._imap(IMapIterator, func, iterable, chunksize)

    def imap_unordered(
        self, func: Callable[[Any], R], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator[R]:
        """An iterator over the results, as they come."""
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize)

    def _imap(self, kind: Any, func: Any, iterable: Iterable[Any], chunksize: int) -> Any:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        if chunksize == 1 or self._options:
            if self._born is not None:
                func = self._born.sent_as(func)
            return self._started(kind(self._native, self._submit, func, iterable))
        mapper = self._mapper(func, _worker.run_chunk)
        batches = _batches(iterable, chunksize)
        chunks = self._started(kind(self._native, self._submit, mapper, batches))
        return (item for chunk in chunks for item in chunk)

    def _started(self, result: Any) -> Any:
        self._feeders = [thread for thread in self._feeders if thread.is_alive()]
        if result._feeder is not None:
            self._feeders.append(result._feeder)
        return result

    # ------------------------------------------------------------------ ending

    def close(self) -> None:
        """Take no more tasks."""
        _debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            if not any(thread.is_alive() for thread in self._feeders):
                self._native.close()

    def terminate(self) -> None:
        """End the workers at once.  Tasks that have not ended raise WorkerLost."""
        _debug("terminating pool")
        self._state = TERMINATE
        native = self._native
        if self._is_idle_with_hooks():
            # What the program has at the end of a worker's life; the original's leave, too.
            native.close()
            if native._end(False, 2.0):
                native._finish()
        native.terminate()
        self._teller.end(False)
        self._clear()

    def _is_idle_with_hooks(self) -> bool:
        native = self._native
        return self._has_hooks and not (native._is_fork or native._joined or native._pending())

    def join(self) -> None:
        """Wait until the tasks have ended and the workers have left."""
        _debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if self._state == CLOSE:
            for thread in self._feeders:
                thread.join()
            self._native.close()
        self._native.join()
        self._teller.end(True)
        self._clear()

    def _clear(self) -> None:
        self._functions.clear()
        self._born = self._native._born = None
        if self._native._joined:
            self._close_lender()

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __del__(self, _warn: Any = warnings.warn, RUN: str = RUN) -> None:
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    # ------------------------------------------------------------------ facts

    @property
    def _pool(self) -> list[_PoolWorker]:
        """The workers; those that are being started are waited for."""
        native = self._native
        if native._joined or native._is_fork:
            return []
        limit = time.monotonic() + 5
        while True:
            alive = set(native._pids())
            found = [
                _PoolWorker(pid, self._name(number), native._pids)
                for number, pid in enumerate(_worker.signed(self._register))
                if pid in alive
            ]
            if len(found) >= self._processes or native._broken or time.monotonic() > limit:
                return found
            native._step(0.005)

    def _name(self, number: int) -> str:
        here = self._identities
        identity = (
            here[number]
            if number < len(here)
            else (*here[-1][:-1], here[-1][-1] + number - len(here) + 1)
        )
        return self._prefix + ":".join(map(str, identity))

    def _repopulate_pool(self) -> None:
        """Nothing: the warden replaces workers by itself."""

    def __repr__(self) -> str:
        cls = self.__class__
        return (
            f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={self._processes}>"
        )


class ThreadPool(Pool):
    """A pool of threads with the methods of :class:`Pool`; where these are green, the original."""

    def __new__(cls, *args: Any, **kwds: Any) -> Any:
        """An object of the class; see above."""
        if cls is ThreadPool and threads_are_green():
            # Not by its attribute: where the doors are open that is this class.
            original = vars(importlib.import_module("multiprocessing.pool"))["ThreadPool"]
            return original(*args, **kwds)
        return super().__new__(cls)

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        super().__init__(processes, initializer, initargs)

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:
        """A thread with a Process's methods."""
        from multiprocessing.dummy import Process

        return Process(*args, **kwds)

    def _open(self) -> Any:
        self._close_lender = weakref.finalize(self, _nothing)
        return _native.Pool(
            self._processes,
            kind="thread",
            initializer=self._initializer,
            initargs=self._initargs,
            slots=_SLOTS,
        )

    @staticmethod
    def _stand(run: Any, sent: Any, func: Any) -> Any:
        return partial(run, sent)

    @property
    def _pool(self) -> list[_PoolWorker]:
        joined = self._native._joined
        pids: list[int] = [] if joined else [os.getpid()]
        return [
            _PoolWorker(os.getpid(), f"Thread-{i + 1}", lambda: pids)
            for i in range(0 if joined else self._processes)
        ]


def _nothing() -> None:
    pass


def _debug(text: str) -> None:
    """To multiprocessing's logger; whoever wants to read that has imported its module."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.debug(text)


_BEHIND = "ExceptionWithTraceback job_counter mapstar rebuild_exc starmapstar worker".split()


def __getattr__(name: str) -> Any:
    if name in ("MaybeEncodingError", "RemoteTraceback"):
        return getattr(_results, name)
    # What else the original's module has, for those who look behind the pool.  Pickle, which asks
    # each module, is not to import it.
    if name in _BEHIND or (name[:2] != "__" and "multiprocessing.pool" in sys.modules):
        return getattr(importlib.import_module("multiprocessing.pool"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _batches(iterable: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """The items in tuples of *size*."""
    it = iter(iterable)
    while batch := tuple(itertools.islice(it, size)):
        yield batch
