# SPDX-License-Identifier: BSD-3-Clause
"""Worker: the globals of by-value functions, as they were when a task was submitted.

All by-value functions of a module share one dictionary of globals in a worker, so that an
initializer that says ``global model`` is seen by the task functions.  The owner gives each value
that it sends a version.  A worker keeps its own binding until a version comes that it does not
have; so ``model = None`` in the script does not undo what the initializer did.

Calls may overlap: a map is under way, the program binds a global anew and submits another call.
Their tasks meet in one worker, in any order, and each is to find what its call was made with.  So
a function, when it is loaded, leaves a list of the versions that it was sent with, and when it is
run after another, those of its names that are bound to other versions are bound again.  What was
bound there, whatever tasks have made of it, is set aside for when its version is wanted next.

That costs memory, and only for what may run again.  The owner says with each function the number
of the oldest that still has tasks; versions that none from there on has are let go, but for the
newest of each name, which the next call may have, too.  Without an overlap nothing is set aside.

A function among the arguments of a task brings its values along and binds them in the same way.

The functions that a pickle names (``namespace``, ``set_function_state``) run where it is read.
"""

from __future__ import annotations

import _pickle as pickle  # the C half
import sys

from . import _core
from ._importable import MISSING, _namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Name = tuple[str, str]  # of a module, and of a global in it

_loads = pickle.loads

# A fork whose tasks go by name: modules whose by-value functions live in the module itself.
inherited: set[str] = set()

# The version of what is bound now, and the newest that was ever received.
_bound: dict[Name, int] = {}
_newest: dict[Name, int] = {}
# What other versions were when they gave way.
_aside: dict[Name, dict[int, Any]] = {}
# Number of a function -> the versions that it was sent with.  run.c empties it with its table.
_sent_with: dict[int, dict[Name, int]] = {}
_oldest = 0  # number of a function: no older one has tasks
# Those of the function that is being loaded; None: it is the arguments of a task that are.
_loading: dict[Name, int] | None = None


def namespace(module: str, seed: dict[str, Any]) -> dict[str, Any]:
    """The globals shared by all by-value functions of *module*."""
    found = _namespaces.get(module)
    if found is None:
        found = vars(sys.modules[module]) if module in inherited else seed
        _namespaces[module] = found
    return found


def set_function_state(fn: Any, state: Any) -> None:
    """Give a by-value function its state, and its globals the values that it was sent with."""
    setter, inner, module, versions, left = state
    for name in left:
        # An initializer may have set it.  Else a fork has it in the module itself.
        value = getattr(sys.modules.get(module), name, MISSING)
        if value is not MISSING:
            fn.__globals__.setdefault(name, value)
    incoming = inner[1]["__globals__"]
    for name, version in versions.items():
        _bind((module, name), version, fn.__globals__, incoming.pop(name, MISSING))
    setter(fn, inner)


def _bind(name: Name, version: int, namespace: dict[str, Any], value: Any) -> None:
    """Bind a global to *version* of it, which came as *value*; MISSING: it was deleted."""
    if _loading is not None:
        _loading[name] = version
    last = _bound.get(name, 0)
    if last == version:
        if value is not MISSING:
            namespace.setdefault(name[1], value)
        return
    if last >> 32 != version >> 32:  # of another owner: its versions say nothing of these
        _newest[name] = version
        _aside.pop(name, None)
    elif version > _newest[name]:
        _newest[name] = version
    _bound[name] = version
    if last >> 32 == version >> 32:
        _set_aside(name, last, namespace)
        value = _taken(name, version, value)
    if value is not MISSING:
        namespace[name[1]] = value
    elif last:
        namespace.pop(name[1], None)
    if last:
        _core._globals_changed()


def _set_aside(name: Name, version: int, namespace: dict[str, Any]) -> None:
    if _is_wanted(name, version):
        _aside.setdefault(name, {})[version] = namespace.get(name[1], MISSING)


def _taken(name: Name, version: int, otherwise: Any) -> Any:
    """What was set aside of a version, which is not there any more after that."""
    kept = _aside.get(name)
    if kept is None:
        return otherwise
    value = kept.pop(version, otherwise)
    if not kept:
        del _aside[name]
    return value


def _is_wanted(name: Name, version: int) -> bool:
    return version == _newest[name] or any(
        number >= _oldest and versions.get(name) == version
        for number, versions in _sent_with.items()
    )


def _bind_again(versions: dict[Name, int]) -> None:
    """Bind names to versions that were received before."""
    for name, version in versions.items():
        last = _bound.get(name, 0)
        if last != version and version in _aside.get(name, ()):
            namespace = _namespaces[name[0]]
            value = _taken(name, version, MISSING)
            _set_aside(name, last, namespace)
            _bound[name] = version
            if value is MISSING:
                namespace.pop(name[1], None)
            else:
                namespace[name[1]] = value
            _core._globals_changed()


def load_function(data: Any, number: int, oldest: int) -> Any:
    """Unpickle a function; *oldest*: of its pool's that have tasks.  For run.c."""
    global _loading, _oldest
    _oldest = max(_oldest, oldest)
    _loading = {}
    try:
        fn = _loads(data)
        if _loading:
            _sent_with[number] = _loading
    finally:
        _loading = None
    for name, kept in list(_aside.items()):
        for version in [version for version in kept if not _is_wanted(name, version)]:
            _taken(name, version, None)
    return fn


def run_again(number: int) -> None:
    """Prepare for a task of a function that was loaded before.  For run.c."""
    versions = _sent_with.get(number)
    if versions is not None:
        _bind_again(versions)


def load_part(data: bytes) -> tuple[Any, dict[Name, int]]:
    """Unpickle what functions may share, a class: it and the versions that it was sent with."""
    global _loading
    outer, _loading = _loading, {}
    try:
        return _loads(data), _loading
    finally:
        if outer is not None:
            outer.update(_loading)
        _loading = outer


def use_part(versions: dict[Name, int]) -> None:
    """Meet again what load_part() has loaded."""
    if _loading is not None:
        _loading.update(versions)
    _bind_again(versions)
