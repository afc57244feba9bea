# SPDX-License-Identifier: BSD-3-Clause
"""ProcessPoolExecutor on a pool of worker processes of the runtime's.

The original's contract is that the death of one worker breaks the whole executor; with
``on_crash="isolate"`` it costs the task that the worker ran.  For the contract's sake the pool is
fragile: its warden ends the other workers at once, and whoever looks at a future then finds that it
has ended.  Where a worker's death may be no fault of the program's, as with ``timeout=`` and
``retries=``, the warden cannot know: there a thread sleeps on the workers' pidfds.  Submitting
looks whether the workers are still the same ones, so that whoever was told of a death by a future
cannot submit once more.

The executor derives from the original one, but that imports what we have no use for, 7 ms of it:
the original is made a base when somebody imports it.  Nobody can ask for it before.
"""

from __future__ import annotations

import copyreg
import multiprocessing
import operator
import os
import select
import signal
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import context as _mp_context
from typing import Literal, cast

from .. import _imports, _pool
from .._errors import broken_process_pool, executors_cause
from .._options import _task_options
from ..multiprocessing import _born, _lend, _script, _ways, _worker
from ._executor import _MAX_WORKERS, _PLAIN, _SLOTS, Ending, PoolExecutor, _refuse_ended, _until
from ._start import OwnersHandle, begin, begin_inherited, inherited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures.process import EXTRA_QUEUED_CALLS, BrokenProcessPool, _RemoteTraceback
    from concurrent.futures.process import ProcessPoolExecutor as _Original
    from types import ModuleType
    from typing import Any

    class _Executor(PoolExecutor, _Original):
        """What the executor derives from in the end."""
else:
    _Executor = PoolExecutor

__all__ = ["EXTRA_QUEUED_CALLS", "BrokenProcessPool", "ProcessPoolExecutor", "_RemoteTraceback"]

_NOT_USABLE = "A child process terminated abruptly, the process pool is not usable anymore"


_PLAIN.add(_born.Stand)


# ---------------------------------------------------------------------------------------------
# Initializers, and locks among their arguments
# ---------------------------------------------------------------------------------------------


class _Popen:
    """What multiprocessing's locks, queues and pipes want to see before they let be pickled."""

    def duplicate_for_child(self, fd: int) -> int:
        """Nothing: it is only named."""
        return fd

    def DupFd(self, fd: int) -> OwnersHandle:
        """What is pickled in place of *fd*."""
        return OwnersHandle(fd)


_handing = threading.Lock()


@contextmanager
def _handing_over() -> Iterator[None]:
    """Within, multiprocessing's locks and the like may be pickled: for a worker's start."""
    before = _mp_context.get_spawning_popen()
    with _handing:
        # The other half of their conditions: how pipes and shared memory travel is known to
        # multiprocessing's own pickler only.
        ways = _ways.known()
        copyreg.dispatch_table.update(ways)
        _mp_context.set_spawning_popen(_Popen())  # type: ignore[arg-type]
        try:
            yield
        finally:
            _mp_context.set_spawning_popen(before)
            for kind in ways:
                copyreg.dispatch_table.pop(kind, None)


os.register_at_fork(after_in_child=_handing._at_fork_reinit)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------
# Deaths
# ---------------------------------------------------------------------------------------------


def _has_lost(pool: _pool.Pool) -> bool:
    """Whether *pool* has lost a worker, other than by a time limit or with its task run again."""
    stats = pool.stats()
    return pool._broken or stats["deaths"] > stats["timed_out"] + stats["retried"]


class _Pool(_pool.Pool):
    _inherits = True
    _has_hooks = False  # whether the program has something to do around a worker's life


class _FragilePool(_Pool):
    """A pool that the death of a worker breaks."""

    _fragile = True


class _Watcher:
    """The thread that breaks an executor when a worker dies; it ends with the pool."""

    def __init__(self, pool: _pool.Pool, executor: ProcessPoolExecutor) -> None:
        self._lock = threading.Lock()
        try:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self._bell = -1  # no descriptors left: it looks now and then
        self._thread = threading.Thread(
            target=self._run,
            args=(weakref.ref(pool), weakref.ref(executor)),
            name="trireme-deaths",
            daemon=True,
        )
        self._thread.start()

    def _run(self, *refs: Any) -> None:
        try:
            _watch(self._bell, *refs)
        finally:
            with self._lock:
                if self._bell >= 0:
                    os.close(self._bell)
                self._bell = -1

    def end(self) -> None:
        """The pool has ended: see that the thread has, too."""
        if self._thread is threading.current_thread():
            return
        with self._lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)
        self._thread.join()


def _watch(
    bell: int,
    pool_ref: weakref.ref[_pool.Pool],
    executor_ref: weakref.ref[ProcessPoolExecutor],
) -> None:
    """Sleep until a worker has gone, and see why.  *bell* is readable when the pool has ended."""
    while (pool := pool_ref()) is not None and not pool._joined and not pool._is_fork:
        if _has_lost(pool):
            executor = executor_ref()
            if executor is not None:
                executor._break(pool)
            elif not pool._joined:
                pool.terminate()
            return
        pids = pool._pids()
        # One is being started, or the pool is ending: look again soon.
        patience = None if len(pids) == pool.workers and not pool._refused else 0.05
        del pool
        fds: list[int] = []
        try:
            poll = select.poll()
            if bell >= 0:
                poll.register(bell, select.POLLIN)
            else:
                patience = 0.2
            for pid in pids:
                try:
                    fds.append(os.pidfd_open(pid))
                except ProcessLookupError:
                    patience = 0.001
                except OSError:
                    patience = 0.2  # no descriptors left
                else:
                    poll.register(fds[-1], select.POLLIN)
            poll.poll(None if patience is None else int(patience * 1000))
        finally:
            for fd in fds:
                os.close(fd)
        # The one that has gone was seen here before its warden told of it.
        if patience is None:
            time.sleep(0.001)


def _unreadable(
    executor_ref: weakref.ref[ProcessPoolExecutor],
    pool_ref: weakref.ref[_pool.Pool],
    exc: BaseException,
) -> BaseException:
    """A result cannot be unpickled: that breaks the executor, as it does the original."""
    executor, pool = executor_ref(), pool_ref()
    if executor is not None and pool is not None:
        executor._break(pool)
    broken = _not_usable()
    broken.__cause__ = exc
    return broken


def _unsent(exc: BaseException) -> BaseException:
    """A call cannot be pickled: what is raised instead if an object's own methods raised that."""
    own = exc.__cause__
    if own is None:
        return exc
    import traceback

    own.__cause__ = executors_cause("".join(traceback.format_exception(own)))
    return own.with_traceback(None)


class _Worker:
    """A worker process, as far as programs ask the items of ``executor._processes``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.name = f"trireme-worker-{pid}"
        self._fd = -1
        try:
            self._fd = os.pidfd_open(pid)
        except OSError:
            pass  # it has gone

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable when the process has ended."""
        return self._fd

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._fd >= 0 and not select.select([self._fd], [], [], 0)[0]

    def join(self, timeout: float | None = None) -> None:
        """Wait until the process has ended."""
        if self._fd >= 0:
            select.select([self._fd], [], [], timeout)

    def _signal(self, number: int) -> None:
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                pass

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)


def _not_usable() -> BaseException:
    cls: type[BaseException] = broken_process_pool()
    return cls(_NOT_USABLE)


def _refuse_broken(*_: Any, **__: Any) -> Any:
    raise _not_usable()


# ---------------------------------------------------------------------------------------------
# The executor
# ---------------------------------------------------------------------------------------------


def _start_of(mp_context: Any) -> str:
    return str(mp_context.get_start_method(allow_none=False))


class ProcessPoolExecutor(_Executor):
    """concurrent.futures.ProcessPoolExecutor, on worker processes of the runtime's.

    The arguments are the original's, and three more:

    on_crash: "break" (the original's contract: the death of a worker ends every pending future
        with BrokenProcessPool, and the executor) or "isolate" (only the task it ran ends, with
        WorkerLost, which is a BrokenProcessPool; a new worker takes its place).
    timeout: seconds for each task; one that takes longer loses its worker and raises TaskTimeout,
        which is a TimeoutError.  It breaks nothing.
    retries: how often a task is run again after its worker died.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        on_crash: Literal["break", "isolate"] = "break",
        timeout: float | None = None,
        retries: int = 0,
    ) -> None:
        if max_workers is None:
            max_workers = _pool.cpu_count()
        else:
            if max_workers <= 0:
                raise ValueError("max_workers must be greater than 0")
            max_workers = operator.index(max_workers)
        if mp_context is None:
            mp_context = multiprocessing.get_context(
                "spawn" if max_tasks_per_child is not None else None
            )
        start = _start_of(mp_context)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if start == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with"
                    " the 'fork' multiprocessing start method;"
                    " supply a different mp_context."
                )
        if on_crash not in ("break", "isolate"):
            raise ValueError(f"on_crash must be 'break' or 'isolate', not {on_crash!r}")
        options = _task_options(timeout, retries)
        self._max_workers = max_workers
        self._mp_context = mp_context
        self._initializer = cast("Any", initializer)
        self._initargs = initargs
        self._max_tasks_per_child = max_tasks_per_child
        self._on_crash = on_crash
        self._options = options
        self._known: dict[int, _Worker] = {}
        self._watcher: _Watcher | None = None
        self._set_up()

    def _make_pool(self) -> _pool.Pool:
        _imports.look()
        start = _start_of(self._mp_context)
        _script.expect(start)
        _pool.begin_warden(start)
        _ways.follow()
        breaks_by_itself = self._on_crash == "break" and not self._options
        open_pool = partial(
            _FragilePool if breaks_by_itself else _Pool,
            min(int(self._max_workers), _MAX_WORKERS),
            start=start,
            slots=_SLOTS,
            max_tasks_per_worker=self._max_tasks_per_child,
            max_restarts=1 if self._on_crash == "break" else None,
        )
        # A call that ends its worker is not run again: it would end the next one, too.
        breaks = self._on_crash == "break" and not self._options.get("retries")
        context: Any = self._mp_context
        initargs = tuple(self._initargs)
        target = _worker.worker
        args = (None, None, self._initializer, initargs, self._max_tasks_per_child)
        models = [context.Process(target=target, args=args) for _ in range(open_pool.args[0])]
        register = _lend.new_register()
        try:
            info = _lend.describe(models, start, register)
            if start == "fork":
                self._born = _born.Born()
                info["modules"] = self._born.modules
                own = None
            else:
                info["script"], own = _script.look()
                if own is not None:
                    open_pool = partial(own, open_pool)
            pool = self._open_pool(open_pool, info, breaks, initargs)
            # Weakly: it holds the program's globals, and the pool is held until the executor goes.
            pool._born = own if self._born is None else weakref.proxy(self._born)
        except BaseException:
            os.close(register)
            raise
        weakref.finalize(pool, os.close, register).atexit = False
        pool._unsent = _unsent
        vars(pool)["_has_hooks"] = _worker.has_hooks(models[0])
        if self._on_crash == "break":
            self._pids = pool._pids
            pool._unreadable = partial(_unreadable, weakref.ref(self), weakref.ref(pool))
            if not breaks_by_itself:
                self._watcher = _Watcher(pool, self)
        return pool

    def _open_pool(
        self,
        open_pool: Callable[..., Any],
        info: dict[str, Any],
        breaks: bool,
        initargs: tuple[Any, ...],
    ) -> _pool.Pool:
        if info["method"] != "fork":
            with _handing_over():
                pool = open_pool(
                    initializer=begin,
                    initargs=(
                        _script.Prologue(info),  # before what of the script's follows
                        breaks,
                        self._initializer,
                        initargs,
                    ),
                )
        else:
            number = id(self)
            inherited[number] = (info, self._initializer, initargs)
            try:
                pool = open_pool(initializer=begin_inherited, initargs=(breaks, number))
            finally:
                del inherited[number]
        return cast("_pool.Pool", pool)

    def _sender(self, pool: _pool.Pool) -> Callable[..., Any]:
        return partial(pool.submit, **self._options) if self._options else pool.submit

    # ------------------------------------------------------------------ breaking

    def _ended(self) -> None:
        pool = self._pool
        super()._ended()
        if self._watcher is not None and pool is not None and pool._joined:
            self._watcher.end()

    def _look(self) -> None:
        pool = self._pool
        if pool is None:
            return
        if _has_lost(pool) if self._on_crash == "break" else pool._broken:
            self._break(pool)
        else:
            # Until all have come up, a list says nothing: one missing may be late or dead.
            pids = pool._pids()
            self._alive = pids if len(pids) == pool.workers else [-1]

    def _break(self, pool: _pool.Pool) -> None:
        """A worker has died: end everything that is pending, and take nothing more."""
        with self._lock:
            if self._why_broken is None:
                self._why_broken = _NOT_USABLE
                self._send = _refuse_broken
            self._pids = None
        if not pool._broken:
            self._await_reason(pool)
        if not pool._joined:
            pool.terminate()

    def _await_reason(self, pool: _pool.Pool) -> None:
        """If the worker died of its initializer, have that said: the message follows at once."""
        if self._initializer is None or pool.stats()["completed"]:
            return
        _until(lambda: pool.stats() and pool._broken, 0.2)  # stats() looks for messages

    def _broken_error(self) -> BaseException:
        return _not_usable()

    @property
    def _broken(self) -> str | bool:  # type: ignore[override]
        self._look()
        return self._why_broken or False

    @property
    def _shutdown_thread(self) -> bool:  # type: ignore[override]
        return self._down

    @property
    def _processes(self) -> dict[int, _Worker] | None:  # type: ignore[override]
        pool = self._pool
        if pool is None:
            return None if self._down else {}
        # Those that are being started count: the original would have started them by now.
        _until(lambda: len(pool._pids()) == pool.workers or pool._broken or self._down)
        known = self._known
        self._known = {pid: known.get(pid) or _Worker(pid) for pid in pool._pids()}
        if pool.start == "fork":
            return dict(self._known)
        return dict(islice(self._known.items(), self._used(pool)))

    @property
    def _executor_manager_thread(self) -> Ending | None:  # type: ignore[override]
        return self._ending()

    @property
    def _call_queue(self) -> Ending | None:  # type: ignore[override]
        return self._ending()

    # ------------------------------------------------------------------ ending by force

    def terminate_workers(self) -> None:
        """End the workers at once; what has not ended raises, what has not started is cancelled."""
        self._force_shutdown(operation="terminate")

    def kill_workers(self) -> None:
        """As :meth:`terminate_workers`, with SIGKILL first."""
        self._force_shutdown(operation="kill")

    def _force_shutdown(self, operation: str) -> None:
        if operation not in ("terminate", "kill"):
            raise ValueError(f"operation must be 'terminate' or 'kill', not {operation!r}")
        with self._lock:
            pool = self._pool
            self._down = True
            self._pids = None
            if self._why_broken is None:
                self._send = _refuse_ended
        if pool is None or pool._is_fork:
            return
        pool.close()
        self._cancel_pending()
        if not pool._joined:
            for pid in pool._pids():
                getattr(self._known.get(pid) or _Worker(pid), operation)()
            pool.terminate()
        self._ended()


def _derive(original: ModuleType) -> None:
    # Not by its attribute: where the doors are open that is ours.
    base = vars(original).get("ProcessPoolExecutor", object)
    if base not in ProcessPoolExecutor.__mro__:
        ProcessPoolExecutor.__bases__ = (PoolExecutor, base)


_imports.when_imported("concurrent.futures.process", _derive)


def __getattr__(name: str) -> Any:
    """What else the original's module has, for those who look behind the executor."""
    wanted = name in __all__ or (name[:1] == "_" and name[:2] != "__")
    # Others are asked for by who asks each module, as pickle does.
    if not wanted and "concurrent.futures.process" not in sys.modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from concurrent.futures import process

    return getattr(process, name)
