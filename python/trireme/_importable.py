# SPDX-License-Identifier: BSD-3-Clause
"""Which modules and names a fresh process finds by importing them.

What it would not find is sent by value.  A name is judged once: modules of this process that no
fresh one could import (``__main__``, a notebook, a file loaded by hand) are *strange*, and a pickle
that spells the name of one is not to be trusted.  So each pickle is searched for a few bytes, and
nothing else is asked as long as no module has been imported since.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Missing:
    """The type of MISSING."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


#: Stands in a watch list for a global that is not bound and for an empty cell.
MISSING = _Missing()


# Modules that Cython invents to share its C types.  They hold no Python code to send by value.
_C_ONLY = ("_cython_", "cython_runtime")

_known: set[str] = {"builtins", "sys"}  # names that were judged, whatever the verdict
_strange: dict[str, bytes] = {}  # names no fresh process can import -> how a pickle spells them
_needles: tuple[bytes, ...] = ()
_modules_seen: tuple[int, str] = (0, "")  # how many and the latest, at the last look


def _spelling(name: str) -> bytes:
    """The opcode SHORT_BINUNICODE with *name*: what a pickle of protocol 4 or later contains."""
    text = name.encode("utf-8", "surrogatepass")
    return b"\x8c" + bytes((len(text),)) + text if len(text) < 256 else text


def _is_importable(name: str) -> bool:
    """Whether ``import name`` in a fresh process with our sys.path gives the same module.

    A submodule is as good as its top-level package: importing the package is what creates those
    that have no file of their own.
    """
    top = name.partition(".")[0]
    if top in ("__main__", "__mp_main__"):
        return False
    if name != top and top in _known:
        return top not in _strange
    if top.startswith(_C_ONLY):
        return True
    if top in sys.stdlib_module_names:
        return True
    module = sys.modules.get(top)
    spec = getattr(module, "__spec__", None)
    if spec is None:
        return False
    origin = getattr(spec, "origin", None)
    if origin in ("built-in", "frozen"):
        return True
    if origin and getattr(spec, "has_location", False):
        where, _, file = origin.rpartition("/")
        if spec.submodule_search_locations is not None:
            where, _, file = where.rpartition("/")
        if file.partition(".")[0] == top and where in sys.path:
            return True
    for finder in sys.meta_path:  # editable installs, zip files, namespace packages
        try:
            found = finder.find_spec(top, None)
        except Exception:
            continue
        if found is not None:
            return found.origin == origin
    return False


def _judge(name: str) -> bool:
    """Judge one module name, remember the verdict, and return whether it is importable."""
    global _needles
    if name in _known:
        return name not in _strange
    top = name.partition(".")[0]
    if top != name and top not in _known:
        _judge(top)
    good = _is_importable(name)
    if not good:
        _strange[name] = _spelling(name)
        _needles = tuple(_strange.values())
    _known.add(name)
    return good


def _modules_now() -> tuple[int, str]:
    """How many modules there are, and the latest: one that takes another's place comes last."""
    return len(sys.modules), next(reversed(sys.modules), "")


def _look_for_strange_modules() -> None:
    """Judge the modules imported since the last look.  Costs one comparison when there are none."""
    global _modules_seen
    now = _modules_now()
    if now == _modules_seen:
        return
    for name in list(sys.modules):
        if name not in _known:
            _judge(name)
    _modules_seen = now  # what judging has imported is judged the next time


def _names_strange_module(data: bytes) -> bool:
    """Whether the pickle *data* refers to a module that a fresh process cannot import."""
    if _modules_now() != _modules_seen:
        _look_for_strange_modules()
    for needle in _needles:
        if needle in data:
            return True
    return False


def _resolve(module: str | None, qualname: str | None) -> Any:
    """The object that *module* holds under *qualname* now, or MISSING."""
    if not module or not qualname:
        return MISSING
    found: Any = sys.modules.get(module, MISSING)
    for part in qualname.split("."):
        found = getattr(found, part, MISSING)
        if found is MISSING:
            break
    return found


def _found_by_name(obj: Any) -> bool:
    """Whether importing *obj*'s module in a fresh process and looking up its name gives *obj*."""
    module = getattr(obj, "__module__", None)
    if not isinstance(module, str) or not _judge(module):
        return False
    return _resolve(module, getattr(obj, "__qualname__", None)) is obj


# Worker: module -> the globals of its by-value functions.
_namespaces: dict[str, dict[str, Any]] = {}


def _namespace_key(namespace: dict[str, Any]) -> str | None:
    """The module whose globals *namespace* is, or None for a dictionary made for exec()."""
    name = namespace.get("__name__")
    if not isinstance(name, str):
        return None
    if getattr(sys.modules.get(name), "__dict__", None) is namespace:
        return name
    return name if _namespaces.get(name) is namespace else None
