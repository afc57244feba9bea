# SPDX-License-Identifier: BSD-3-Clause
"""install(): programs get Trireme's doors without a change to them.

The modules of the standard library stay, and show Trireme's names: an original that has been
imported, now or later, becomes a :class:`_Door`, which answers with what its twin in this package
has under a name, where that is another thing.  Its own dictionary is not touched.  So functions of
the original go on with the original's classes, its private parts and submodules are its own, and
who has imported it before finds the new names in it.

Why not other modules in sys.modules?  A library that was imported before would hold the originals,
and the standard library's own parts, which import each other by name, would be built on ours.  Why
not new names in the dictionary?  The original's functions would see them: a class of ours with a
base of theirs came out of their own factory.  It costs a Python call, 0.2 us, to ask such a module
for a name.

What follows from it, and how it is kept:

* Our twins are made from the originals.  Original modules that they hold are exchanged in them for
  an :class:`_Original`, which shows what the module is.
* Names are replaced when a module is first used, not when it is imported (:func:`_settle`).
  A twin imports its original; were the twin imported while the original is, two threads could each
  hold the lock that the other one needs.  While a thread executes an original or a twin, as a count
  per thread says, it sees what it would see without us.
* The contexts' methods import their class when they are called.  So a context, or a method like
  ``multiprocessing.Pool``, that was taken before makes Trireme's objects, too.
* An instance of a class that was replaced could not be pickled any more: its class is not what its
  name says.  copyreg is told how (:func:`_reduce`).
* concurrent.futures.process derives from the original Queue, whatever is imported first.

Children find the doors by two variables in the environment: TRIREME_DOORS says which, and for which
Python, and PYTHONPATH begins with a folder whose sitecustomize.py reads it.  Nothing is imported
before the program imports it: a child that needs no door pays a millisecond.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock, _local

from . import _imports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Names = str | Iterable[str] | None

__all__ = ["install", "uninstall"]

# Door: the module that programs import, and its twin here.
DOORS = {
    "multiprocessing": ("multiprocessing", "trireme.multiprocessing"),
    "multiprocess": ("multiprocess", "trireme.multiprocess"),
    "futures": ("concurrent.futures", "trireme.futures"),
}
_TWINS = tuple(twin for _, twin in DOORS.values())

# Imported before the module on the left is changed: it is built on what is there.
_BUILT_ON = {"multiprocessing.queues": "concurrent.futures.process"}

# Packages that derive from private parts of the originals' classes: they keep the originals.
_INTIMATE = ("joblib.externals.loky", "loky")

# Where multiprocessing pickles and unpickles: there a class is looked up by its name, which must go
# on meaning the original.  (A manager sends its types to the process that it starts.)
_PICKLERS = frozenset(
    f"multiprocessing.{name}" for name in ("reduction", "connection", "spawn", "forkserver")
)

VARIABLE = "TRIREME_DOORS"
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_site")

_MISSING = object()
_LAZY = getattr(sys.modules.get("types"), "LazyImportType", None)  # from 3.15 on

_lock = RLock()
_installed: list[str] = []  # doors, in the order of DOORS
_saved: dict[tuple[str, str], tuple[Any, Any]] = {}  # (module, name): the original's, ours
_programs: set[tuple[str, str]] = set()  # names among these that the program has set since
_ways: dict[type, Any] = {}  # what multiprocessing's pickler knew for classes that were replaced
_done: set[str] = set()  # originals whose names have been replaced
_report: Any = None  # the module _report, when one was asked for


# ---------------------------------------------------------------------------------------------
# Which doors
# ---------------------------------------------------------------------------------------------


def chosen(only: Names) -> list[str]:
    """The doors that *only* names, in order; ValueError for one that there is not."""
    if only is None:
        return list(DOORS)
    wanted = [only] if isinstance(only, str) else list(only)
    for name in wanted:
        if name not in DOORS:
            raise ValueError(f"there is no door {name!r}: only= takes {', '.join(DOORS)}")
    return [name for name in DOORS if name in wanted]


def _door_of(name: str) -> tuple[str, str] | None:
    """For an original module of an installed door: the door and the name of the twin."""
    for door in _installed:
        module, twin = DOORS[door]
        if name == module or name.startswith(module + "."):
            return door, twin + name[len(module) :]
    return None


# ---------------------------------------------------------------------------------------------
# Replacing names
# ---------------------------------------------------------------------------------------------


def _module_name(module: ModuleType) -> str:
    """Its name, without a look at its other attributes."""
    name = object.__getattribute__(module, "__dict__").get("__name__", "")
    return name if isinstance(name, str) else ""


def _twin(name: str) -> ModuleType | None:
    """Import the twin; None if there is none, or if it is the original itself."""
    from importlib import import_module

    try:
        module = import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name != name:
            raise
        return None
    return module if module.__name__.startswith("trireme.") else None


def _replace(original: ModuleType, twin: ModuleType) -> None:
    """Note the names of *original* that *twin* defines otherwise."""
    import copyreg
    from functools import partial
    from types import ModuleType

    module = _module_name(original)
    there = object.__getattribute__(original, "__dict__")
    names = {name for name in vars(twin) if not name.startswith("_")}
    names.update(getattr(twin, "__all__", ()))
    for name in sorted(names):
        # A name that the original has not loaded yet comes from a submodule, and is ours then.
        theirs = there.get(name, _MISSING)
        if theirs is _MISSING:
            continue
        where = vars(twin).get("_WHERE", {}).get(name, "trireme.")
        if type(theirs) is _LAZY and not where.startswith("trireme."):
            continue  # an import that nobody has needed yet, and no thing of ours
        ours = getattr(twin, name)
        if ours is theirs or not callable(ours) or isinstance(ours, ModuleType):
            continue
        _saved.setdefault((module, name), (theirs, ours))
        if isinstance(theirs, type) and theirs.__module__ == module:
            copyreg.dispatch_table.setdefault(theirs, _reduce)
            ways = _picklers_ways()
            if theirs in ways and theirs not in _ways:
                way = _ways[theirs] = ways[theirs]
                ways[theirs] = partial(_reduce, way=way)


def _picklers_ways() -> dict[type, Any]:
    """What multiprocessing's pickler knows, and prefers to copyreg."""
    reduction = sys.modules.get("multiprocessing.reduction")
    if reduction is None:
        return {}
    pickler = object.__getattribute__(reduction, "__dict__")["ForkingPickler"]
    return pickler._extra_reducers  # type: ignore[no-any-return]


def _reduce(obj: Any, way: Callable[[Any], Any] | None = None) -> Any:
    """How an instance of a class that was replaced is pickled: its class by where it still is.

    *way* is what the original's pickler knew for it.
    """
    import copyreg

    reduced = obj.__reduce_ex__(4) if way is None else way(obj)
    newobj: Any = vars(copyreg)["__newobj__"]
    if not isinstance(reduced, tuple):
        return reduced
    make, args = reduced[:2]
    if make is newobj:
        cls, *rest = args
        return (_revive, (cls.__module__, cls.__qualname__, *rest), *reduced[2:])
    for (module, name), (theirs, _) in list(_saved.items()):
        if theirs is make:
            return (_remake, (module, name, *args), *reduced[2:])
    return reduced


def _theirs(module: str, name: str) -> Any:
    from importlib import import_module

    return object.__getattribute__(import_module(module), "__dict__")[name]


def _revive(module: str, name: str, *args: Any) -> Any:
    """An instance of the class that the original has under that name, without its state."""
    cls = _theirs(module, name)
    return cls.__new__(cls, *args)


def _remake(module: str, name: str, *args: Any) -> Any:
    """What the original's function or class of that name makes of *args*."""
    return _theirs(module, name)(*args)


def _original_class() -> type:
    from types import ModuleType

    class _Original(ModuleType):
        """An original module as it was, for our twins; what is set here is set there."""

        def __init__(self, real: ModuleType) -> None:
            super().__init__(_module_name(real))
            ModuleType.__setattr__(self, "_real", real)

        def __getattribute__(self, name: str) -> Any:
            real = ModuleType.__getattribute__(self, "_real")
            _here.depth += 1  # looked at from here, it shows what it is
            try:
                return getattr(real, name)
            finally:
                _here.depth -= 1

        def __setattr__(self, name: str, value: Any) -> None:
            _here.depth += 1
            try:
                setattr(ModuleType.__getattribute__(self, "_real"), name, value)
            finally:
                _here.depth -= 1

    return _Original


_originals: dict[str, Any] = {}  # by name, what our twins have in place of a module


def _shield(twin: ModuleType) -> None:
    """Have one of our twins see the originals as they were."""
    from types import ModuleType

    name = _module_name(twin)
    if not name.startswith(_TWINS):
        return
    changed = {module for module, _ in _saved}
    package = next(t for t in _TWINS if name.startswith(t))
    door = next(module for module, t in DOORS.values() if t == package)
    original = sys.modules.get(door + name[len(package) :])
    public = object.__getattribute__(original, "__dict__") if original is not None else {}
    for attribute, value in list(vars(twin).items()):
        if type(value) is not ModuleType and type(value) is not _door_class:
            continue
        module = _module_name(value)
        if _door_of(module) is None or sys.modules.get(f"{name}.{attribute}") is value:
            continue  # a submodule that is the original itself
        # What the original has under the same name is there for programs, and the same one.
        if module in changed or public.get(attribute) is not value:
            if module not in _originals:
                _originals[module] = _original_class()(value)
            vars(twin)[attribute] = _originals[module]


def _shield_all() -> None:
    for name, twin in list(sys.modules.items()):
        if name.startswith(_TWINS) and twin is not None:
            _shield(twin)


# ---------------------------------------------------------------------------------------------
# Imports
# ---------------------------------------------------------------------------------------------


class _Here(_local):
    """Of this thread: how many modules that concern us it is executing, one in the other."""

    depth = 0


_here = _Here()
_door_class: Any = None


def _class_of_doors() -> Any:
    """The class of an original module of which names are replaced."""
    from importlib import import_module
    from types import ModuleType

    class _Door(ModuleType):
        """Shows our names; settled when somebody asks for one, or sets one.

        Not to the import system, which asks for dunder names and hangs submodules into their
        package while it holds a lock, and not to the originals and our twins while they are made.
        """

        def __getattribute__(self, name: str) -> Any:
            if _here.depth or name[:2] == "__":
                return ModuleType.__getattribute__(self, name)
            where = ModuleType.__getattribute__(self, "__name__")
            if where not in _done:
                _settle(self)
            found = _saved.get((where, name))
            if found is not None and (where, name) not in _programs:
                if not _is_intimate(sys._getframe(1)):
                    return found[1]
            try:
                return ModuleType.__getattribute__(self, name)
            except AttributeError:
                if not _is_submodule(where, name):
                    raise
            # The original's own functions import it; ours do not always need to.
            return import_module(f"{where}.{name}")

        def __setattr__(self, name: str, value: Any) -> None:
            if not isinstance(value, ModuleType):
                value = _setting(self, name, value)
            ModuleType.__setattr__(self, name, value)

        def __reduce_ex__(self, protocol: Any) -> Any:
            # As a global of a function that goes by value; a plain module is known to its pickler.
            from importlib import import_module

            return import_module, (ModuleType.__getattribute__(self, "__name__"),)

        def __delattr__(self, name: str) -> None:
            _setting(self, name, None)
            ModuleType.__delattr__(self, name)

    return _Door


def _is_submodule(package: str, name: str) -> bool:
    from importlib.util import find_spec

    module = sys.modules.get(package)
    return hasattr(module, "__path__") and find_spec(f"{package}.{name}") is not None


def _is_intimate(frame: Any) -> bool:
    package = str(frame.f_globals.get("__name__", ""))
    if package in _PICKLERS:
        return True
    return any(package == one or package.startswith(one + ".") for one in _INTIMATE)


def _setting(module: ModuleType, name: str, value: Any) -> Any:
    """What goes into the original for a name that a program sets to *value*.

    It will find there what it has set, until it sets what was there before.
    """
    if _here.depth or name[:2] == "__":
        return value
    if _module_name(module) not in _done:
        _settle(module)
    key = (_module_name(module), name)
    if key in _saved:
        theirs, ours = _saved[key]
        if value is not theirs and value is not ours:
            _programs.add(key)
            return value
        _programs.discard(key)
        return theirs
    return value


def _wait(module: ModuleType) -> None:
    """Have *module* settled when it is first used."""
    global _door_class
    if _door_class is None:
        _door_class = _class_of_doors()
    name = _module_name(module)
    if name not in _done and _door_of(name) is not None and type(module) is type(sys):
        module.__class__ = _door_class


def _settle(module: ModuleType) -> None:
    """Replace the names in an original that waits for it.

    Called where this thread is inside of no import of an original or a twin, so that whatever
    locks of the import system it holds, no other thread that imports these waits for them.
    """
    _here.depth += 1
    try:
        _settle_one(module, _module_name(module))
        _shield_all()
    finally:
        _here.depth -= 1


def _settle_one(module: ModuleType, name: str) -> None:
    from importlib import import_module
    from types import ModuleType

    found = _door_of(name)
    if found is not None:
        if name in _BUILT_ON:
            import_module(_BUILT_ON[name])
        twin = _twin(found[1])
        if twin is not None:
            _replace(module, twin)
    _done.add(name)
    if not any(where == name for where, _ in _saved):
        module.__class__ = ModuleType  # nothing is replaced in it


def _waits(module: Any) -> bool:
    return type(module) is _door_class and _module_name(module) not in _done


class _Loader(_imports.Loader):
    """Loads a module as *loader* does, and has a look at it afterwards."""

    def exec_module(self, module: ModuleType) -> None:
        """As the loader does."""
        _here.depth += 1
        try:
            super().exec_module(module)
        finally:
            _here.depth -= 1
        _shield(module)
        _wait(module)


class _Alias:
    """Loads a module of multiprocess, which need not be installed: it is our twin."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> None:
        """The import system's own, for a moment."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the twin in its place."""
        from importlib import import_module

        sys.modules[module.__name__] = import_module(self._name)


class _Finder:
    """Stands before the other finders and asks them."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that they have for a module that concerns us."""
        root = name.partition(".")[0]
        if root not in ("multiprocessing", "concurrent", "trireme", "multiprocess"):
            return None
        if root == "multiprocess" and _aliased():
            return _find_alias(name)
        return _imports.find_behind(_finder, _Loader, name, path, target)


_finder = _Finder()


def _aliased() -> bool:
    """Whether multiprocess is to be our twin; not when the real one has been imported."""
    if "multiprocess" not in _installed:
        return False
    module = sys.modules.get("multiprocess")
    return module is None or module.__name__ == "trireme.multiprocess"


def _find_alias(name: str) -> ModuleSpec | None:
    from importlib.machinery import ModuleSpec
    from importlib.util import find_spec

    rest = name[len("multiprocess") :]
    for twin in ("trireme.multiprocess" + rest, "trireme.multiprocessing" + rest):
        try:
            found = find_spec(twin)
        except (ImportError, ValueError):
            continue
        if found is not None:
            return ModuleSpec(name, _Alias(twin), is_package=True)  # type: ignore[arg-type]
    return None


# ---------------------------------------------------------------------------------------------
# Children
# ---------------------------------------------------------------------------------------------


def whoami() -> str:
    """This interpreter and its environment: no other one may load our extension."""
    return f"{sys.implementation.cache_tag};{sys.prefix}"


def _tell_children() -> None:
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != FOLDER]
    if _installed:
        os.environ[VARIABLE] = f"{','.join(_installed)};{whoami()}"
        path.insert(0, FOLDER)
    else:
        os.environ.pop(VARIABLE, None)
    if path:
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    else:
        os.environ.pop("PYTHONPATH", None)


# ---------------------------------------------------------------------------------------------
# The two functions
# ---------------------------------------------------------------------------------------------


def install(only: Names = None, report: bool = False) -> None:
    """Put Trireme in the place of multiprocessing, multiprocess and concurrent.futures.

    From now on this program and its children get Trireme's pools and executors from ``import
    multiprocessing`` and the others, wherever the import stands; see docs/doors.md.  A second call
    adds doors.

    only: "multiprocessing", "multiprocess" or "futures", or a list of these; None for all three.
    report: print to stderr at exit what ran where, and what was left to the originals.
    """
    global _report
    doors = chosen(only)
    with _lock:
        if report and _report is None:
            from . import _report as module

            module.begin()
            _report = module
        _installed[:] = [d for d in DOORS if d in _installed or d in doors]
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)  # type: ignore[arg-type]
        _tell_children()
        alias = _aliased()
        for name, module in list(sys.modules.items()):
            if not (alias and name.partition(".")[0] == "multiprocess") and module is not None:
                _wait(module)
        _shield_all()
        # What is here already may have made objects, of which copyreg is to know before they are
        # pickled.  Modules that come later wait for their first use.
        for module in list(sys.modules.values()):
            if _waits(module):
                _settle(module)


def uninstall() -> None:
    """Undo :func:`install`.  Objects that were made meanwhile stay what they are."""
    import copyreg

    with _lock:
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)  # type: ignore[arg-type]
        for module in list(sys.modules.values()):
            if type(module) is _door_class:
                module.__class__ = type(sys)
        before = {id(ours): theirs for theirs, ours in _saved.values()}
        # Also where a package has taken a name out of its submodule.  What somebody else has put
        # there since is not ours to remove.
        for name in _done.intersection(sys.modules):
            for attribute, value in list(vars(sys.modules[name]).items()):
                if id(value) in before:
                    setattr(sys.modules[name], attribute, before[id(value)])
        for theirs, _ in _saved.values():
            if isinstance(theirs, type) and copyreg.dispatch_table.get(theirs) is _reduce:
                del copyreg.dispatch_table[theirs]
        if _aliased():
            for name in [n for n in sys.modules if n.partition(".")[0] == "multiprocess"]:
                del sys.modules[name]
        _picklers_ways().update(_ways)
        _ways.clear()
        _saved.clear()
        _programs.clear()
        _done.clear()
        _installed.clear()
        _tell_children()
