# SPDX-License-Identifier: BSD-3-Clause
"""What multiprocessing's own pickler knows, for the calls and results of pools and executors.

The originals' tasks go through queues, whose pickler (reduction.ForkingPickler) has a table of its
own: connections and sockets travel as descriptors, and libraries enter what they have in shared
memory, as PyTorch does its tensors.  The runtime's pickler is C's, with the table that all share
(copyreg).  To it a Connection is a plain object, whose state is the number of a descriptor: it
would arrive as a connection to whatever has that number in the other process, and close that.

:func:`follow` gives the runtime's pickler both tables, in this process and for good.  The owner
calls it when it makes a pool, a worker when it begins.  One table is kept, made of both, and made
anew when one of them has changed: that is looked up for each object, and costs 0.6 us a pickle.

A function that goes by value takes its globals along.  What travels to a process that is being
started, and only there, stays behind (:func:`_stays`): with the original, such a global is what
the initializer has set in the worker, or what a fork has inherited, and so it is here.  Descriptors
stay as well, because a function is sent to each worker and they could be fetched once.

A descriptor waits, duplicated, in the sender's resource_sharer until its receiver fetches it.  When
a pickle is thrown away, because the same object is to go by value instead, nobody would fetch it,
and the other end of a pipe would never see the end of file: :func:`_withdraw` closes it.
"""

from __future__ import annotations

import _pickle as pickle  # the C half; pickle.py would import more
import copyreg
import threading
import types
from collections import ChainMap
from functools import partial
from io import BytesIO
from multiprocessing import reduction

from .. import _byvalue, _pickling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# ForkingPickler's reducers for these are older than Python's own.
PYTHONS_OWN = (types.MethodType, type(list.append), type(int.__add__), partial)

# Modules whose objects refuse to be pickled unless a process is being started, and of descriptors.
_SHARED = frozenset(
    f"{package}.{name}"
    for package in ("multiprocessing", "trireme.multiprocessing", "trireme.multiprocess")
    for name in ("synchronize", "queues", "sharedctypes", "connection")
) | {"socket"}

_Pickler: Any = reduction.ForkingPickler


class _Waiting(threading.local):
    """Of this thread: the keys of descriptors that its last pickle has left to be fetched."""

    def __init__(self) -> None:
        self.keys: list[Any] = []


_waiting = _Waiting()

# The tables as they were when _both was made of them.  Replaced as one, so threads need no lock.
_made: tuple[dict[type, Any], dict[type, Any], dict[type, Any]] = ({}, {}, {})


def known() -> dict[type, Any]:
    """What ForkingPickler knows beyond the table that all picklers share."""
    return {
        kind: way
        for kind, way in list(_Pickler._extra_reducers.items())
        if kind not in PYTHONS_OWN and kind not in copyreg.dispatch_table
    }


def _noted(way: Callable[[Any], Any], obj: Any) -> Any:
    """What *way* makes of *obj*; the descriptors in it are noted."""
    reduced = way(obj)
    for part in reduced[1]:
        name = getattr(part, "_id", None)  # of resource_sharer.DupFd: an address and a key
        if type(name) is tuple:
            _waiting.keys.append(name[-1])
    return reduced


def _withdraw() -> None:
    """Close what the last pickle of this thread has left to be fetched."""
    keys, _waiting.keys = _waiting.keys, []
    if keys:
        from multiprocessing import resource_sharer

        sharer: Any = resource_sharer._resource_sharer  # type: ignore[attr-defined]
        for key in keys:
            _, close = sharer._cache.pop(key, (None, None))
            if close is not None:
                close()


def _table() -> dict[type, Any]:
    """Both tables in one."""
    global _made
    common, extra, both = _made
    if common != copyreg.dispatch_table or extra != _Pickler._extra_reducers:
        common, extra = dict(copyreg.dispatch_table), dict(_Pickler._extra_reducers)
        both = common | {kind: partial(_noted, way) for kind, way in known().items()}
        _made = common, extra, both
    return both


def _dumps(obj: Any, protocol: int, *, buffer_callback: Any = None) -> bytes:
    """pickle.dumps(), with both tables."""
    _waiting.keys.clear()
    file = BytesIO()
    pickler = pickle.Pickler(file, protocol, buffer_callback=buffer_callback)
    pickler.dispatch_table = _table()
    try:
        pickler.dump(obj)
    except BaseException:
        _withdraw()
        raise
    return file.getvalue()


def _stays(value: Any, inside: bool = False) -> bool:
    """Whether a global is shared by inheritance only; also a list or dict of such things."""
    kind = type(value)
    if not inside and kind in (list, tuple, set):
        return any(_stays(item, True) for item in value)
    if not inside and kind is dict:
        return any(_stays(item, True) for item in list(value.values()))
    if any(base.__module__ in _SHARED for base in kind.__mro__[:-1]):
        return True
    # Of sharedctypes, without a lock around it: the wrapper holds its memory.
    return kind in _Pickler._extra_reducers and hasattr(value, "_wrapper")


class _Extra(dict[type, "Any"]):
    """The second table, as the pickler of code by value looks it up."""

    def __missing__(self, kind: type) -> Any:
        if kind in PYTHONS_OWN:
            raise KeyError(kind)
        return partial(_noted, _Pickler._extra_reducers[kind])


def _by_value(
    before: Callable[..., bytes], obj: Any, buffer_callback: Any, is_result: bool
) -> bytes:
    """_pickling._dump_by_value(), with both tables."""
    _withdraw()
    pickler: Any = _byvalue._by_value_pickler()
    table = pickler.dispatch_table
    if not any(type(part) is _Extra for part in table.maps):
        pickler.dispatch_table = ChainMap(*table.maps, _Extra())
    return before(obj, buffer_callback, is_result)


def follow() -> None:
    """Have what is sent from this process be pickled with both tables from now on."""
    if _pickling._dumps is not _dumps:
        before = _pickling._dump_by_value
        vars(_pickling).update(_dumps=_dumps, _dump_by_value=partial(_by_value, before))
        vars(_byvalue).update(_stays=_stays)
