# SPDX-License-Identifier: BSD-3-Clause
"""SerialPool: the caller is the only worker.  For debugging, and for machines with one CPU."""

from __future__ import annotations

from concurrent.futures import Future as _StdFuture

from . import _Generic, _share
from ._options import _as_iterator, _check_pool_options, _chunk, _integer, _shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Any, Self, TypeVar

    from ._async import AsyncResult

    R = TypeVar("R")


class SerialFuture(_StdFuture["R"]):
    """A call that has already been made.  isinstance() says that it is a Future of Trireme's."""

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            from ._future import Future

            return Future

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio

        return asyncio.wrap_future(self).__await__()


def _arguments(args: Any) -> Any:
    args = _share.reveal(args)
    return args if type(args) in (tuple, list) else _share.reveal(tuple(args))


def _check_callable(fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"a task needs a callable, not {type(fn).__name__}: {fn!r}")


def _check_options(options: dict[str, Any]) -> None:
    """A wrong option is as wrong as in any other pool, and so is one that needs workers to kill."""
    _chunk(options.pop("chunk", None))
    options.pop("caller", None)
    timeout = options.pop("timeout", None)
    if timeout is not None:
        try:
            seconds = float(timeout) if not isinstance(timeout, str) else None
        except (TypeError, ValueError):
            seconds = None
        if seconds is None:
            raise TypeError(
                f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
            )
        if not seconds > 0:
            raise ValueError("timeout must be more than 0 seconds")
        if seconds <= 9e9:  # more than that is none in C, too
            raise ValueError("timeout needs worker processes: the caller's call cannot be stopped")
    if _integer("retries", options.pop("retries", 0), 0, 65535, "an int"):
        raise ValueError("retries needs worker processes: the caller's calls die with the caller")
    _integer("priority", options.pop("priority", 0), -2, 2, "an int")
    for name in options:
        raise TypeError(f"unexpected keyword argument {name!r}")


class _Results(_Generic["R"]):
    """What imap() gives: it goes on behind an item that fails, as in other pools."""

    def __init__(
        self,
        pool: SerialPool,
        fn: Callable[..., R],
        items: Iterator[Any],
        shown: Any,
        least: int,
    ) -> None:
        self._pool = pool
        self._fn = fn
        self._items = items
        self._shown = shown
        self._least = least  # how many results there are to be

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        try:
            args = next(self._items)
        except BaseException:
            self._close()
            raise
        try:
            return self._pool._call(self._fn, args, {})
        except StopIteration as exc:  # which would be this iterator's end
            raise RuntimeError("a task raised StopIteration") from exc
        finally:
            if self._shown:
                self._shown.update(1)

    def next(self, timeout: float | None = None) -> R:
        """The next result; *timeout* means nothing: the call is made here and now."""
        return next(self)

    def _close(self) -> None:
        if self._shown:
            self._shown.close()


class SerialPool:
    """The methods of Pool, run in the caller, one after the other, without pickling.

    ``timeout`` and ``retries`` are refused: there is no worker to kill.  ``chunk``, ``priority``
    and ``caller`` are accepted and mean nothing.  Exceptions come as they are.  isinstance() says
    that it is a Pool.
    """

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            from ._pool import Pool

            return Pool

    workers = 1
    kind = "serial"
    start = "none"

    def __init__(
        self,
        workers: int | None = None,
        *,
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
        _check_pool_options(
            "serial",
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
        self._closed = False
        self._calls = 0
        self._failed = 0
        if initializer is not None:
            _share.call(initializer, initargs)

    def _check(self) -> None:
        if self._closed:
            raise ValueError("the pool is closed")

    def _call(self, fn: Callable[..., R], args: Iterable[Any], kwargs: dict[str, Any]) -> R:
        self._calls += 1
        try:
            return _share.reveal_function(fn)(*_arguments(args), **_share.reveal(kwargs))
        except BaseException:
            self._failed += 1
            raise

    # ------------------------------------------------------------------ single calls

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> SerialFuture[R]:
        """Call now; the future has ended when it is returned."""
        options: dict[str, Any] = {
            k: kwargs.pop(k) for k in ("timeout", "retries", "priority") if k in kwargs
        }
        return self._submit(fn, args, kwargs, options)

    def _submit(
        self,
        fn: Callable[..., R],
        args: Iterable[Any],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> SerialFuture[R]:
        self._check()
        _check_callable(fn)
        _check_options(options)
        return self._future(lambda: self._call(fn, args, kwargs))

    @staticmethod
    def _future(call: Callable[[], R]) -> SerialFuture[R]:
        future: SerialFuture[R] = SerialFuture()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(call())
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            future.set_exception(exc)
        return future

    def apply(
        self,
        fn: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        **options: Any,
    ) -> R:
        """``fn(*args, **kwds)``."""
        return self._submit(fn, args, kwds or {}, options).result()

    def apply_async(
        self,
        fn: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        *,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """:meth:`apply`, as an AsyncResult that has ended."""
        from ._async import CallResult

        return CallResult(self._submit(fn, args, kwds or {}, options), callback, error_callback)

    # ------------------------------------------------------------------ maps

    def _iterate(
        self,
        what: str,
        fn: Callable[..., R],
        iterables: tuple[Any, ...],
        star: bool,
        options: dict[str, Any],
    ) -> _Results[R]:
        self._check()
        _check_callable(fn)
        if not iterables:
            raise TypeError(f"{what} needs at least one iterable")
        progress = options.pop("progress", None)
        _check_options(options)
        items: Iterator[Any]
        if len(iterables) == 1:
            items = _as_iterator(iterables[0], what)
            items = items if star else zip(items, strict=False)
        else:
            items = zip(*(_as_iterator(i, what) for i in iterables), strict=False)
        shown = _shown(progress, iterables)
        least = len(iterables[0]) if len(iterables) == 1 and type(iterables[0]) is list else 0
        return _Results(self, fn, items, shown, least)

    def map(self, fn: Callable[..., R], *iterables: Iterable[Any], **options: Any) -> list[R]:
        """``list(map(fn, *iterables))``."""
        return self._all(self._iterate("map()", fn, iterables, False, options))

    def starmap(
        self, fn: Callable[..., R], iterable: Iterable[Iterable[Any]], **options: Any
    ) -> list[R]:
        """``[fn(*x) for x in iterable]``."""
        return self._all(self._iterate("starmap()", fn, (iterable,), True, options))

    @staticmethod
    def _all(results: _Results[R]) -> list[R]:
        try:
            got = list(results)
        finally:
            results._close()
        if len(got) < results._least:
            raise RuntimeError(
                "the list that is mapped has become shorter meanwhile; map over a copy of it"
            )
        return got

    def imap(self, fn: Callable[..., R], *iterables: Iterable[Any], **options: Any) -> _Results[R]:
        """``map(fn, *iterables)``, one call per result taken."""
        return self._iterate("imap()", fn, iterables, False, options)

    def imap_unordered(
        self, fn: Callable[..., R], *iterables: Iterable[Any], **options: Any
    ) -> _Results[R]:
        """:meth:`imap`: calls end in the order of the input."""
        return self._iterate("imap_unordered()", fn, iterables, False, options)

    def map_async(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        **options: Any,
    ) -> AsyncResult[list[R]]:
        """:meth:`map`, as an AsyncResult that has ended."""
        from ._async import CallResult

        results = self._iterate("map_async()", fn, iterables, False, options)
        return CallResult(self._future(lambda: self._all(results)), callback, error_callback)

    def starmap_async(
        self,
        fn: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        *,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        **options: Any,
    ) -> AsyncResult[list[R]]:
        """:meth:`starmap`, as an AsyncResult that has ended."""
        from ._async import CallResult

        results = self._iterate("starmap_async()", fn, (iterable,), True, options)
        return CallResult(self._future(lambda: self._all(results)), callback, error_callback)

    # ------------------------------------------------------------------ ending, facts

    def close(self) -> None:
        """Take no more calls."""
        self._closed = True

    terminate = close

    def join(self) -> None:
        """Nothing is running.  Call :meth:`close` first."""
        if not self._closed:
            raise ValueError("the pool is still open: call close() or terminate() first")

    def stats(self) -> dict[str, Any]:
        """How many calls were made."""
        return {
            "kind": "serial",
            "start": "none",
            "workers": 1,
            "workers_alive": 1,
            "submitted": self._calls,
            "completed": self._calls,
            "failed": self._failed,
            "deaths": 0,
            "arena_live_bytes": 0,
            "pids": [],
        }

    def __enter__(self) -> SerialPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<trireme.Pool 1 serial worker, {'closed' if self._closed else 'open'}>"
