# SPDX-License-Identifier: BSD-3-Clause
"""Future: what submit() gives.

The C part (``_core.FutureBase``) waits, decodes and keeps the state; this class makes it a
``concurrent.futures.Future``, so that everything written for those accepts it.
"""

from __future__ import annotations

from concurrent.futures import Future as _StdFuture
from concurrent.futures import InvalidStateError
from concurrent.futures._base import LOGGER

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, TypeVar

    R = TypeVar("R")

_NOT_BY_HAND = "a pool's future is completed by the pool only"


class Future(_core.FutureBase, _StdFuture["R"]):
    """The result of one call, now or later.

    A ``concurrent.futures.Future`` in every respect, and awaitable.  ``result(timeout=None)`` and
    ``exception(timeout=None)`` take results off the pool themselves; callbacks, ``wait()``,
    ``as_completed()`` and ``await`` need somebody who waits, so the pool then runs one thread
    until those futures have ended.
    """

    __slots__ = ()

    def __init__(self) -> None:
        raise TypeError("futures come from Pool.submit()")

    def __repr__(self) -> str:
        state = self._state
        what = ""
        if state == "FINISHED":
            try:
                raised = self._exception
            except RuntimeError:
                pass  # asked for by what unpickles the result
            else:
                what = f" returned {type(self._result).__name__}"
                if raised is not None:
                    what = f" raised {type(raised).__name__}"
        return f"<{type(self).__name__} at {id(self):#x} state={state.lower()}{what}>"

    if TYPE_CHECKING:

        def result(self, timeout: float | None = None) -> R:
            """The result, or the exception raised.  TimeoutError after *timeout* seconds."""

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def set_running_or_notify_cancel(self) -> bool:
        """Refused: workers decide."""
        raise RuntimeError(_NOT_BY_HAND)

    def _refuse(self) -> None:
        if self.done():
            raise InvalidStateError(f"{self._state}: {self!r}")
        raise RuntimeError(_NOT_BY_HAND)

    def set_result(self, result: Any) -> None:
        """Refused: workers decide.  InvalidStateError when they have."""
        self._refuse()

    def set_exception(self, exception: BaseException | None) -> None:
        """Refused: workers decide.  InvalidStateError when they have."""
        self._refuse()

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """What asyncio (3.14) asks for in one step: done, cancelled, result, exception."""
        if not self.done():
            return False, False, None, None
        if self.cancelled():
            return True, True, None, None
        exception = self._exception
        return True, False, None if exception is not None else self._result, exception

    def _tell(self) -> None:
        """Called once by a pump, after this future has ended: tell whoever waits for it."""
        with self._condition:
            self._announce()
            for waiter in self._waiters:
                if self.cancelled():
                    waiter.add_cancelled(self)
                elif self.exception() is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()
        stopped: BaseException | None = None
        for callback in self._done_callbacks:
            try:
                callback(self)
            except Exception:
                LOGGER.exception("exception calling callback for %r", self)
            except BaseException as exc:
                stopped = stopped or exc  # Ctrl-C is no reason to forget the others
        if stopped is not None:
            raise stopped


_core._set_future_class(Future)
