# SPDX-License-Identifier: BSD-3-Clause
"""Pool: a set of workers that run Python functions, and the default pool.

This file adds names, defaults and types to ``_core.PoolBase``; what happens once per task is in C.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref

from . import _attend, _core, _output, _pickling, _settings, _warden
from ._attend import _open_pools, _serve, _stop_serving
from ._options import STARTS, _as_items, _as_iterator, _check_pool_options, _map_options, _shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Self, TypeVar

    from ._async import AsyncResult
    from ._future import Future
    from ._progress import Wanted

    R = TypeVar("R")

__all__ = ["STARTS", "Pool", "cpu_count", "default_pool", "map", "starmap", "submit"]

_MAP, _ORDERED, _UNORDERED, _ASYNC = range(4)

_opening = threading.RLock()  # one thread at a time starts or replaces the shared warden


def cpu_count(physical: bool = False) -> int:
    """How many CPUs this process may use; its physical cores with *physical*.

    Honours ``PYTHON_CPU_COUNT``, the affinity mask and the quota of a container.
    """
    return _core.cpu_count(physical)


def begin_warden(start: str) -> None:
    """Start the process that starts workers; it comes up while the pool for it is prepared."""
    if start in ("forkserver", "spawn"):
        try:
            with _opening:
                _warden.shared(start == "spawn")
        except Exception:
            pass  # opening the pool tries again, and says why


def _default_workers() -> int:
    """As many as CPUs; one inside a worker, so that nested pools do not multiply."""
    worker = sys.modules.get("trireme._worker")
    return 1 if worker is not None and worker.pid == os.getpid() else cpu_count()


_IMPORTS_MAX = 2


def _imports_around() -> int:
    """Within how many imports, of its own and of its owners', this pool is opened.

    A module that opens a pool at its top and gives it a function of its own is imported by the
    workers, which so come to open a pool.  It would go on like that for ever.
    """
    worker = sys.modules.get("trireme._worker")
    above: int = worker.imports_around if worker is not None and worker.pid == os.getpid() else 0
    at: Any = sys._getframe(1)
    while at is not None:
        name = at.f_globals.get("__name__")
        if at.f_code.co_name == "<module>" and name != "__main__":
            if above >= _IMPORTS_MAX:
                raise RuntimeError(
                    f"module {name} opens a pool while it is imported, and workers of that pool "
                    "import it: do it in a function, or under `if __name__ == '__main__':`"
                )
            return above + 1
        at = at.f_back
    return above


class Pool(_core.PoolBase):
    """A set of workers owned by this process.

    Args:
        workers: how many; None for :func:`cpu_count`.
        kind: "process" (workers may crash alone, no GIL between them), "thread" (no copies, for
            functions that release the GIL), "serial" (runs in the caller; for debugging).
        start: how worker processes are started: "forkserver" (forked from a small clean process;
            default), "fork" (forked from this process: they see its memory of this moment),
            "spawn" (each a fresh interpreter).  None of them needs a ``__main__`` guard.
        initializer, initargs: called in each worker before its first task.  If it raises, the
            pool is broken: every task raises that exception.
        max_tasks_per_worker: a worker is replaced after so many tasks.
        threads_per_worker: BLAS and OpenMP threads in each worker; None for as many as leave
            every CPU used once, 0 for no limit.
        arena_bytes: shared memory one participant may fill, at least 8 MiB; None: the machine's.
        slots: tasks in flight at most; submit() blocks beyond.
        spin: seconds a participant may search busily before it sleeps; None for the default.
        max_restarts: deaths within 10 s after which the pool gives up; None for the default.

    Use as a context manager, or call :meth:`close` and :meth:`join`, or :meth:`terminate`.  A
    pool that is dropped without that ends when the tasks in flight have ended.  In a fork of this
    process every method raises RuntimeError.
    """

    # A facade's word on a result that cannot be unpickled: the exception that takes its place.
    _unreadable: Callable[[BaseException], BaseException] | None = None
    # The same for a call that cannot be pickled.
    _unsent: Callable[[BaseException], BaseException] | None = None
    # A facade's word: the death of a worker breaks the pool.  Its warden ends the others at once.
    _fragile = False
    # A facade's word: functions that a fork has inherited are sent by name.
    _inherits = False
    _gives_futures = True  # submit() is its user's

    if not TYPE_CHECKING:  # to checkers a serial pool is a Pool, too

        def __new__(cls, workers: int | None = None, *, kind: str = "process", **options: Any):
            if kind == "serial":
                from ._serial import SerialPool

                return SerialPool(workers, **options)
            return super().__new__(cls)

    def __init__(
        self,
        workers: int | None = None,
        *,
        kind: str = "process",
        start: str = "forkserver",
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        max_tasks_per_worker: int | None = None,
        threads_per_worker: int | None = None,
        arena_bytes: int | None = None,
        slots: int | None = None,
        spin: float | None = None,
        max_restarts: int | None = None,
    ) -> None:
        numbers = _check_pool_options(
            kind,
            start,
            initializer,
            workers,
            max_tasks_per_worker,
            threads_per_worker,
            arena_bytes,
            slots,
            spin,
            max_restarts,
        )
        threads = numbers.pop("threads")
        workers = numbers["workers"] = numbers["workers"] or _default_workers()
        self._workers = workers
        self._kind = kind
        self._start = start
        self._server: threading.Thread | None = None
        self._stopping = False
        self._joined = False
        setup = b""
        prepare: Callable[[], object] | None = None
        shares = sys.modules.get("trireme._share")
        if initializer is not None and shares is not None and shares.Shared._live:
            initializer, initargs = shares.call, (initializer, tuple(initargs))
        if kind == "process":
            setup = self._setup(workers, start, initializer, tuple(initargs), threads)
        elif initializer is not None:
            from functools import partial

            prepare = partial(initializer, *initargs)
        options: dict[str, Any] = {
            "threads": kind == "thread",
            "spawn": start == "spawn",
            "setup": setup,
            "output": kind == "process",
            "fragile": self._fragile,
            "serve": _serve,
            "initializer": prepare,
            **numbers,
        }
        if kind == "process" and start != "fork":
            self._open_shared(options)
        elif kind == "process" and threads:
            self._prepare_fork()
            sys.modules["trireme._limits"].around_fork(self._open, shared_warden=-1, **options)
        else:
            if kind == "process":
                self._prepare_fork()
            self._open(shared_warden=-1, **options)
        _open_pools.add(self)

    def _open_shared(self, options: dict[str, Any]) -> None:
        """Open with this process's warden; with another one if that has died since."""
        with _opening:
            for attempt in (0, 1):
                known = _warden.running()
                try:
                    self._open(shared_warden=_warden.shared(options["spawn"]), **options)
                    _warden.started()
                    return
                except BaseException as exc:
                    refused = _warden.lost()
                    if refused:
                        raise OSError(refused, os.strerror(refused)) from None
                    # ConnectionError: it was gone; RuntimeError (WorkerLost): it went just now.
                    if attempt or not known or not isinstance(exc, (ConnectionError, RuntimeError)):
                        raise

    def _setup(
        self,
        workers: int,
        start: str,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        threads: int,
    ) -> bytes:
        if threads < 0:
            threads = max(1, cpu_count() // workers)
        elif threads == 0 and start != "fork":
            # The fork server's libraries have their limit already; this is what none would be.
            threads = len(os.sched_getaffinity(0))
        from . import _reload

        _reload.watch()
        info: dict[str, Any] = {
            "logging": _output.logging_config(),
            "threads": threads or None,
            "forward": _output.want_forwarding(),
        }
        if around := _imports_around():
            info["imports_around"] = around
        if start != "fork":  # a fork has all that, also the one that replaces another later
            info.update(_warden.news())
            info["argv"] = list(sys.argv)
            info["settings"] = _settings.changed()
        elif threads:
            from . import _limits

            _limits.prepare(threads)
        if initializer is not None:
            info["initializer"] = self._pack((initializer, initargs))
        return _pickling.dumps_inband(info)

    def _pack(self, call: tuple[Any, tuple[Any, ...]]) -> bytes:
        """Pickle the initializer's call.  multiprocessing's locks and queues may be among it."""
        try:
            return _pickling.dumps_inband(call, "initializer")
        except _pickling.UnpicklableError:
            # These travel to a process that is being started, and to none before.
            context = sys.modules.get("multiprocessing.context")
            if context is None or context.get_spawning_popen() is not None:
                raise
        from .multiprocessing._lend import Lender

        lender = Lender()
        try:
            with lender.spawning():
                packed = _pickling.dumps_inband(call, "initializer")
        except BaseException:
            lender.close()
            raise
        weakref.finalize(self, lender.close).atexit = False
        return packed

    def _prepare_fork(self) -> None:
        # What every worker needs is imported before the fork, once, not in each of them.
        from . import _errors, _losses, _worker  # noqa: F401

        if self._gives_futures:
            # Afterwards each page that the import writes to would have to be copied.  And a fork in
            # the middle of another thread's import has half a module for ever.
            from . import _future  # noqa: F401
        if _pickling.expects_code(self._inherits):
            try:
                import cloudpickle  # noqa: F401
            except ImportError:
                pass  # said when a function needs it
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass  # closed, or none

    # ------------------------------------------------------------------ maps

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        chunk: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        progress: Wanted = None,
        caller: bool = False,
    ) -> list[R]:
        """``[fn(x) for x in iterable]`` on the workers; several iterables go in step, as in map().

        Blocks.  The first failure cancels what has not started and is raised here with the
        worker's traceback as its cause.

        chunk: items per task; None lets the pool measure and aim at 0.5 ms per task,
            in a long map at up to 8 ms.
        timeout: seconds for each item; one that takes longer loses its worker and raises
            TaskTimeout.
        retries: how often a task is run again after its worker died.
        priority: -2 (last) to 2 (first).
        progress: True for a bar, a callable of (done, total), or a tqdm bar.
        caller: the caller works too while it waits.  Fastest on few CPUs; a crash of *fn* then
            takes this process.
        """
        items, star = self._items(iterables, "map()")
        options = _map_options(chunk, timeout, retries, priority)
        return self._run(fn, items, star, options, progress, caller)

    def starmap(
        self,
        fn: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        *,
        chunk: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        progress: Wanted = None,
        caller: bool = False,
    ) -> list[R]:
        """``[fn(*x) for x in iterable]`` on the workers; options as in :meth:`map`."""
        items = _as_items(iterable, "starmap()")
        options = _map_options(chunk, timeout, retries, priority)
        return self._run(fn, items, True, options, progress, caller)

    @staticmethod
    def _items(iterables: tuple[Any, ...], what: str) -> tuple[Any, bool]:
        if not iterables:
            raise TypeError(f"{what} needs at least one iterable")
        if len(iterables) == 1:
            return _as_items(iterables[0], what), False
        return list(zip(*(_as_iterator(i, what) for i in iterables), strict=False)), True

    def _run(
        self, fn: Any, items: Any, star: bool, options: dict[str, Any], progress: Any, caller: bool
    ) -> Any:
        shown = _shown(progress, [items])
        job = self._job(
            fn,
            items,
            len(items),
            _MAP,
            star=star,
            progress=shown.update if shown else None,
            caller=caller,
            **options,
        )
        try:
            return job._get(None)
        finally:
            del job  # a traceback holds this frame
            if shown:
                shown.close()

    def imap(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        chunk: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        progress: Wanted = None,
    ) -> _core.JobHandle[R]:
        """An iterator over the results, in order, as they come.

        Input is pulled as results are taken, a bounded number of items ahead, so it may be
        endless.  An item that fails raises at its place; the next call goes on behind it.
        ``next(timeout)`` of the iterator waits at most so many seconds.
        """
        options = _map_options(chunk, timeout, retries, priority)
        return self._iterate(_ORDERED, "imap()", fn, iterables, options, progress)

    def imap_unordered(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        chunk: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        progress: Wanted = None,
    ) -> _core.JobHandle[R]:
        """Like :meth:`imap`, but results come as they end."""
        options = _map_options(chunk, timeout, retries, priority)
        return self._iterate(_UNORDERED, "imap_unordered()", fn, iterables, options, progress)

    def _iterate(
        self,
        mode: int,
        what: str,
        fn: Any,
        iterables: tuple[Any, ...],
        options: dict[str, Any],
        progress: Any,
    ) -> Any:
        if not iterables:
            raise TypeError(f"{what} needs at least one iterable")
        star = len(iterables) > 1
        items: Any = _as_iterator(iterables[0], what)
        if star:
            items = zip(items, *(_as_iterator(i, what) for i in iterables[1:]), strict=False)
        shown = _shown(progress, iterables)
        job = self._job(
            fn,
            items,
            -1,
            mode,
            star=star,
            progress=shown.update if shown else None,
            finish=shown.close if shown else None,
            **options,
        )
        return job._handle()

    def map_async(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        chunk: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        progress: Wanted = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[R]]:
        """Start a :meth:`map` in the background."""
        items, star = self._items(iterables, "map_async()")
        options = _map_options(chunk, timeout, retries, priority)
        return self._background(fn, items, star, options, progress, callback, error_callback)

    def starmap_async(
        self,
        fn: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        *,
        chunk: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        progress: Wanted = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[R]]:
        """Start a :meth:`starmap` in the background."""
        items = _as_items(iterable, "starmap_async()")
        options = _map_options(chunk, timeout, retries, priority)
        return self._background(fn, items, True, options, progress, callback, error_callback)

    def _background(
        self,
        fn: Any,
        items: Any,
        star: bool,
        options: dict[str, Any],
        progress: Any,
        callback: Any,
        error_callback: Any,
    ) -> AsyncResult[Any]:
        from ._async import AsyncResult

        shown = _shown(progress, [items])
        told = shown.update if shown else None
        job = self._job(fn, items, len(items), _ASYNC, star=star, progress=told, **options)
        return AsyncResult(job, callback, error_callback, shown)

    # ------------------------------------------------------------------ single calls

    def apply(
        self,
        fn: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
    ) -> R:
        """``fn(*args, **kwds)`` on a worker.  Blocks."""
        future = self._call(fn, args, kwds, timeout, retries, priority)
        return future.result()

    def apply_async(
        self,
        fn: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[R]:
        """Start ``fn(*args, **kwds)`` on a worker; :meth:`submit` gives a Future instead."""
        from ._async import CallResult

        future = self._call(fn, args, kwds, timeout, retries, priority)
        return CallResult(future, callback, error_callback)

    def _call(
        self,
        fn: Callable[..., R],
        args: Iterable[Any],
        kwds: dict[str, Any] | None,
        timeout: float | None,
        retries: int,
        priority: int,
    ) -> Future[R]:
        if kwds and not {"timeout", "retries", "priority"}.isdisjoint(kwds):
            from functools import partial

            fn, kwds = partial(fn, **kwds), None
        return self.submit(
            fn, *args, timeout=timeout, retries=retries, priority=priority, **(kwds or {})
        )

    # ------------------------------------------------------------------ ending

    def close(self) -> None:
        """Take no more tasks; those submitted are finished.  Does not block."""
        if not self._is_fork:
            self._refuse()

    def join(self) -> None:
        """Wait until every task has ended and the workers have left.  Call :meth:`close` first."""
        if self._is_fork:
            raise RuntimeError("this process is a fork of the pool's owner")
        if not self._refused:
            raise ValueError("the pool is still open: call close() or terminate() first")
        if self._joined:
            return
        if self._inside():
            raise RuntimeError("a task cannot wait for the end of the pool whose thread it runs on")
        while self._pending():
            self._step(0.1)
        while not self._end(False, 0.05):
            pass
        self._finish()

    def terminate(self) -> None:
        """End the workers at once, whatever they do; tasks not done raise WorkerLost."""
        if self._is_fork or self._joined:
            return
        self._refuse()
        if self._inside():  # which could not wait for itself
            threading.Thread(target=self.terminate, name="trireme-finish", daemon=True).start()
            return
        self._end(True, 2.0)
        self._finish()

    def _finish(self) -> None:
        self._joined = True
        # The watching thread may be in the middle of telling somebody: nothing of the pool runs on
        # once this returns.  Not for ever: it may be in a callback of the user's.
        _stop_serving(self, 2.0)
        self._forget()
        _open_pools.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        """Finish the tasks; after an exception, terminate instead."""
        if self._is_fork:
            return
        if exc_type is not None:
            self.terminate()
            return
        try:
            self.close()
            self.join()
        except BaseException:
            self.terminate()
            raise

    def __del__(self) -> None:
        if self._pending() or self._inside():
            _attend.let_go(self)  # else C ends the workers

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Pool cannot be pickled or sent to a worker: it belongs to the process that opened "
            "it; open another one inside the task"
        )

    # ------------------------------------------------------------------ facts

    @property
    def workers(self) -> int:
        """How many workers the pool has."""
        return self._workers

    @property
    def kind(self) -> str:
        """ "process", "thread" or "serial"."""
        return self._kind

    @property
    def start(self) -> str:
        """How worker processes are started."""
        return self._start

    def stats(self) -> dict[str, Any]:
        """Counters since the pool opened: tasks, deaths, sleeps, wake-ups, bytes.

        ``arena_live_bytes`` is memory in blocks not yet freed.
        """
        return {"kind": self._kind, "start": self._start, **self._stats(), "pids": self._pids()}

    def __repr__(self) -> str:
        state = "joined" if self._joined else "closed" if self._refused else "open"
        return f"<trireme.Pool {self._workers} {self._kind} workers, {state}>"


# Each function of Python that a fork runs costs it 40 us, for the pages that it touches.
os.register_at_fork(after_in_child=_opening._at_fork_reinit)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------
# The default pool
# ---------------------------------------------------------------------------------------------

_default: dict[str, Pool] = {}  # "pool", if it is open: a dictionary, which a fork empties in C
os.register_at_fork(after_in_child=_default.clear)


def default_pool() -> Pool:
    """The pool behind :func:`map`, :func:`starmap` and :func:`submit`; opened when first used."""
    pool = _default.get("pool")
    if pool is None or pool._broken or pool._refused:
        if pool is not None:
            pool.terminate()
        pool = _default["pool"] = Pool()
    return pool


class _Default:
    """The default pool for one call: an interrupt ends it."""

    def __enter__(self) -> Pool:
        return default_pool()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        pool = _default.pop("pool", None) if kind is KeyboardInterrupt else None
        if pool is not None:
            # Nothing may go on in the background that the user has interrupted.
            pool.terminate()


if TYPE_CHECKING:  # they take what the methods take
    map, starmap, submit = Pool().map, Pool().starmap, Pool().submit
else:

    def map(fn: Callable[..., R], *iterables: Iterable[Any], **options: Any) -> list[R]:
        """:meth:`Pool.map` on the default pool."""
        with _Default() as pool:
            return pool.map(fn, *iterables, **options)

    def starmap(fn: Callable[..., R], iterable: Iterable[Any], **options: Any) -> list[R]:
        """:meth:`Pool.starmap` on the default pool."""
        with _Default() as pool:
            return pool.starmap(fn, iterable, **options)

    def submit(fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """:meth:`Pool.submit` on the default pool."""
        return default_pool().submit(fn, *args, **kwargs)


@atexit.register
def _at_exit() -> None:
    for pool in list(_open_pools):
        if pool._is_fork or pool._joined:
            continue
        try:
            # Nobody is left to be told, and telling imports modules, at which an interpreter that
            # ends by Ctrl-C forgets that it does.  What tasks have printed is shown, though.
            pool._refuse()
            _stop_serving(pool, 2.0)
            pool._stopping = True  # for whom a pool that is being dropped has yet to start
            pool._end(True, 2.0, False)
            pool._joined = True
            # Functions hold their module: what is in __main__ is to go while there are builtins.
            pool._forget()
        except Exception:
            pass  # the warden ends the workers in any case
