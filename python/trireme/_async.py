# SPDX-License-Identifier: BSD-3-Clause
"""AsyncResult: what the ``_async`` methods give, as in multiprocessing.pool."""

from __future__ import annotations

from . import _Generic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from ._progress import Progress

    R = TypeVar("R")


class AsyncResult(_Generic["R"]):
    """A call or a map that runs in the background.

    *callback* is called with the result, *error_callback* with the exception, on a thread of the
    pool's or on whichever thread waits.  So is what was given as progress=, if *progress*, whose
    bar is closed before get() returns.
    """

    def __init__(
        self,
        job: Any,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._job = job
        self._handle = job._handle()  # to be dropped with this
        self._callback = callback
        self._error_callback = error_callback
        self._progress = progress
        if callback is not None or error_callback is not None or progress is not None:
            job._watch(self._done)

    def _close_progress(self) -> None:
        if self._progress is not None and self._job._ended:
            self._progress.close()

    def _done(self) -> None:
        try:
            self._close_progress()
        finally:
            self._call_back()

    def _call_back(self) -> None:
        error = self._job._error
        if error is not None:
            if self._error_callback is not None:
                self._error_callback(error)
        elif self._callback is not None:
            self._callback(self._job._get(None))

    def get(self, timeout: float | None = None) -> R:
        """The result, or the exception raised.  TimeoutError after *timeout* seconds."""
        try:
            return self._job._get(timeout)
        finally:
            self._close_progress()

    def wait(self, timeout: float | None = None) -> None:
        """Block until it has ended, at most *timeout* seconds."""
        self._job._wait(timeout)

    def ready(self) -> bool:
        """Has it ended?"""
        return bool(self._job._wait(0))

    def successful(self) -> bool:
        """Did it end without an exception?  ValueError if it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._job._error is None


class CallResult(AsyncResult["R"]):
    """An AsyncResult of one call."""

    def __init__(
        self,
        future: Any,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._future = future
        self._callback = callback
        self._error_callback = error_callback
        if callback is not None or error_callback is not None:
            future.add_done_callback(self._ended)

    def _ended(self, future: Any) -> None:
        error = future.exception()
        if error is not None:
            if self._error_callback is not None:
                self._error_callback(error)
        elif self._callback is not None:
            self._callback(future.result())

    def get(self, timeout: float | None = None) -> R:
        """The result, or the exception raised.  TimeoutError after *timeout* seconds."""
        return self._future.result(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Block until it has ended, at most *timeout* seconds."""
        try:
            self._future.exception(timeout)
        except TimeoutError as exc:
            # The C part's leaves no frame behind this one; what a signal's handler raised does.
            if exc.__traceback__ is None or exc.__traceback__.tb_next is not None:
                raise

    def ready(self) -> bool:
        """Has it ended?"""
        return self._future.done()

    def successful(self) -> bool:
        """Did it end without an exception?  ValueError if it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._future.exception() is None
