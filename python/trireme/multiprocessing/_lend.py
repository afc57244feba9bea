# SPDX-License-Identifier: BSD-3-Clause
"""The owner's side of what _worker.py begins with: the setup of a pool's workers, packed.

Locks, queues and shared memory refuse to be pickled unless a process is being spawned, and then
ask the spawning popen to hand their descriptors over.  :class:`Lender` is such a popen: it keeps a
copy of each for as long as the pool may start workers.
"""

from __future__ import annotations

import copyreg
import fcntl
import os
import stat
import threading
import types
from contextlib import contextmanager
from functools import partial
from multiprocessing import context, reduction

from . import _worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# ForkingPickler's reducers for these are older than Python's own.
_PYTHONS_OWN = (types.MethodType, type(list.append), type(int.__add__), partial)

_packing = threading.RLock()  # one thread at a time changes the table of reducers


def _after_fork() -> None:
    global _packing
    _packing = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


class Lender:
    """Descriptors that workers may open.  close() ends that."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self.register = os.memfd_create("trireme-register", os.MFD_CLOEXEC)
        self._fds = [self.register]

    def duplicate_for_child(self, fd: int) -> int:
        """What the original's reducers call for each descriptor; DupFd() gets what it returns."""
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self._fds.append(copy)
        return copy

    def DupFd(self, fd: int) -> _worker.Lent:
        """How a descriptor travels."""
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise TypeError(
                "a socket, or a Pipe() of two directions, cannot be given to a pool's workers by "
                "initargs with this start method; use Pipe(duplex=False), or 'fork'"
            )
        return _worker.Lent(self._owner, fd, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)

    def close(self) -> None:
        """Forget them.  In a fork of the owner they are copies, and closed all the same."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    @contextmanager
    def spawning(self) -> Iterator[None]:
        """While this lasts, this thread can pickle what only a spawned process may get."""
        pickler: Any = reduction.ForkingPickler
        mine = {
            kind: reducer
            for kind, reducer in pickler._extra_reducers.items()
            if kind not in _PYTHONS_OWN and kind not in copyreg.dispatch_table
        }
        before: Any = context.get_spawning_popen()
        with _packing:
            copyreg.dispatch_table.update(mine)
            context.set_spawning_popen(self)  # type: ignore[arg-type]
            try:
                yield
            finally:
                context.set_spawning_popen(before)
                for kind in mine:
                    copyreg.dispatch_table.pop(kind, None)
