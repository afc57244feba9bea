# SPDX-License-Identifier: BSD-3-Clause
"""multiprocessing.sharedctypes on our heap, with our locks.

The wrappers are subclasses of the original's; what is made anew here is where their memory comes
from, which lock they get, and that they come out of a pickle through this module.
"""

from __future__ import annotations

import ctypes
import weakref
from multiprocessing import sharedctypes as _original

from .. import _core
from . import context, heap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

_theirs: Any = _original


class SynchronizedBase(_theirs.SynchronizedBase):  # type: ignore[misc]
    """A shared object and its lock."""

    def __reduce__(self) -> Any:
        context.assert_spawning(self)
        return synchronized, (self._obj, self._lock)


class Synchronized(SynchronizedBase, _theirs.Synchronized):  # type: ignore[misc]
    """A shared number or character."""


class SynchronizedArray(SynchronizedBase, _theirs.SynchronizedArray):  # type: ignore[misc]
    """A shared array."""


class SynchronizedString(SynchronizedArray, _theirs.SynchronizedString):  # type: ignore[misc]
    """A shared array of c_char."""


# The original's wrapper classes and ours; one for each structure is added when it is first met.
_ours: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary(
    {
        _theirs.Synchronized: Synchronized,
        _theirs.SynchronizedArray: SynchronizedArray,
        _theirs.SynchronizedString: SynchronizedString,
    }
)


def _kind(typecode_or_type: Any) -> Any:
    kind = _theirs.typecode_to_type.get(typecode_or_type, typecode_or_type)
    try:
        ctypes.sizeof(kind)
    except TypeError as error:
        codes = " ".join(sorted(_theirs.typecode_to_type))
        raise TypeError(
            f"bad typecode {kind!r}: it is neither a ctypes type nor one of {codes}"
        ) from error
    return kind


def _new_value(kind: Any) -> Any:
    size = ctypes.sizeof(kind)
    return _theirs.rebuild_ctype(kind, heap.BufferWrapper(size), None)


def _populate(made: Any) -> None:
    """Have the memory of a large array before it is written, in large pages if there are any."""
    if ctypes.sizeof(made) >= 1 << 20:
        _core._populate(made)


def _zeros(kind: Any) -> Any:
    made = _new_value(kind)
    _populate(made)
    ctypes.memset(ctypes.addressof(made), 0, ctypes.sizeof(made))
    return made


def RawValue(typecode_or_type: Any, *args: Any) -> Any:
    """Returns a ctypes object in shared memory"""
    made = _zeros(_kind(typecode_or_type))
    made.__init__(*args)
    return made


def RawArray(typecode_or_type: Any, size_or_initializer: Any) -> Any:
    """Returns a ctypes array in shared memory"""
    kind = _kind(typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _zeros(kind * size_or_initializer)
    made = _new_value(kind * len(size_or_initializer))
    _populate(made)
    made.__init__(*size_or_initializer)
    return made


def _locked(made: Any, lock: Any, ctx: Any) -> Any:
    if lock is False:
        return made
    if lock is True or lock is None:
        lock = (ctx or context._default_context.get_context()).RLock()
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} is no lock: it has no method acquire")
    return synchronized(made, lock, ctx)


def Value(typecode_or_type: Any, *args: Any, lock: Any = True, ctx: Any = None) -> Any:
    """Returns a ctypes object in shared memory, with a lock around it unless *lock* is False"""
    return _locked(RawValue(typecode_or_type, *args), lock, ctx)


def Array(
    typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True, ctx: Any = None
) -> Any:
    """Returns a ctypes array in shared memory, with a lock around it unless *lock* is False"""
    return _locked(RawArray(typecode_or_type, size_or_initializer), lock, ctx)


def copy(obj: Any) -> Any:
    """Returns a copy of *obj* in shared memory"""
    made = _new_value(type(obj))
    ctypes.pointer(made)[0] = obj
    return made


def synchronized(obj: Any, lock: Any = None, ctx: Any = None) -> Any:
    """Returns *obj* with a lock around each access"""
    ctx = ctx or context._default_context.get_context()
    lock = lock or ctx.RLock()
    theirs = type(_theirs.synchronized(obj, lock, ctx))  # it knows which kind goes with obj
    if theirs not in _ours:
        _ours[theirs] = type(theirs.__name__, (SynchronizedBase, theirs), {})
    return _ours[theirs](obj, lock, ctx)


def __getattr__(name: str) -> Any:
    return getattr(_original, name)
