# SPDX-License-Identifier: BSD-3-Clause
"""What the executors share: submitting, map, and the ways an executor ends.

An executor opens its pool with the first task, as the original starts its workers then.  What
happens per task is one Python call: ``submit`` calls ``self._send``, which is ``Pool.submit``
while there is a pool, and at the end a function that says why not.

An executor that ended without being waited for, or that was dropped, leaves its pool to a thread
that waits for the tasks.  At the end of the program all tasks are waited for, before the
interpreter begins to take things apart (``threading._register_atexit``, as in the original).
"""

from __future__ import annotations

import os
import threading
import time
import types
import weakref
from _thread import start_new_thread
from collections import deque
from concurrent.futures import _base
from functools import partial
from itertools import islice, starmap

from .. import _attend, _pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeVar

    R = TypeVar("R")

_AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
_AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"
_Function = types.FunctionType
_PLAIN = {_Function, type}
_OPTIONS = frozenset(("timeout", "retries", "priority"))
_MAX_WORKERS = 1024
_SLOTS = 1 << 19  # the most there are: submit() is not to block; unused ones cost nothing
_FIRST_LOOK = 1024

_pools = _attend.PoolSet()
_exiting = False


def _finish(pool: _pool.Pool) -> None:
    """Wait until the tasks of *pool* have ended, and end it."""
    if not pool._is_fork:
        pool.close()
        pool.join()


def _finish_later(pool: _pool.Pool) -> None:
    """:func:`_finish`, by a thread."""
    if pool._is_fork or pool._joined:
        return
    pool.close()
    try:
        threading.Thread(target=_finish, args=(pool,), name="trireme-finish", daemon=True).start()
    except RuntimeError:
        pass  # the interpreter is ending: _at_exit() has waited or will


def _finish_at_last(pool: _pool.Pool) -> None:
    """:func:`_finish_later`, without a lock of threading's."""
    pool.close()
    try:
        start_new_thread(_finish_later, (pool,))
    except RuntimeError:
        pass  # as above


def _abandon(pools: list[_pool.Pool]) -> None:
    """An executor was dropped: its tasks are finished, nobody need wait for them.

    This may be a collection in the middle of anything, with any lock of ours or of threading's
    held by this thread or one that waits for it: none is taken here.
    """
    for pool in pools:
        if pool._is_fork or pool._joined:
            continue
        hooked = getattr(pool, "_has_hooks", False)
        if pool.kind == "process" and not hooked and not pool._pending():
            _attend.end_quietly(pool)
        else:
            _finish_at_last(pool)


def _at_exit() -> None:
    global _exiting
    _exiting = True
    for pool in list(_pools):
        _finish(pool)


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]


os.register_at_fork(after_in_child=_pools.data.clear)  # type: ignore[attr-defined]


def _failed(exc: BaseException) -> _base.Future[Any]:
    """A future that has ended with *exc*."""
    future: _base.Future[Any] = _base.Future()
    future.set_running_or_notify_cancel()
    future.set_exception(exc)
    return future


def _until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Return when *condition* holds, or after *seconds*."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)


def _plain(fn: Any) -> bool:
    """Whether a pool may remember *fn*: it leads to no object that must not live on with it.

    A function may lead to one through its closure, but sending that anew each time would be dear.
    """
    kind = type(fn)
    return kind in _PLAIN or (
        kind is types.BuiltinFunctionType and type(fn.__self__) is types.ModuleType
    )


def _call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run *fn*, which came as an argument: pools remember functions, and with them their owners."""
    return fn(*args, **kwargs)


def _run_chunk(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> Any:
    """Worker: *fn* for each of the items; their values, and the first exception, encoded."""
    values: list[Any] = []
    failed: bytes | None = None
    for args in chunk:
        try:
            value = fn(*args)
        except BaseException as exc:
            if failed is None:
                from .._errors import encode_exception

                failed = encode_exception(exc, skip_frames=1)
        else:
            if failed is None:
                values.append(value)
    return values, failed


def _chunk_values(results: Iterator[Any]) -> Iterator[Any]:
    """The items' values out of what :func:`_run_chunk` gave.  Keeps none that it has yielded."""
    try:
        for values, failed in results:
            values.reverse()
            while values:
                yield values.pop()
            if failed is not None:
                from .._errors import decode_exception

                raise decode_exception(failed)
    finally:
        results.close()  # type: ignore[attr-defined]


def _take(futures: deque[Any], end: float | None) -> Any:
    """The result of the first of *futures*, which leaves them only when it has one."""
    value = futures[0].result(None if end is None else end - time.monotonic())
    futures.popleft()
    return value


def _refuse_ended(*_: Any, **__: Any) -> Any:
    raise RuntimeError(_AFTER_SHUTDOWN)


class Ending:
    """Stands for the threads and queues of the original's that programs and tests wait for."""

    def __init__(self, pool: _pool.Pool, name: str = "trireme") -> None:
        self._pool = weakref.ref(pool)
        self.name = name
        self.daemon = False

    def is_alive(self) -> bool:
        """Whether the pool has not ended."""
        pool = self._pool()
        return pool is not None and not pool._joined

    def join(self, timeout: float | None = None) -> None:
        """Wait until the pool has ended."""
        _until(lambda: not self.is_alive(), float("inf") if timeout is None else timeout)

    join_thread = join


class PoolExecutor(_base.Executor):
    """An executor on a pool of Trireme's; the two public ones are made from it."""

    _max_workers: int

    def _set_up(self) -> None:
        """To be called by __init__ when the arguments are known to be right."""
        self._pool: _pool.Pool | None = None
        self._opened: list[_pool.Pool] = []  # for _abandon(), which must not hold the executor
        self._lock = threading.RLock()
        self._down = False
        self._why_broken: str | None = None
        self._sent: list[weakref.ref[Any]] = []
        # Of an executor that forks: what its workers have inherited.
        self._born: Any = None
        # How many workers the original would have by now: it starts one when none is idle.
        self._shown_workers = 0
        self._counting = True  # until they are all there
        self._unsendable = 0
        self._look_at = _FIRST_LOOK
        # Never a method of this object: it is to go when it is dropped, without the collector.
        self._send: Callable[..., Any] | None = None
        self._pids: Callable[[], list[int]] | None = None
        self._alive = [-1]  # no list of pids equals it
        self._finalizer = weakref.finalize(self, _abandon, self._opened)
        self._finalizer.atexit = False

    def _make_pool(self) -> _pool.Pool:
        raise NotImplementedError

    def _sender(self, pool: _pool.Pool) -> Callable[..., Any]:
        """What submits to *pool*."""
        return pool.submit

    def _broken_error(self) -> BaseException:
        raise NotImplementedError

    def _look(self) -> None:
        """The workers are not the ones they were: see whether that breaks the executor."""

    def _open(self) -> _pool.Pool | None:
        """The pool, opened now if it was not; None when the executor has ended."""
        with self._lock:
            if self._pool is None and not self._down and self._why_broken is None:
                if _exiting:
                    raise RuntimeError(_AFTER_EXIT)
                pool = self._make_pool()
                self._pool = pool
                self._opened.append(pool)
                _pools.add(pool)
                self._send = self._sender(pool)
            return self._pool

    def _opening(self) -> Callable[..., Any]:
        """What sends the first call, now that the pool is open."""
        self._open()
        return self._open_and_send

    def _open_and_send(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._open()
        send = self._send
        if send is None:
            raise RuntimeError(_AFTER_SHUTDOWN)
        try:
            return send(fn, *args, **kwargs)
        except _base.BrokenExecutor as exc:
            # The workers died at once.  The original would not know yet.
            return _failed(exc)

    # ------------------------------------------------------------------ submitting

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> _base.Future[R]:
        """Start ``fn(*args, **kwargs)`` on a worker and return the Future of its result."""
        pids = self._pids
        if pids is not None and pids() != self._alive:
            self._look()
        if self._counting:
            self._count_workers(1)
        try:
            send = self._send or self._opening()
            if self._born is not None:
                fn = self._born.sent_as(fn)
            if type(fn) is _Function or _plain(fn):
                if not kwargs:
                    future = send(fn, *args)
                elif _OPTIONS.isdisjoint(kwargs):
                    future = send(fn, *args, **kwargs)
                else:
                    future = send(_call, partial(fn, **kwargs), *args)
            elif kwargs:
                future = send(_call, partial(fn, **kwargs), *args)
            else:
                future = send(_call, fn, *args)
        except Exception as exc:
            return self._not_sent(fn, exc)
        if self._counting and future.done() and future.exception() is not None:
            self._unsendable += 1  # the original has found an idle worker for it, and keeps that
        sent = self._sent
        sent.append(weakref.ref(future))
        n = len(sent)
        if not n & 31:
            future.done()  # takes what has ended: results that nobody asks for must not pile up
            if n >= self._look_at:
                self._forget_ended()
        return future  # type: ignore[no-any-return]

    def _not_sent(self, fn: Any, exc: Exception) -> _base.Future[Any]:
        """Raise what the original raises, or give the future that it gives."""
        if isinstance(exc, _base.BrokenExecutor):
            self._look()
            raise exc
        if self._why_broken is not None:
            raise self._broken_error() from None
        if self._down:
            raise RuntimeError(_AFTER_SHUTDOWN) from None
        if _exiting:
            raise RuntimeError(_AFTER_EXIT) from None
        if callable(fn) or not isinstance(exc, TypeError):
            raise exc
        return _failed(exc)  # not a callable: the original finds out in the worker

    def _forget_ended(self) -> None:
        """Keep the list of futures short: only the pending ones are of interest."""
        with self._lock:
            sent = self._sent
            n = len(sent)
            # Others may append meanwhile: what is there now is replaced, the rest stays.
            sent[:n] = [r for r in sent[:n] if (f := r()) is not None and not f.done()]
            self._look_at = max(_FIRST_LOOK, 2 * len(sent))

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """An iterator equivalent to ``map(fn, *iterables)``; the calls run on the workers.

        All calls are started at once; with *buffersize*, at most so many whose results have not
        been yielded.  When the iterator is closed, or fails, calls not started are cancelled.

        timeout: seconds from now until the last result must have come, else TimeoutError.
        chunksize: items per task.  One is as fast as any other number but for huge numbers of
            tiny items.  Executors of threads do not look at it.
        """
        if self._chunks and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else timeout + time.monotonic()
        rows: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        if chunksize == 1 or not self._chunks:
            return self._results(fn, rows, end, buffersize)
        chunks = iter(lambda: (list(islice(rows, chunksize)),), ([],))
        return _chunk_values(self._results(partial(_run_chunk, fn), chunks, end, buffersize))

    _chunks = True
    # After shutdown(wait=False), is another shutdown() to wait?  The original's threads are joined.
    _waits_again = False
    _left: _pool.Pool | None = None

    def _results(
        self,
        fn: Callable[..., Any],
        rows: Iterator[tuple[Any, ...]],
        end: float | None,
        buffersize: int | None,
    ) -> Iterator[Any]:
        futures = self._start_all(fn, islice(rows, buffersize))
        # The results must not keep the executor: it may be dropped before them.
        executor = weakref.ref(self) if buffersize is not None else None

        def results() -> Iterator[Any]:
            try:
                while futures:
                    if executor is not None and (own := executor()) is not None:
                        row = next(rows, None)
                        if row is not None:
                            futures.append(own.submit(fn, *row))
                        del own, row
                    yield _take(futures, end)
            finally:
                for future in futures:
                    future.cancel()
                futures.clear()

        return results()

    def _start_all(self, fn: Callable[..., Any], rows: Iterator[tuple[Any, ...]]) -> deque[Any]:
        """A future for each of *rows*."""
        if len(self._sent) >= self._look_at:
            self._forget_ended()
        # Programs count tasks by putting a submit() of theirs on the instance: it is to be called.
        # So are wrappers in the class, which may give themselves out for what they wrap.
        submit = self.submit
        own = type(submit) is types.MethodType and submit.__func__ is _OUR_SUBMIT
        futures: deque[Any] = deque()
        if own and callable(fn):
            row = next(rows, None)
            if row is None:
                return futures
            futures.append(self.submit(fn, *row))  # opens the pool, and checks
            send = self._send or self._open_and_send
            if self._born is not None:
                fn = self._born.sent_as(fn)
            one = partial(send, fn) if _plain(fn) else partial(send, _call, fn)
            try:
                futures.extend(starmap(one, rows))
            except Exception as exc:
                self._not_sent(fn, exc)
            self._sent.extend(map(weakref.ref, futures))
            if self._counting:
                self._count_workers(len(futures) - 1)
        else:
            futures.extend(self.submit(fn, *row) for row in rows)
        return futures

    # ------------------------------------------------------------------ ending

    def _ending(self) -> Ending | None:
        return None if self._pool is None else Ending(self._pool)

    def _count_workers(self, tasks: int) -> None:
        """So many tasks are being submitted: the original would start workers for some of them."""
        pool, shown = self._pool, self._shown_workers
        most = min(int(self._max_workers), _MAX_WORKERS)
        if pool is None or tasks > 1:
            shown += tasks
        elif pool._pending() + self._unsendable >= shown:
            shown += 1
        self._shown_workers = min(shown, most)
        self._counting = shown < most

    def _used(self, pool: _pool.Pool) -> int:
        """How many workers are shown to those who look behind the executor."""
        return min(pool.workers, self._shown_workers)

    def _cancel_pending(self, spare: int = 0) -> None:
        """Cancel what no worker has started, but for the first *spare* ones."""
        with self._lock:
            sent, self._sent = self._sent, []
        for ref in sent[spare:]:
            future = ref()
            if future is not None:
                future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and free the workers when those submitted have ended.

        wait: return only then.  cancel_futures: cancel calls that no worker has started.
        """
        with self._lock:
            pool = self._pool
            self._down = True
            self._pids = None
            if self._why_broken is None:
                self._send = _refuse_ended
        if pool is None or pool._is_fork:
            if pool is None and wait and self._left is not None:
                self._left.join()
                self._left = None
            return
        pool.close()
        if cancel_futures:
            # The original has handed the first calls to its workers by now, come up or not.
            self._cancel_pending(0 if pool._stats()["completed"] else 1)
        if wait:
            pool.join()
        elif not pool._joined:
            _finish_later(pool)
            if self._waits_again:
                self._left = pool
        self._ended()

    def _ended(self) -> None:
        """The executor has no use for the pool any more; its futures may."""
        with self._lock:
            self._finalizer.detach()
            self._opened.clear()
            self._born = None
            self._pool = None
            self._sent.clear()


_OUR_SUBMIT = PoolExecutor.submit  # before anybody puts another in its place
