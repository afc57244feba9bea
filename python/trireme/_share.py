# SPDX-License-Identifier: BSD-3-Clause
"""share(): put an object into shared memory once, pass it by reference ever after.

A shared object is pickled into a sealed memfd with its large buffers beside the pickle, so that
arrays in it are read in place by every worker.  NumPy gives a buffer for plain, contiguous arrays
of common types only; of the others (_as_buffer) a contiguous copy is stored, and the array that a
task gets lies in that.  Where the object can travel only by value, that other pickler is left to
do as it does, and such arrays in it are copies.

What travels with a task is a few numbers; a
worker opens the memory when it meets the object for the first time and remembers it until the
owner has let go.  Nothing has a name: a worker reaches the memory through the owner's descriptor.

A task gets the object where the handle is an argument, or lies in a tuple, list or dict that is
one.  That is not the unpickling's work, which could not tell an argument from an attribute, but of
whoever calls the function (_core/run.c, and reveal() here): so the rule holds where nothing is
pickled, too.

    layout: 8 bytes, the first of which turns 1 when the owner lets go; u64 number of the object
            u64 length of the pickle, u64 number of buffers, u64 length of each
            the pickle; each buffer at a multiple of 64
"""

from __future__ import annotations

import _pickle as pickle  # the C half, as in _pickling
import errno
import fcntl
import io
import itertools
import operator
import os
import struct
import sys
import weakref

from . import _core, _Generic, _pickling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, ClassVar, TypeVar

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)

_HEADER = 16
_SEAL, _SHRINK, _GROW = 1, 2, 4
_HUGE = 2 << 20  # a large page; see src/shm/huge.h

# By (owner's pid, number): handles made here, or in a process that this one is a fork of, and those
# that came from elsewhere.
_made: weakref.WeakValueDictionary[tuple[int, int], Shared[Any]] = weakref.WeakValueDictionary()
_known: dict[tuple[int, int], Shared[Any]] = {}
_count = itertools.count(1)


def _up64(n: int) -> int:
    return (n + 63) & ~63


def _load(memory: memoryview) -> Any:
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


# ---------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------


def _array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any, kind: Any = None) -> Any:
    """An array that lies in *buffer*, and is read-only if that is; *kind*: a subclass."""
    import numpy as np

    array = np.ndarray(shape, dtype, buffer=buffer, order=order)
    return array if kind is None else array.view(kind)


def _masked(data: Any, mask: Any, fill_value: Any, hard: bool, attributes: Any) -> Any:
    """A masked array of these two arrays."""
    import numpy as np

    array = np.ma.MaskedArray(data, mask, copy=False, fill_value=fill_value, hard_mask=hard)
    vars(array)["_optinfo"] = dict(attributes)
    return array


def _as_buffer(array: Any, np: Any) -> Any:
    """How to pickle *array* so that it is read in place; NotImplemented: NumPy knows best."""
    kind = type(array)
    if kind is np.ma.MaskedArray:
        if array.dtype.hasobject:
            return NotImplemented
        mask = array._mask if array._mask is np.ma.nomask else np.asarray(array._mask)
        parts = np.asarray(array._data), mask, array._fill_value
        return _masked, (*parts, array._hardmask, array._optinfo)
    kinds = (np.ndarray, np.memmap, np.matrix, np.recarray)
    if kind not in kinds or array.dtype.hasobject or not array.dtype.itemsize:
        return NotImplemented
    order = "F" if array.flags.fnc else "C"
    bare = array.view(np.ndarray)
    # The bytes, for a dtype that NumPy makes no buffer of, such as datetime64.
    raw = np.ascontiguousarray(bare.T if order == "F" else bare).reshape(-1).view(np.uint8)
    where = pickle.PickleBuffer(raw), array.dtype, array.shape, order
    return _array, where if kind is np.ndarray else (*where, kind)


class _Pickler(pickle.Pickler):
    """The C pickler, which asks about every object that it has no code of its own for."""

    def reducer_override(self, obj: Any) -> Any:
        """See _as_buffer()."""
        np = sys.modules.get("numpy")
        if np is None or not isinstance(obj, getattr(np, "ndarray", ())):
            return NotImplemented
        return _as_buffer(obj, np)


def _dumps(obj: Any) -> tuple[bytes, list[memoryview]]:
    """As _pickling.dumps(), with every array such that it is read-only at the other end."""
    buffers: list[memoryview] = []

    def callback(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _pickling.BUFFER_MIN and not _pickling._is_array(raw.obj):
            return True
        buffers.append(raw)
        return False

    stream = io.BytesIO()
    try:
        _Pickler(stream, _pickling.PROTOCOL, buffer_callback=callback).dump(obj)
        data = stream.getvalue()
        if not _pickling._names_strange_module(data) and not _pickling._may_hold_connection(data):
            return data, buffers
    except Exception:
        pass
    return _pickling.dumps(obj, "shared object")


# ---------------------------------------------------------------------------------------------
# The memory
# ---------------------------------------------------------------------------------------------


def _store(obj: Any, number: int) -> tuple[int, memoryview]:
    data, buffers = _dumps(obj)
    head = struct.pack("=8xQQQ", number, len(data), len(buffers))
    head += struct.pack(f"={len(buffers)}Q", *(b.nbytes for b in buffers))
    size = len(head) + len(data)
    for b in buffers:
        size = _up64(size) + b.nbytes
    if size % _HUGE >= _HUGE // 2:
        size += -size % _HUGE  # the rest in a large page, too
    fd = os.memfd_create("trireme-share", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o600)
        _set_size(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL | _SHRINK | _GROW)
        memory = _core._map(fd, True)
        at = _core._fill(fd, memory, 0, head)
        at = _core._fill(fd, memory, at, data)
        for b in buffers:
            at = _core._fill(fd, memory, _up64(at), b)
    except BaseException:
        os.close(fd)
        raise
    return fd, memory


def _set_size(fd: int, size: int) -> None:
    try:
        os.ftruncate(fd, size)
    except OSError as exc:
        if exc.errno != errno.EFBIG:
            raise
        raise OSError(
            errno.EFBIG,
            f"to share {size} bytes takes a file of that size in memory, and the limit of file "
            "sizes (ulimit -f, RLIMIT_FSIZE) is less: raise it",
        ) from None


def _forget_retired() -> None:
    for key, handle in list(_known.items()):
        if handle._memory[0]:
            _known.pop(key, None)


def _open(pid: int, number: int, fd: int) -> memoryview:
    """The memory behind another process's descriptor.  Raises if it is not that object's now."""
    path = f"/proc/{pid}/fd/{fd}"
    try:
        if not os.readlink(path).startswith("/memfd:trireme-share"):
            raise FileNotFoundError(path)
        here = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = _core._map(here, False)
        finally:
            os.close(here)
        if memory[0] or struct.unpack_from("=Q", memory, 8) != (number,):
            raise FileNotFoundError(path)
    except (OSError, ValueError) as exc:
        raise RuntimeError(
            f"a shared object of process {pid} is gone: keep the Shared alive while tasks use it"
        ) from exc
    return memory


def _resolve(pid: int, number: int, fd: int) -> Shared[Any]:
    """In whatever process a handle is unpickled: the handle there."""
    key = pid, number
    handle = _made.get(key) or _known.get(key)
    if handle is not None and (pid == os.getpid() or not handle._memory[0]):
        return handle
    _forget_retired()
    memory = _open(pid, number, fd)
    handle = Shared.__new__(Shared)
    handle._set(key, fd, memory)
    _known[key] = handle
    return handle


class Shared(_Generic["T_co"]):
    """A handle on an object in shared memory; made by :func:`share`.

    Where the handle is an argument of a task, or lies in a tuple, list or dict (of exactly these
    types, in each other or not) that is one, the task gets the object itself, and a copy of that
    container.  Anywhere else, as an attribute of an object or captured by a function, it stays a
    handle, and ``value`` is the object.  That is so in pools of every kind.

    Arrays in the object are read-only, whatever their layout and type: those of NumPy's own array
    classes that hold no Python objects.  The memory goes back when the handle and every view are
    gone; keep the handle while tasks that use it are in flight.
    """

    __slots__ = ("__weakref__", "_fd", "_key", "_memory", "value")

    # Of those in this process, by id.  While there is none, nobody looks for one in arguments.
    _live: ClassVar[dict[int, None]] = {}

    def __init__(self, obj: T_co) -> None:
        key = os.getpid(), next(_count)
        self._set(key, *_store(obj, key[1]))
        _made[key] = self

    def _set(self, key: tuple[int, int], fd: int, memory: memoryview) -> None:
        self._fd = fd  # in the process that made it
        self._memory = memory
        self._key = key
        self._live[id(self)] = None
        self.value: T_co = _load(memory)

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory."""
        return len(self._memory)

    def __reduce__(self) -> Any:
        return _resolve, (*self._key, self._fd)

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        self._live.pop(id(self), None)
        if getattr(self, "_key", (0, 0))[0] != os.getpid():
            return
        self._memory[0] = 1
        os.close(self._fd)

    def __repr__(self) -> str:
        return f"<trireme.Shared {type(self.value).__name__}, {self.nbytes} bytes>"


# How deep containers may lie in each other; the same number is in _core/run.c.
_DEPTH_MAX = 64


def reveal(value: Any) -> Any:
    """What a task gets for *value*, an argument or a container of them; see :class:`Shared`.

    For calls that C does not make: of a serial pool, and of initializers.
    """
    return _search(value, {}, 0) if Shared._live else value


def _search(value: Any, seen: dict[int, Any], depth: int) -> Any:
    kind = type(value)
    if kind is Shared:
        return value.value
    if kind not in (tuple, list, dict) or depth >= _DEPTH_MAX:
        return value
    key = id(value)
    if key in seen:
        return seen[key]
    seen[key] = value  # against cycles
    old = list(value.values() if kind is dict else value)
    new = [_search(v, seen, depth + 1) for v in old]
    if any(map(operator.is_not, old, new)):
        value = seen[key] = dict(zip(value, new, strict=True)) if kind is dict else kind(new)
    return value


def reveal_function(fn: Any) -> Any:
    """What a functools.partial has already are arguments too; anything else is left alone."""
    partial = getattr(sys.modules.get("functools"), "partial", None)
    if not Shared._live or type(fn) is not partial:
        return fn
    return partial(fn.func, *reveal(fn.args), **reveal(fn.keywords))


def call(fn: Callable[..., Any], args: Iterable[Any]) -> Any:
    """``fn(*args)``, with objects in the place of their handles."""
    return reveal_function(fn)(*reveal(tuple(args)))


def share(obj: T) -> Shared[T]:
    """Put *obj* into shared memory once; pass the result to tasks instead of *obj*.

    >>> table = tri.share(big_array)
    >>> pool.map(lambda i, t: t[i].sum(), range(100), [table] * 100)

    What it may lie in and still arrive as the object is told at :class:`Shared`.

    Raises UnpicklableError when *obj* cannot be pickled, OSError when memory is short.
    """
    return Shared(obj)


_pickling.IMMUTABLE_TYPES.add(Shared)
_core._set_shared_class(Shared)
