# SPDX-License-Identifier: BSD-3-Clause
"""Trireme's doors in a scratch copy of an interpreter: see tools/conformance.py.

In that copy this module is imported before anything else can be, whatever the switches (-I, -E,
-S), in every process.  From then on ``import multiprocessing`` and ``import concurrent.futures``,
their submodules, and importlib.import_module() of these give trireme.multiprocessing and
trireme.futures.  Only trireme and the originals themselves see the originals, which stay what they
are and where they are: who imports is told by the name of the importing module.

Interpreters beside the main one have no doors: trireme._core cannot be loaded there.

A submodule or a name that the facade lacks as a *module file* (popen_fork, futures._base) is the
original's; a name that a facade's module lacks is missing, and so found by the tests.
"""

import builtins
import sys

_DOORS = {"multiprocessing": "trireme.multiprocessing", "concurrent.futures": "trireme.futures"}
_BEHIND = frozenset(("trireme", "multiprocessing", "concurrent"))

_import = builtins.__import__
_concurrent = None


def _in_main_interpreter():
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            _import(name)
        except ImportError:
            continue
        module = sys.modules[name]
        return module.get_current() == module.get_main()
    return True


def _ours(name):
    """The name of what stands for module *name*; None if nothing does."""
    for theirs, ours in _DOORS.items():
        if name == theirs or name.startswith(theirs + "."):
            return ours + name[len(theirs) :]
    return None


def _is_behind(importer):
    return type(importer) is str and importer.partition(".")[0] in _BEHIND


def _load(name):
    """What stands for module *name*, imported."""
    ours = _ours(name)
    try:
        _import(ours)
        return sys.modules[ours]
    except ModuleNotFoundError as exc:
        if exc.name != ours:
            raise
    _import(name)
    module = sys.modules[name]
    parent = sys.modules[ours.rpartition(".")[0]]
    last = ours.rpartition(".")[2]
    if not hasattr(parent, last):
        setattr(parent, last, module)
    return module


def _package_concurrent():
    """The package that holds concurrent.futures: the original's, with another ``futures``."""
    global _concurrent
    if _concurrent is None:
        _import("concurrent")
        real = sys.modules["concurrent"]
        package = type(sys)("concurrent", real.__doc__)
        for name in ("__path__", "__file__", "__spec__", "__package__", "__loader__"):
            setattr(package, name, getattr(real, name, None))
        package.__getattr__ = lambda name: getattr(real, name)
        _concurrent = package
    return _concurrent


def _through(name, fromlist):
    """What an import statement of *name* is to get."""
    package = None
    if name == "concurrent":
        package = module = _package_concurrent()
        wanted = fromlist or ()
        if "futures" in wanted:
            package.futures = _load("concurrent.futures")
        return module
    module = _load(name)
    if not fromlist:
        if name.startswith("concurrent"):
            package = _package_concurrent()
            package.futures = sys.modules[_DOORS["concurrent.futures"]]
            return package
        return sys.modules[_DOORS["multiprocessing"]]
    for item in fromlist:
        if item != "*" and not hasattr(module, item):
            try:
                _load(f"{name}.{item}")
            except ModuleNotFoundError:
                pass  # the import statement says what is missing
    return module


def _hooked(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and (name.startswith("multiprocessing") or name.startswith("concurrent")):
        if _ours(name) is not None or (name == "concurrent" and "futures" in (fromlist or ())):
            importer = globals if globals is not None else sys._getframe(1).f_globals
            if not _is_behind(importer.get("__name__")):
                return _through(name, fromlist)
    module = _import(name, globals, locals, fromlist, level)
    if "importlib" in sys.modules:
        _hook_importlib(sys.modules["importlib"])
    return module


_import_module = None


def _hook_importlib(importlib):
    global _import_module
    if _import_module is None and hasattr(importlib, "import_module"):
        _import_module = importlib.import_module

        def import_module(name, package=None):
            """Import a module."""
            if type(name) is str and _ours(name) is not None:
                if not _is_behind(sys._getframe(1).f_globals.get("__name__")):
                    return _load(name)
            return _import_module(name, package)

        importlib.import_module = import_module


if _in_main_interpreter():
    builtins.__import__ = _hooked
