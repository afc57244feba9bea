# SPDX-License-Identifier: BSD-3-Clause
"""What a Pool's methods return: results of one call and of maps, and the iterators.

They stand on the native pool's futures, and translate what these end with into what the original
would raise.  Callbacks run on a thread of the pool's own, in the order in which results end.
"""

from __future__ import annotations

import builtins
import itertools
import sys
import threading
import time
from collections import deque
from importlib import import_module
from operator import itemgetter

from .. import _core, _errors, _Generic, _pickling
from .context import TimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Self, TypeVar

    R = TypeVar("R")
    _Call = tuple[int, Callable[[], object]]

_PATIENCE = 20  # half milliseconds for which callbacks wait for others to be told of
_LINGER = 1.0  # seconds for which the thread of callbacks waits for another one
_FEED_AT_ONCE = 4096  # an imap over a longer input than this is fed by a thread


# ---------------------------------------------------------------------------------------------
# Exceptions
# ---------------------------------------------------------------------------------------------


def __getattr__(name: str) -> Any:
    if name in ("MaybeEncodingError", "RemoteTraceback"):
        # Only when there is something to raise: see what pool.py says of this module.
        return getattr(import_module("multiprocessing.pool"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def translated(exc: BaseException) -> BaseException:
    """What the original would raise in place of *exc*, which one of our futures ended with."""
    cause = exc.__cause__
    if type(cause) is _errors.RemoteTraceback:
        theirs: Any = import_module("multiprocessing.pool")
        if isinstance(exc, theirs.MaybeEncodingError):
            exc.__cause__ = None
        elif isinstance(exc, _pickling.UnpicklableError):
            return theirs.MaybeEncodingError(exc, "the result")  # type: ignore[no-any-return]
        elif type(exc) is _errors.RemoteError and exc.original is None:
            wrapped = theirs.MaybeEncodingError(exc.reason, f"{exc.type_name}({exc.message})")
            wrapped.__cause__ = theirs.RemoteTraceback(str(cause))
            return wrapped  # type: ignore[no-any-return]
        else:
            exc.__cause__ = theirs.RemoteTraceback(str(cause))
    elif isinstance(exc, _pickling.UnpicklableError) and cause is not None:
        return cause  # raised by the user's own __reduce__ or __getstate__
    return exc


class Outcome(_core.FutureBase):
    """What a Pool's tasks end with.

    Nobody but us sees it.  So it is no ``concurrent.futures.Future``, whose import, with that of
    logging, takes a quarter of what a first pool takes to start.
    """

    __slots__ = ()

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        """Have *function* called with this when it has ended, or now."""
        with self._condition:
            if self._state in ("PENDING", "RUNNING"):
                self._done_callbacks.append(function)
                return
        function(self)

    def _tell(self) -> None:
        """Called once by a pump, after this has ended: see trireme's Future."""
        with self._condition:
            self._announce()
        for callback in self._done_callbacks:
            callback(self)


class Failed:
    """The outcome of what could not be sent."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def done(self) -> bool:
        """It has ended."""
        return True

    def cancel(self) -> bool:
        """It is too late for that."""
        return False

    def exception(self, timeout: float | None = None) -> BaseException:
        """Why it could not be sent."""
        return self._exc

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        """Call *function* with this."""
        function(self)


def shorten(exc: KeyboardInterrupt) -> None:
    """Take the frames of our waiting from *exc*, unless a handler of the program's raised it."""
    last = exc.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    ours = last is not None and last.tb_frame.f_globals.get("__package__") == __package__
    if ours:
        exc.__traceback__ = None


def awaited(future: Any, timeout: float | None) -> BaseException | None:
    """What a future ended with; multiprocessing's TimeoutError if it has not in that time."""
    try:
        return future.exception(timeout)  # type: ignore[no-any-return]
    except builtins.TimeoutError as exc:
        # The C part's leaves no frame behind this one; what a signal's handler raised does.
        if exc.__traceback__ is None or exc.__traceback__.tb_next is not None:
            raise
        raise TimeoutError from None


# ---------------------------------------------------------------------------------------------
# Callbacks
# ---------------------------------------------------------------------------------------------


def _nothing() -> None:
    return None


class Teller:
    """Runs a pool's callbacks one after the other on a thread of their own, as the original does.

    On the thread that takes a result they could wait for a lock which the taker holds.  The thread
    is started for the first callback, and leaves when there has been none for a while: a pool may
    be dropped without a word, and nobody else knows of the last callback.
    """

    def __init__(self) -> None:
        self.native: Callable[[], Any] = _nothing  # a weak reference to the pool's
        self._lock = threading.RLock()  # a collection under it may run a __del__ that ends a pool
        self._calls: Any = None  # a SimpleQueue of _Calls, and None for the thread to leave
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], object], nth: int) -> None:
        """Have *function* called for the *nth* of the pool's futures to end."""
        with self._lock:
            if self._calls is None:
                from _queue import SimpleQueue  # the C half; queue.py would import heapq

                self._calls = SimpleQueue()
            self._calls.put((nth, function))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="trireme-callbacks", daemon=True
                )
                try:
                    self._thread.start()
                except BaseException:
                    if self._thread.ident is None:
                        self._thread = None  # the next call may have one
                    raise

    def _next(self) -> _Call | None:
        """What to call next; None when the thread is to leave."""
        from _queue import Empty

        while True:
            try:
                return self._calls.get(timeout=_LINGER)  # type: ignore[no-any-return]
            except Empty:
                with self._lock:
                    if self._calls.empty():
                        if self._thread is threading.current_thread():
                            self._thread = None
                        return None

    def _all(self, first: _Call) -> list[_Call]:
        """That and what else there is to call by now, in the order in which the tasks ended.

        Several threads may be telling of futures, and whoever asks for a callback of one that has
        ended overtakes them.  So those that are being told are waited for, if not for ever.
        """
        calls = [first]
        for _ in range(_PATIENCE):
            native = self.native()
            untold = native is not None and native._untold
            while not self._calls.empty():
                call = self._calls.get()
                if call is None:
                    self._calls.put(None)  # to leave is the last that anybody asks for
                    untold = 0
                    break
                calls.append(call)
            if not untold:
                break
            time.sleep(0.0005)  # no signal: who tells takes microseconds, if it is not stopped
        native = None
        calls.sort(key=itemgetter(0))
        return calls

    def _run(self) -> None:
        while (first := self._next()) is not None:
            for _, function in self._all(first):
                try:
                    function()
                except BaseException:
                    args = threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
                    threading.excepthook(args)
            first = function = None  # type: ignore[assignment]

    def end(self, wait: bool) -> None:
        """Let the thread go when it has called what there is; *wait* for that."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._calls.put(None)
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()


# ---------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------


class ApplyResult(_Generic["R"]):
    """What ``apply_async`` returns."""

    def __init__(
        self,
        future: Any,
        teller: Teller,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._future = future
        self._error: BaseException | None = None
        self._event: threading.Event | None = None
        if callback is not None or error_callback is not None:
            # It is ready when the callback has returned, as in the original.
            self._callback = callback
            self._error_callback = error_callback
            self._event = threading.Event()
            future.add_done_callback(lambda _: teller.call(self._tell, self._nth()))

    def _nth(self) -> int:
        return getattr(self._future, "_nth", 0)

    def _tell(self) -> None:
        try:
            error = self._failure(None)
            if error is None:
                if self._callback is not None:
                    self._callback(self._value())
            elif self._error_callback is not None:
                self._error_callback(error)
        finally:
            self._event.set()  # type: ignore[union-attr]

    def _value(self) -> Any:
        return self._future.result()

    def _failure(self, timeout: float | None) -> BaseException | None:
        """The exception, the same each time; None for a value."""
        if self._error is None:
            error = awaited(self._future, timeout)
            if error is not None:
                self._error = translated(error)
        return self._error

    def _done(self) -> bool:
        return self._future.done()  # type: ignore[no-any-return]

    def ready(self) -> bool:
        """Has it ended?"""
        return self._done() if self._event is None else self._event.is_set()

    def successful(self) -> bool:
        """Did it end without an exception?  ValueError if it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._failure(None) is None

    def wait(self, timeout: float | None = None) -> None:
        """Block until it has ended, at most *timeout* seconds."""
        if self._event is not None:
            self._event.wait(timeout)
            return
        try:
            self._failure(timeout)
        except TimeoutError:
            pass

    def get(self, timeout: float | None = None) -> R:
        """The value, or the exception raised.  TimeoutError after *timeout* seconds."""
        if self._event is not None and not self._event.wait(timeout):
            raise TimeoutError
        try:
            error = self._failure(timeout)
        except KeyboardInterrupt as exc:
            shorten(exc)
            raise
        if error is None:
            return self._value()  # type: ignore[no-any-return]
        raise error


AsyncResult = ApplyResult


class MapResult(ApplyResult["list[R]"]):
    """What ``map_async`` returns.  It has ended when each of its chunks has."""

    def __init__(
        self,
        futures: list[Any],
        teller: Teller,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._futures = futures
        self._seen = 0  # so many of the last are known to have ended
        self._values: list[Any] | None = None
        self._left = itertools.count(len(futures) - 1, -1)
        # Without a chunk there is no callback, as in the original.
        if not futures:
            callback = error_callback = None
        super().__init__(self, teller, callback, error_callback)

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        """Have *function* called when every chunk has ended."""

        def one(_: object) -> None:
            if next(self._left) == 0:
                function(self)

        for future in self._futures:
            future.add_done_callback(one)

    def _nth(self) -> int:
        return max(getattr(future, "_nth", 0) for future in self._futures)

    def _settle(self, futures: list[Any], until: float | None) -> None:
        # From the last: while we sleep for that, most of the others end.
        while (seen := self._seen) < len(futures):
            left = None if until is None else max(0.0, until - time.monotonic())
            awaited(futures[-1 - seen], left)
            self._seen = seen + 1

    def _failure(self, timeout: float | None) -> BaseException | None:
        # First, and emptied last: another thread may be here, and of two the first one says.
        futures = self._futures
        if self._values is None and self._error is None:
            self._settle(futures, None if timeout is None else time.monotonic() + timeout)
            values: list[Any] = []
            for future in futures:
                error = future.exception()
                if error is not None:
                    self._error = self._error or translated(error)
                    break
                values += future.result()
            else:
                self._values = values if self._values is None else self._values
            self._futures = []
        return self._error

    def _done(self) -> bool:
        if self._values is None and self._error is None:
            try:
                self._settle(self._futures, time.monotonic())
            except TimeoutError:
                return False
        return True

    def _value(self) -> Any:
        return self._values

    def _cancel(self) -> None:
        for future in self._futures:
            future.cancel()


class IMapIterator(_Generic["R"]):
    """What ``imap`` returns: results in the order of the input.

    The input is read at once, or by a thread of its own, and not as results are taken: the work
    goes on while nobody looks, after close() too.
    """

    def __init__(
        self, native: Any, submit: Any, func: Callable[..., R], iterable: Iterable[Any]
    ) -> None:
        self._native = native
        self._submit = submit
        self._func: Any = func
        self._turn = threading.Lock()
        self._futures: deque[Any] = deque()  # not yet given out
        self._ended: deque[Any] = deque()  # found to have ended, unless in order
        self._more = threading.Condition(threading.Lock())
        self._length: int | None = None  # of the input, when it has been read
        self._feeder: threading.Thread | None = None
        sized: Any = iterable
        if type(iterable) in (list, tuple, range) and len(sized) <= _FEED_AT_ONCE:
            self._feed(iterable)
        else:
            self._feeder = threading.Thread(
                target=self._feed, args=(iterable,), name="trireme-imap", daemon=True
            )
            self._feeder.start()

    def _feed(self, iterable: Iterable[Any]) -> None:
        add, submit, func, native = self._add, self._submit, self._func, self._native
        sent = 0
        try:
            for item in iterable:
                try:
                    add(submit(func, item))
                except Exception as exc:
                    if native._is_fork:
                        raise
                    add(Failed(exc))
                    if native._refused:
                        return
                finally:
                    sent += 1
        except Exception as exc:
            # The input's own exception comes after what it gave before.
            sent += 1
            self._add_last(Failed(exc))
        finally:
            item = None
            self._func = None
            self._over(sent)

    def _add(self, future: Any) -> None:
        self._futures.append(future)
        if self._feeder is not None:
            with self._more:
                self._more.notify()

    def _add_last(self, failed: Failed) -> None:
        self._add(failed)

    def _over(self, length: int) -> None:
        with self._more:
            self._length = length
            self._more.notify_all()

    def _take(self, until: float | None) -> Any:
        futures = self._futures
        if not futures:
            with self._more:
                while not futures:
                    if self._length is not None:
                        raise StopIteration
                    left = None if until is None else until - time.monotonic()
                    if not self._more.wait(left) and not futures and self._length is None:
                        raise TimeoutError
        future = futures[0]
        awaited(future, None if until is None else max(0.0, until - time.monotonic()))
        futures.popleft()
        return future

    def next(self, timeout: float | None = None) -> R:
        """The next result, or its exception raised.  TimeoutError after *timeout* seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        if not self._turn.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise TimeoutError
        try:
            future = self._take(until)
        except KeyboardInterrupt as exc:
            shorten(exc)
            raise
        finally:
            self._turn.release()
        error = future.exception()
        if error is None:
            return future.result()  # type: ignore[no-any-return]
        error = translated(error)
        if isinstance(error, StopIteration):
            # It would end the caller's loop, and the results behind it would be lost unseen.
            raise RuntimeError("a task raised StopIteration") from error
        raise error

    def __next__(self) -> R:
        return self.next()

    def __iter__(self) -> Self:
        return self


class IMapUnorderedIterator(IMapIterator["R"]):
    """What ``imap_unordered`` returns: results as they come.

    Who asks for a result looks for one that has ended.  Tasks start in the order they were sent,
    so those that have ended are in front of, or between, as many others as there are workers.
    """

    _last: Failed | None = None  # the input's exception: given out when nothing else is left

    def _add_last(self, failed: Failed) -> None:
        self._last = failed

    def _take(self, until: float | None) -> Any:
        ended, futures = self._ended, self._futures
        native = self._native
        few = native.workers + 1
        while not ended:
            self._look(few)
            if ended:
                break
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            if not futures:
                with self._more:
                    if not futures:
                        if self._last is not None:
                            ended.append(self._last)
                            self._last = None
                            break
                        if self._length is not None:
                            raise StopIteration
                        self._more.wait(left)
            # Not for ever: another thread may take what ended in this moment.
            elif native._step(0.05 if left is None else min(left, 0.05)):
                self._look(few)
                if not ended:
                    self._look(len(futures))  # a death has changed the order
        return ended.popleft()

    def _look(self, most: int) -> None:
        futures = self._futures
        running: list[Any] = []
        while futures and len(running) < most:
            future = futures.popleft()
            if future.done():
                self._ended.append(future)
            else:
                running.append(future)
        futures.extendleft(reversed(running))
