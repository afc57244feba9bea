# SPDX-License-Identifier: BSD-3-Clause
"""share(): put an object into shared memory once, pass it by reference ever after.

A shared object is pickled into a sealed memfd with its large buffers beside the pickle, so that
arrays in it are read in place by every worker.  What travels with a task is a few numbers; a
worker opens the memory when it meets the object for the first time and remembers it until the
owner has let go.  Nothing has a name: a worker reaches the memory through the owner's descriptor.

    layout: 16 bytes, the first of which turns 1 when the owner lets go
            u64 length of the pickle, u64 number of buffers, u64 length of each
            the pickle; each buffer at a multiple of 64
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import sys

from . import _core, _pickling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HEADER = 16
_SEAL, _SHRINK, _GROW = 1, 2, 4
_MADV_POPULATE_READ = 22
# A small mapping's pages come at once, at a fifth of the price of faults.  Of a large one a task
# may want a corner only.
_POPULATE_MAX = 32 << 20

# Objects seen in this process, by (owner's pid, number): (value, mapping).
_known: dict[tuple[int, int], tuple[Any, mmap.mmap]] = {}
_count = 0


def _up64(n: int) -> int:
    return (n + 63) & ~63


def _load(memory: mmap.mmap) -> Any:
    view = memoryview(memory).toreadonly()
    length, count = struct.unpack_from("=QQ", view, _HEADER)
    at = _HEADER + 16
    sizes = struct.unpack_from(f"={count}Q", view, at)
    at += 8 * count
    data = view[at : at + length]
    at += length
    buffers = []
    for size in sizes:
        at = _up64(at)
        buffers.append(view[at : at + size])
        at += size
    return _pickling.loads(data, buffers)


def _store(obj: Any) -> tuple[int, mmap.mmap]:
    data, buffers = _pickling.dumps(obj, "shared object")
    head = struct.pack(f"={_HEADER}xQQ", len(data), len(buffers))
    head += struct.pack(f"={len(buffers)}Q", *(b.nbytes for b in buffers))
    size = len(head) + len(data)
    for b in buffers:
        size = _up64(size) + b.nbytes
    fd = os.memfd_create("trireme-share", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL | _SHRINK | _GROW)
        # Written, not copied into a mapping: no page is cleared first, none is faulted in one by
        # one, and a machine that runs short of memory answers with an error, not with SIGBUS.
        at = _write(fd, head, 0)
        at = _write(fd, data, at)
        for b in buffers:
            at = _write(fd, b, _up64(at))
        memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return fd, memory


def _write(fd: int, data: Any, at: int) -> int:
    """Write all of *data* at *at*; where it ends.  One call writes 2 GiB at most."""
    with memoryview(data).cast("B") as view:
        done = 0
        while done < view.nbytes:
            done += os.pwrite(fd, view[done:], at + done)
    return at + done


def _forget_retired() -> None:
    for key, (_, memory) in list(_known.items()):
        if key[0] != os.getpid() and memory[0]:
            del _known[key]


def _resolve(pid: int, number: int, fd: int) -> Any:
    """In whatever process a task meets the object: the object, in place."""
    found = _known.get((pid, number))
    if found is not None and not (found[1][0] and pid != os.getpid()):
        return found[0]
    _forget_retired()
    try:
        here = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise RuntimeError(
            f"a shared object of process {pid} is gone: keep the Shared alive while tasks use it"
        ) from exc
    try:
        memory = mmap.mmap(here, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(here)
    if len(memory) <= _POPULATE_MAX:
        with contextlib.suppress(OSError, ValueError):  # Linux before 5.14
            memory.madvise(_MADV_POPULATE_READ)
    value = _load(memory)
    _known[pid, number] = value, memory
    return value


class Shared:
    """A handle on an object in shared memory; made by :func:`share`.

    Passed to a task, alone or inside other arguments, it arrives as the object itself.  Arrays in
    it are read-only.  ``value`` is the object here.  The memory goes back when the handle and
    every view are gone; keep the handle while tasks that use it are in flight.
    """

    __slots__ = ("__weakref__", "_fd", "_key", "_memory", "value")

    def __init__(self, obj: Any) -> None:
        global _count
        _count += 1
        self._fd, self._memory = _store(obj)
        self._key = (os.getpid(), _count)
        self.value = _load(self._memory)
        _known[self._key] = self.value, self._memory

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory."""
        return len(self._memory)

    def __reduce__(self) -> Any:
        return _resolve, (*self._key, self._fd)

    def __del__(self) -> None:
        if getattr(self, "_key", (0, 0))[0] != os.getpid() or sys.is_finalizing():
            return
        self._memory[0] = 1
        _known.pop(self._key, None)
        os.close(self._fd)

    def __repr__(self) -> str:
        return f"<trireme.Shared {type(self.value).__name__}, {self.nbytes} bytes>"


def share(obj: Any) -> Shared:
    """Put *obj* into shared memory once; pass the result to tasks instead of *obj*.

    >>> table = tri.share(big_array)
    >>> pool.map(lambda i, t: t[i].sum(), range(100), [table] * 100)

    Raises UnpicklableError when *obj* cannot be pickled, OSError when memory is short.
    """
    return Shared(obj)


_pickling.IMMUTABLE_TYPES.add(Shared)
_core._set_shared_class(Shared)
