# SPDX-License-Identifier: BSD-3-Clause
"""What a worker process of an executor does first.  Imports little: every worker imports it."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# For executors that fork, by number: what their workers inherit unpickled.
inherited: dict[int, Any] = {}


def begin(
    info: dict[str, Any],
    breaks: bool,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> None:
    """Become a process of multiprocessing's, and call the user's initializer.

    If that fails, it is logged here and breaks the pool.  *breaks*: see :func:`_like_original`.
    *info*: of multiprocessing._lend.describe(); _script.prologue() has become that.
    """
    _live(info, breaks, initializer, initargs)


def begin_inherited(breaks: bool, number: int) -> None:
    """The same for a worker that was forked from the owner, and so has the initializer."""
    info, initializer, initargs = inherited[number]
    from ..multiprocessing import _script

    _script.prologue(info)
    _live(info, breaks, initializer, initargs)


def _live(info: dict[str, Any], breaks: bool, *initializer: Any) -> None:
    """Go on as a process of multiprocessing's, up to the first task and through all of them."""
    from functools import partial

    from ..multiprocessing import _worker

    _worker.keep(info.get("modules", ()))
    _worker.live(partial(_begun, breaks, *initializer))


def _begun(
    breaks: bool, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """The last thing before the first task."""
    _like_original(breaks)
    if initializer is not None:
        _initialize(initializer, initargs)


def _like_original(breaks: bool) -> None:
    """Have what tasks raise arrive as it is, SystemExit, too; arrays that they get are writable.

    With *breaks*, a call that cannot be unpickled ends this process and so breaks the executor, as
    the original's contract has it; otherwise that is the exception of this call alone.
    """
    from .. import _core, _errors, _pickling

    _errors._naked = os.getpid()
    _core._own_arguments()
    _pickling.keeps_modules = True
    if not breaks:
        return
    loads = _pickling._loads
    base = _outside(sys._getframe(1))

    def loads_or_leave(data: Any, buffers: Any = ()) -> Any:
        try:
            return loads(data, buffers=buffers)
        except BaseException as exc:
            # A task may unpickle what it likes: only the worker's own reading ends the worker.
            if _outside(sys._getframe(1)) is base:
                _leave(exc)
            raise

    vars(_pickling)["_loads"] = loads_or_leave


def _outside(frame: Any) -> Any:
    """The innermost frame that is not of this package; the worker's loop itself is in C."""
    while frame is not None:
        here = frame.f_globals
        if (
            here.get("__package__") not in ("trireme", __package__)
            and here.get("__name__") != "trireme.multiprocessing._worker"
        ):
            break
        frame = frame.f_back
    return frame


def _leave(exc: BaseException) -> None:
    """End this process with a word on stderr, as an exception ends one of the original's."""
    from .. import _worker

    code = 1
    if isinstance(exc, SystemExit):
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    else:
        import traceback

        try:
            traceback.print_exception(exc)
        except Exception:
            pass  # there is no stderr any more
    try:
        _worker.flush()
    finally:
        os._exit(code & 0xFF)


def _initialize(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    try:
        initializer(*initargs)
    except BaseException as exc:
        import logging

        from .. import _errors

        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        # This process leaves without much ado, and the record may be in a queue's thread.
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util._exit_function()
        raise _errors.broken_process_pool()(
            "A process in the process pool was terminated abruptly while the future was running "
            f"or pending: its initializer raised {type(exc).__name__}: {exc}"
        ) from None


class OwnersHandle:
    """A descriptor of the owner's, for a worker that is no child of it and may start any time."""

    def __init__(self, fd: int) -> None:
        import fcntl

        self._pid = os.getpid()
        self._fd = fd
        self._flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK)

    def detach(self) -> int:
        """Worker: the descriptor, opened."""
        return os.open(f"/proc/{self._pid}/fd/{self._fd}", self._flags | os.O_CLOEXEC)
