# SPDX-License-Identifier: BSD-3-Clause
"""The program's script in the workers of facades' pools: its top level is run there.

With "spawn" and "forkserver" the originals' workers import the script as ``__mp_main__``, and
programs rely on it: ``import plugin``, ``np.seterr()``, a patch of somebody's class.  So do ours,
before anything of the program's arrives, if the script has ``if __name__ == "__main__":`` or the
like.  One without that is not made for it, and works all the same.

Functions and classes of the script go by value as ever, so what a program has bound anew or set
under its guard arrives.  They live in the globals of the worker's own ``__mp_main__``: what cannot
be pickled, a connection to a database or a lock, is left out, and they find the worker's own.  A
class of the script that arrives is the worker's own of that name, brought up to date: others may
have kept it, in a registry for instance.

What the top level prints has been printed by the owner, and is not again.  An exception of it is
shown and ends nothing: what arrives by value runs without it.
"""

from __future__ import annotations

import os
import sys
import types
import weakref
from io import BytesIO
from multiprocessing import process

from .. import _byvalue, _importable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Where = tuple[str, str]
    # What a script's top level binds, and the first and last lines of its guards.
    Top = tuple[frozenset[str], list[tuple[int, int]]]

# ---------------------------------------------------------------------------------------------
# Owner: what there is to import
# ---------------------------------------------------------------------------------------------

_MAIN = "__mp_main__"
_MODULES_OWN = frozenset(("__name__", "__loader__", "__package__", "__spec__", "__cached__"))

# What starts processes, or code that is not to be seen in the script and may do so.  One that calls
# these outside of its guards is not made for workers that run its top level.
_OPENING = frozenset(
    ("Pool", "Process", "ProcessPoolExecutor", "Manager", "process_map")
    + ("exec", "run_path", "run_module")
)

# Random generators: copies of the owner's would all draw the same numbers.
_GENERATORS = frozenset(
    ("random.Random", "numpy.random._generator.Generator", "numpy.random.mtrand.RandomState")
)

_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)

_source = ("", b"")  # the last file that was read
_looked: tuple[bytes, Top | None] = (b"", None)  # the last source whose top level was looked at


def _main_file() -> tuple[Where, str] | None:
    """How workers find the script, as the original says it, and its file.  None: they do not."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if not isinstance(file, str):
        return None
    folder = vars(process)["ORIGINAL_DIR"]
    if not os.path.isabs(file) and folder is not None:
        file = os.path.join(folder, file)
    file = os.path.normpath(file)
    if name is not None:
        if name == "__main__" or name.endswith(".__main__"):
            return None
        return ("name", name), file
    if os.path.splitext(os.path.basename(file))[0] == "ipython":
        return None
    return ("path", file), file


def expect(method: str) -> None:
    """A pool with this start method is to be opened.  Called before the warden is started."""
    global _source
    if method == "fork":
        return
    if running:
        raise RuntimeError(
            "the script opens a pool at its top level, which each worker of that pool runs: "
            "do it under `if __name__ == '__main__':`"
        )
    found = _main_file()
    if found is None:
        _source = ("", b"")
    elif found[1] != _source[0]:
        _source = (found[1], b"")
        try:
            with open(found[1], "rb") as file:
                source = file.read()
        except OSError:
            return
        if b"__main__" in source:
            _source = (found[1], source)


def libraries(imported: list[str]) -> list[str]:
    """Those of *imported* that the script seems to import, too."""
    return [name for name in imported if name.encode() in _source[1]]


def look() -> tuple[Where | None, Own | None]:
    """Where workers find the script, and what pickles for them; None: they do not run it."""
    global _looked
    found = _main_file()
    if found is None or found[1] != _source[0] or not _source[1]:
        return None, None
    if _looked[0] != _source[1]:
        try:
            names = _read(_source[1])
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            names = None  # no source, as that of a zip file
        _looked = _source[1], names
    if _looked[1] is None or _is_unguarded(_looked[1][1]):
        return None, None
    return found[0], Own(_looked[1][0])


def _is_unguarded(guards: list[tuple[int, int]]) -> bool:
    """Is this called by the script's top level, outside its guards?  Workers would come here."""
    namespace = vars(sys.modules["__main__"])
    at: Any = sys._getframe(1)
    while at is not None:
        if at.f_globals is namespace and at.f_code.co_name == "<module>":
            return not any(first <= at.f_lineno <= last for first, last in guards)
        at = at.f_back
    return False


def _read(source: bytes) -> Top | None:
    """The top level of a script; None: it has no guard."""
    import ast

    def guards(test: ast.expr) -> bool:
        """Does this condition compare __name__ with "__main__"?"""
        for node in ast.walk(test):
            if isinstance(node, ast.Compare):
                inside = list(ast.walk(node))
                if any(isinstance(n, ast.Name) and n.id == "__name__" for n in inside) and any(
                    isinstance(n, ast.Constant) and n.value == "__main__" for n in inside
                ):
                    return True
        return False

    def called(node: ast.AST) -> str:
        """The name of what this calls, or an empty one."""
        if not isinstance(node, ast.Call):
            return ""
        return str(getattr(node.func, "id", None) or getattr(node.func, "attr", ""))

    guarded: list[tuple[int, int]] = []
    names: set[str] = set()
    calls: set[str] = set()  # what the top level calls outside of its guards
    within: dict[str, set[str]] = {}  # and the functions and classes there
    nodes: list[ast.AST] = list(ast.parse(source).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            within.setdefault(node.name, set()).update(map(called, ast.walk(node)))
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, (ast.If, ast.IfExp, ast.While)) and guards(node.test):
            guarded.append((node.lineno, node.end_lineno or node.lineno))
            if isinstance(node, ast.If):
                nodes.extend(node.orelse)
            continue
        calls.add(called(node))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        nodes.extend(ast.iter_child_nodes(node))
    # A guard somewhere does not make a script one for workers that opens pools elsewhere.
    looked: set[str] = set()
    while more := calls - looked:
        looked |= more
        calls = calls.union(*(within.get(name, ()) for name in more))
    if calls & _OPENING:
        return None
    return (frozenset(names), guarded) if guarded else None


# ---------------------------------------------------------------------------------------------
# Owner: what cannot be sent
# ---------------------------------------------------------------------------------------------


class Own:
    """Pickles for workers that have run the script's top level, and so have its globals.

    What a global cannot be sent is tried when a pickle has failed, and remembered.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._left: dict[str, Callable[[], Any]] = {}
        self._looking = False
        self._trying: set[str] = set()

    def __call__(self, dumps: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call *dumps*, for these workers."""
        target = _byvalue._target
        before = getattr(target, "own", None)
        target.own = self
        try:
            return dumps(*args, **options)
        finally:
            target.own = before

    def look_again(self, dump: Callable[..., bytes], *args: Any) -> bytes:
        """dump(*args), which has failed, without what cannot be sent."""
        self._looking = True
        try:
            return dump(*args)
        finally:
            self._looking = False

    def has(self, module: str, name: str, value: Any) -> bool:
        """Whether a function leaves this global to the worker's own script."""
        if module not in ("__main__", _MAIN):
            return False
        if name in _MODULES_OWN:
            return True
        if name not in self._names:
            return False
        left = self._left.get(name)
        if left is not None and left() is value:
            return True
        kind = type(value)
        if f"{kind.__module__}.{kind.__name__}" in _GENERATORS:
            return True
        if (
            not self._looking
            or name in self._trying
            or kind in (types.FunctionType, types.ModuleType)
            or issubclass(kind, type)
        ):
            return False
        self._trying.add(name)  # it may lead to itself
        try:
            _byvalue._by_value_pickler()(BytesIO(), lambda buffer: False, False).dump(value)
            return False
        except Exception:
            pass
        finally:
            self._trying.remove(name)
        self._left[name] = _hold(value)
        return True


def _hold(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


# ---------------------------------------------------------------------------------------------
# Worker
# ---------------------------------------------------------------------------------------------

running = False  # the script's top level, in this worker, now
_before: list[Any] = []  # the module __main__ of this process
_adopted: set[type] = set()  # classes of the script that stand for the owner's


class Prologue:
    """What a worker is told first.  Where this is unpickled, the worker is a process of
    multiprocessing's, and has run the script, before the rest is read."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._info = info

    def __reduce__(self) -> Any:
        return prologue, (self._info,)


def prologue(info: dict[str, Any]) -> dict[str, Any]:
    """Become what *info* of _lend.describe() says."""
    from . import _ways, _worker

    _worker.become(info)
    _ways.follow()
    if info["script"] is not None:
        run(info["script"])
    return info


def _code(where: Where) -> tuple[Any, dict[str, Any], str]:
    """The script's code, what Python sets in such a module, and its sys.argv[0]."""
    kind, name = where
    if kind == "path":
        import io

        with io.open_code(name) as file:
            code = compile(file.read(), name, "exec", dont_inherit=True)
        return code, {"__file__": name, "__package__": ""}, name
    from importlib.util import find_spec

    spec: Any = find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"No module named {name}", name=name)
    names = {
        "__file__": spec.origin,
        "__loader__": spec.loader,
        "__package__": spec.parent,
        "__spec__": spec,
    }
    return spec.loader.get_code(name), names, spec.origin


def run(where: Where) -> None:
    """Run the script's top level as the module ``__mp_main__``; ``__main__`` is the same then."""
    global running
    module: Any = types.ModuleType(_MAIN)
    me: Any = process.current_process()
    argv0 = sys.argv[:1]
    out: Any = sys.stdout if hasattr(sys.stdout, "muted") else types.SimpleNamespace()
    sys.modules[_MAIN] = module
    running = True
    me._inheriting = True  # refuses to start processes
    out.muted = True
    try:
        code, names, file = _code(where)
        vars(module).update(names)
        sys.argv[:1] = [file]
        exec(code, vars(module))
    except BaseException as exc:
        _show(where, exc)
    finally:
        running = False
        out.muted = False
        del me._inheriting
        sys.argv[:1] = argv0
    _before.append(sys.modules["__main__"])
    sys.modules["__main__"] = sys.modules[_MAIN] = module
    _importable._namespaces.update({"__main__": vars(module), _MAIN: vars(module)})
    _byvalue._script = sys.modules[__name__]
    again = sys.modules["trireme._worker"]._again
    if again is not None:
        again()  # the script's log handlers are the owner's to call


def _show(where: Where, exc: BaseException) -> None:
    import traceback

    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(exc), exc, trace))
        print(
            f"trireme: the top level of {where[1]} raised this in a worker, which goes on "
            f"without the rest of it:\n{text}",
            end="",
            file=sys.stderr,
        )
    except Exception:
        pass  # there is no stderr


def own_class(maker: Any, args: tuple[Any, ...], qualname: str) -> Any:
    """The script's own class for one that arrives by value, if it is made alike; or None."""
    from cloudpickle import cloudpickle

    if maker is not cloudpickle._make_skeleton_class:
        return None
    constructor, _, bases, body, tracker, _ = args
    own = _importable._resolve(_MAIN, qualname)
    if (
        tracker in cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
        or body.get("__module__") not in ("__main__", _MAIN)
        or type(own) is not constructor
        or own.__module__ != _MAIN
        or own.__qualname__ != qualname
        or own in cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS
        or types.resolve_bases(cloudpickle._get_bases(own)) != types.resolve_bases(bases)
        or ("__slots__" in own.__dict__) != ("__slots__" in body)
        or not all(type(own.__dict__.get(name)) in _SLOTS for name in body.get("__slots__", ()))
    ):
        return None
    _adopted.add(own)
    return cloudpickle._lookup_class_or_track(tracker, own)


def own_state(cls: type, state: Any) -> Any:
    """Of the state of a class that has arrived, what the script's own class has otherwise."""
    if cls not in _adopted:
        return state
    body, slots = state
    own = cls.__dict__
    return {
        name: value
        for name, value in body.items()
        if name != "__module__" and not (name in own and _is_same(own[name], value, name))
    }, slots


def _is_same(own: Any, value: Any, name: str) -> bool:
    """Is what an attribute of the script's class is bound to as good as the owner's?

    A function is if its code is the same, another descriptor if its type is: to set them again
    would undo what decorators and metaclasses have made of them here.
    """
    kind = type(own)
    if kind is not type(value):
        return False
    if kind is types.FunctionType:
        if own.__code__ != value.__code__:
            return False
        return all(
            _is_equal(getattr(own, part), getattr(value, part))
            for part in ("__defaults__", "__kwdefaults__")
        )
    if kind is staticmethod or kind is classmethod:
        return _is_same(own.__func__, value.__func__, name)
    if kind is property:
        return all(
            _is_same(getattr(own, part), getattr(value, part), name)
            for part in ("fget", "fset", "fdel")
        )
    if name[:2] == "__" == name[-2:] or hasattr(kind, "__get__"):
        return True
    return _is_equal(own, value)


def _is_equal(own: Any, value: Any) -> bool:
    try:
        return type(own) is type(value) and bool(own == value)
    except Exception:
        return False
