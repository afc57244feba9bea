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
    authkey: bytes, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """The owner's key, with which its managers know their own, and the user's initializer.

    If that fails, it is logged here and breaks the pool.
    """
    from multiprocessing import process

    process.current_process().authkey = authkey
    if initializer is not None:
        _initialize(initializer, initargs)


def begin_inherited(initializer: Callable[..., object] | None, number: int) -> None:
    """The same for a worker that was forked from the owner; *initializer* if it could travel."""
    here, initargs = inherited[number]
    _initialize(initializer or here, initargs)


def _initialize(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    try:
        initializer(*initargs)
    except BaseException as exc:
        import logging
        from concurrent.futures.process import BrokenProcessPool

        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        # This process leaves without much ado, and the record may be in a queue's thread.
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util._exit_function()
        raise BrokenProcessPool(
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
