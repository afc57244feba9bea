# SPDX-License-Identifier: BSD-3-Clause
"""multiprocessing.heap on memory without a name.

The original's allocator, whose arenas are memfds here: no file is made in /dev/shm or /tmp, and
what a program shares does not depend on how much room there is.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from multiprocessing import heap as _original
from multiprocessing import reduction, util

from .. import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BufferWrapper"]

# fcntl has names for these only where the C library had them when Python was built.
_F_ADD_SEALS = 1033
_HUGE = 2 << 20  # a large page; see src/shm/huge.h
_SEAL_SIZE = 1 | 2 | 4  # no more seals, no shrinking, no growing


class Arena(_original.Arena):
    """A mapped memfd."""

    def __init__(self, size: int, fd: int = -1) -> None:
        if fd == -1:
            try:
                fd = os.memfd_create("trireme-heap", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            except OSError:  # refused by a sandbox: a file that is deleted at once, then
                super().__init__(size)
                return
            try:
                os.ftruncate(fd, size)
                fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_SIZE)
            except BaseException:
                os.close(fd)
                raise
        util.Finalize(self, os.close, (fd,))
        if size < _HUGE:
            super().__init__(size, fd)
            return
        self.size: int = size
        self.fd: int = fd
        self.buffer: Any = _core._map(fd, True)


def reduce_arena(arena: Any) -> Any:
    """How an arena travels to a spawned process."""
    return rebuild_arena, (arena.size, reduction.DupFd(arena.fd))


def rebuild_arena(size: int, dup: Any) -> Arena:
    """The arena that travelled."""
    return Arena(size, dup.detach())


reduction.register(Arena, reduce_arena)


class Heap(_original.Heap):
    """The original's, with our arenas."""

    def _new_arena(self, size: int) -> tuple[Arena, int, int]:
        mine: Any = self
        length = mine._roundup(max(mine._size, size), mmap.PAGESIZE)
        if length >= _HUGE:
            length = mine._roundup(length, _HUGE)
        if mine._size < mine._DOUBLE_ARENA_SIZE_UNTIL:
            mine._size *= 2
        arena = Arena(length)
        mine._arenas.append(arena)
        return arena, 0, length


class BufferWrapper(_original.BufferWrapper):
    """A block of the heap; freed with the object."""

    _heap = Heap()

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"a block of {size:n} bytes")
        if sys.maxsize <= size:
            raise OverflowError(f"a block of {size:n} bytes")
        heap: Any = BufferWrapper._heap
        block = heap.malloc(size)
        self._state = (block, size)
        util.Finalize(self, heap.free, args=(block,))


def __getattr__(name: str) -> Any:
    return getattr(_original, name)
