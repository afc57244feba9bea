# SPDX-License-Identifier: BSD-3-Clause
"""How functions, arguments and results become bytes, and back.

The C pickler goes first, because it is ten times faster than anything written in Python.  Its
output is trusted unless it names a module that a fresh process could not import (``__main__``, a
notebook, a file loaded by hand), or unless it failed.  Then cloudpickle does the same object again
and sends functions and classes by value.  Four additions make by-value code behave like the code
the user wrote:

Namespaces.  Every by-value function of one module shares one dictionary of globals in a worker, so
that an initializer that says ``global model`` is seen by the task functions.  The owner stamps
each global with a version; a worker keeps its own binding until the owner really binds another
value, so ``model = None`` in the script does not undo what the initializer did.

A local function of an importable module that uses the module's functions or state runs on the
worker's own import of it instead.

Class identity.  A class keeps the id cloudpickle gave it.  In the direction owner -> worker the
newest state of the class is applied.  In the direction worker -> owner the owner's class always
wins and is never modified; most results then name their class by id alone.

Buffers.  Buffers of at least BUFFER_MIN bytes leave the stream (pickle protocol 5) and travel in
shared memory.  Arrays that a worker reads in place are read-only.

Blame.  When nothing works, the error names the place: ``args[0]['model'].lock``.

Everything that costs import time (cloudpickle most of all) is imported inside functions.
"""

from __future__ import annotations

import _pickle as pickle  # the C half; pickle.py would import re, codecs and more
import os
import sys
import types
from _operator import is_
from io import BytesIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

PROTOCOL = 5
BUFFER_MIN = 4096

_dumps = pickle.dumps
_loads = pickle.loads


class UnpicklableError(pickle.PicklingError, TypeError):
    """An object cannot be sent to another process; the message says which part of it, and why.

    Both a ``PicklingError`` and a ``TypeError``, because the standard library raises either.
    """


class _Missing:
    """The type of MISSING."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


#: Stands in a watch list for a global that is not bound and for an empty cell.
MISSING = _Missing()


# ---------------------------------------------------------------------------------------------
# Which modules can a fresh process import?
# ---------------------------------------------------------------------------------------------

# Modules that Cython invents to share its C types.  They hold no Python code to send by value.
_C_ONLY = ("_cython_", "cython_runtime")

_known: set[str] = {"builtins", "sys"}  # names that were judged, whatever the verdict
_strange: dict[str, bytes] = {}  # names no fresh process can import -> how a pickle spells them
_needles: tuple[bytes, ...] = ()
_modules_seen = -1  # len(sys.modules) at the last look


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


def _look_for_strange_modules() -> None:
    """Judge the modules imported since the last look.  Costs one comparison when there are none."""
    global _modules_seen
    if len(sys.modules) == _modules_seen:
        return
    names = list(sys.modules)
    for name in names:
        if name not in _known:
            _judge(name)
    _modules_seen = len(names)


def _names_strange_module(data: bytes) -> bool:
    """Whether the pickle *data* refers to a module that a fresh process cannot import."""
    if len(sys.modules) != _modules_seen:
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


# ---------------------------------------------------------------------------------------------
# Namespaces: one dictionary of globals per by-value module and worker
# ---------------------------------------------------------------------------------------------

# Owner: module -> name -> (value last sent, its version).  Only values whose identity says all are
# kept here; anything that can change in place gets a new version each time it is sent.
_sent: dict[str, dict[str, tuple[Any, int]]] = {}
_last_version = 0

# Worker: module -> the globals of its by-value functions; module -> name -> version received.
_namespaces: dict[str, dict[str, Any]] = {}
_received: dict[str, dict[str, int]] = {}


class _Globals(dict):  # type: ignore[type-arg]
    """Travels as a reference to the worker's namespace of one module."""

    def __init__(self, module: str, seed: dict[str, Any]) -> None:
        super().__init__(seed, __name__=module)

    def __reduce__(self) -> Any:
        return _namespace, (self["__name__"], dict(self))


def _namespace(module: str, seed: dict[str, Any]) -> dict[str, Any]:
    """Worker: the globals shared by all by-value functions of *module*."""
    found = _namespaces.get(module)
    if found is None:
        found = _namespaces[module] = seed
    return found


class _ModuleGlobals(dict):  # type: ignore[type-arg]
    """Travels as a reference to the globals of a module that the worker imports."""

    def __init__(self, module: str) -> None:
        super().__init__(__name__=module)

    def __reduce__(self) -> Any:
        return _module_globals, (self["__name__"],)


def _module_globals(module: str) -> dict[str, Any]:
    """Worker: the globals of an importable module."""
    __import__(module)
    return sys.modules[module].__dict__


def _wanted_module(fn: types.FunctionType) -> str | None:
    """The module that a worker must import to run a by-value function of an importable module.

    A lambda or closure that refers to constants and other modules only takes them along, and its
    own module is not imported for it.  One that uses its module's functions or state (a cache, a
    lock, a registry) runs on the worker's own copy of the module, as its named functions do.
    """
    module = _namespace_key(fn.__globals__)
    if module is None or not _judge(module):
        return None
    for name in _global_names(fn.__code__):
        value = fn.__globals__.get(name, MISSING)
        own = isinstance(value, (types.FunctionType, type)) and value.__module__ == module
        if own or not _Watch().is_constant(value):
            return module
    return None


def expects_code() -> bool:
    """Will functions or classes probably travel by value?  Then workers need cloudpickle at once.

    So it is where there is no file to import them from, as in a notebook, and where the main
    program defines some.  Not by a main() alone: that is no task.
    """
    main = sys.modules.get("__main__")
    if not hasattr(main, "__file__"):
        return True
    return any(
        isinstance(value, (types.FunctionType, type))
        and value.__module__ == "__main__"
        and name != "main"
        for name, value in list(vars(main).items())
    )


def _namespace_key(namespace: dict[str, Any]) -> str | None:
    """The module whose globals *namespace* is, or None for a dictionary made for exec()."""
    name = namespace.get("__name__")
    if not isinstance(name, str):
        return None
    if getattr(sys.modules.get(name), "__dict__", None) is namespace:
        return name
    return name if _namespaces.get(name) is namespace else None


def _version(module: str, name: str, value: Any) -> int:
    """Owner: the version of a global; the same number again only if nothing can have changed.

    The pid is part of it, so that a worker which is itself an owner never repeats the versions
    its own workers inherited by fork.
    """
    global _last_version
    names = _sent.setdefault(module, {})
    last = names.get(name)
    if last is not None and last[0] is value:
        return last[1]
    _last_version += 1
    version = os.getpid() << 32 | _last_version
    if isinstance(value, types.FunctionType):
        lasting = value.__closure__ is None or _found_by_name(value)
    else:
        watch = _Watch()
        lasting = watch.is_constant(value) and not watch.volatile
    if lasting:
        names[name] = (value, version)
    else:
        names.pop(name, None)
    return version


def _set_function_state(fn: Any, state: Any) -> None:
    """Worker: give a by-value function its state, keeping bindings the owner did not change."""
    setter, inner, module, versions = state
    received = _received.setdefault(module, {})
    incoming = inner[1]["__globals__"]
    current = fn.__globals__
    for name, version in versions.items():
        last = received.get(name, 0)
        # Versions of one owner only grow; a message that waited long must not bring old ones back.
        if last >> 32 == version >> 32 and last >= version and name in current:
            del incoming[name]
        else:
            received[name] = version
    setter(fn, inner)


# ---------------------------------------------------------------------------------------------
# Classes by value
# ---------------------------------------------------------------------------------------------

# Owner: classes of module level that were sent; results may name them by id, so they must live.
_pinned: dict[str, type] = {}
# Worker: weak map from a class received from the owner to the id under which the owner keeps it.
_from_owner: Any = None
# Weak sets: classes received from elsewhere and complete; classes born here and sent.
_received_classes: Any = None
_own_classes: Any = None
# Owner: the pickles of classes, see _ClassPickle.  They keep their classes alive, so the table is
# emptied when a program that makes classes without end has filled it.
_class_pickles: dict[type, _ClassPickle] = {}
_CLASSES_MAX = 1024
# Worker: id of a class -> (the version of the pickle it was loaded from, weak reference to it).
_loaded_classes: dict[str, tuple[int, Any]] = {}


def _class_tables() -> None:
    """Make the weak tables of classes on first use."""
    global _from_owner, _received_classes, _own_classes
    if _from_owner is None:
        import weakref

        _received_classes = weakref.WeakSet()
        _own_classes = weakref.WeakSet()
        _from_owner = weakref.WeakKeyDictionary()


def become_worker() -> None:
    """Forget, in a fork of the owner, that its classes were born here: their news is welcome."""
    if _own_classes is not None:
        _own_classes.clear()


def _make_class(maker: Callable[..., type], args: tuple[Any, ...], pinned: bool) -> type:
    """Find the class that *args* describe by its id, or make its skeleton."""
    cls = maker(*args)
    _class_tables()
    if pinned and cls not in _own_classes:
        _from_owner[cls] = args[-2]
    return cls


def _set_class_state(cls: type, state: Any) -> None:
    """Complete a class.  Nothing that comes back ever changes a class that was born here."""
    setter, inner, is_result = state
    if cls in _own_classes or (is_result and cls in _received_classes):
        return
    setter(cls, inner)
    _received_classes.add(cls)


def _load_class(tracker: str, version: int, data: bytes) -> type:
    """Worker: a class from its own pickle, which is read only if it is not the one we have."""
    loaded = _loaded_classes.get(tracker)
    if loaded is not None and loaded[0] == version:
        cls = loaded[1]()
        if cls is not None:
            return cls  # type: ignore[no-any-return]
    import weakref

    cls = _loads(data)
    if len(_loaded_classes) >= _CLASSES_MAX:
        _loaded_classes.clear()
    _loaded_classes[tracker] = (version, weakref.ref(cls))
    return cls  # type: ignore[no-any-return]


class _ClassPickle:
    """The pickle of one by-value class, kept while nothing it depends on was bound anew.

    Pickling a small dataclass by value takes 100 us and reading it as long; with this, an instance
    costs 10 us to send and its class is read once per worker.
    """

    # What the language and dataclasses, enum, abc put in a class; it changes with the class only.
    GENERATED = frozenset(
        {
            "__annotations__",
            "__annotations_cache__",
            "__abstractmethods__",
            "__dataclass_fields__",
            "__dataclass_params__",
            "__dict__",
            "__slots__",
            "__slotnames__",
            "__weakref__",
            "_abc_impl",
            "_member_map_",
            "_member_names_",
            "_value2member_map_",
            "_hashable_values_",
            "_unhashable_values_",
            "_unhashable_values_map_",
            "_field_defaults",
        }
    )

    def __init__(self, cls: type, data: bytes, tracker: str) -> None:
        global _last_version
        _last_version += 1
        self.reduced = (_load_class, (tracker, os.getpid() << 32 | _last_version, data))
        self.watch = _Watch()
        self.bodies: list[tuple[Any, list[Any]]] = []
        for base in cls.__mro__:
            if base is not cls and _found_by_name(base):
                continue
            self.bodies.append((base.__dict__, list(base.__dict__.values())))
            for name, value in list(base.__dict__.items()):
                value = getattr(value, "__func__", value)
                if isinstance(value, property):
                    for part in (value.fget, value.fset, value.fdel):
                        self.watch.add(part)
                elif name not in self.GENERATED and not isinstance(value, types.FunctionType):
                    self.watch.add(value)
        self.watch.add_class(cls)

    def is_right(self) -> bool:
        """Whether pickling the class again would give the same."""
        if self.watch.volatile:
            return False
        for body, values in self.bodies:
            if len(body) != len(values) or not all(map(is_, body.values(), values)):
                return False
        return self.watch.is_unchanged()


def _class_by_id(tracker: str, name: str) -> type:
    """Owner: the class that a result names by id."""
    cls = _pinned.get(tracker)
    if cls is None:
        from cloudpickle import cloudpickle

        cls = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    if cls is None:
        raise pickle.UnpicklingError(f"the class {name} of this result is gone in this process")
    return cls


def _make_cached(fn: Any, parameters: dict[str, Any]) -> Any:
    """Rebuild a functools.lru_cache around a by-value function; its cache starts empty."""
    import functools

    return functools.lru_cache(**parameters)(fn)


def _make_view(buffer: Any, fmt: str, shape: tuple[int, ...]) -> memoryview:
    """Rebuild a memoryview over a received buffer."""
    view = memoryview(buffer).cast("B")
    if fmt == "B" and len(shape) == 1:
        return view
    return view.cast(fmt, shape)  # type: ignore[call-overload]


_by_value: type | None = None


def _by_value_pickler() -> Any:
    """The pickler that sends code by value; made on first use because it imports cloudpickle."""
    global _by_value
    if _by_value is not None:
        return _by_value
    try:
        from cloudpickle import cloudpickle
    except ImportError as exc:
        raise ImportError(
            "sending a function or class by value needs cloudpickle: pip install cloudpickle"
        ) from exc
    import functools

    _class_tables()
    cached_function = type(functools.lru_cache(int))

    class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
        """cloudpickle's pickler with namespaces, class identity and buffers as described above."""

        def __init__(
            self, file: Any, buffer_callback: Any, is_result: bool, inline_classes: bool = False
        ) -> None:
            super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
            self.is_result = is_result
            self.inline_classes = inline_classes
            self.chosen_globals: dict[tuple[int, str | None], Any] = {}

        def _function_getnewargs(self, func: Any) -> Any:
            where = id(func.__globals__)
            if not self.is_result:
                wanted = _wanted_module(func)
                key = _namespace_key(func.__globals__) if wanted is None else wanted
                chosen = self.chosen_globals.get((where, wanted))
                if chosen is None and wanted is not None:
                    chosen = _ModuleGlobals(wanted)
                elif chosen is None and key is not None:
                    names = ("__package__", "__path__", "__file__")
                    seed = {k: func.__globals__[k] for k in names if k in func.__globals__}
                    chosen = _Globals(key, seed)
                if chosen is not None:
                    self.chosen_globals[where, wanted] = self.globals_ref[where] = chosen
            return super()._function_getnewargs(func)

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is memoryview:
                return self._reduce_view(obj)
            if kind is cached_function and not _found_by_name(obj):
                return _make_cached, (obj.__wrapped__, obj.cache_parameters())
            is_class = issubclass(kind, type)
            if not is_class and kind is not types.FunctionType:
                return NotImplemented
            if self.is_result:
                if _resolve(obj.__module__, obj.__qualname__) is obj:
                    return NotImplemented  # a fork of the owner: the owner has it by name
                if is_class and obj in _from_owner:
                    return _class_by_id, (_from_owner[obj], obj.__qualname__)
            elif is_class and not self.inline_classes and not _found_by_name(obj):
                kept = _class_pickles.get(obj)
                if kept is not None and kept.is_right():
                    return kept.reduced
                kept = self._pickle_class(obj)
                if kept is not None:
                    return kept.reduced
            reduced = super().reducer_override(obj)
            if type(reduced) is not tuple or len(reduced) != 6:
                return reduced
            maker, args, state, _, _, setter = reduced
            if is_class:
                pinned = not self.is_result and "<locals>" not in obj.__qualname__
                if pinned:
                    _pinned[args[-2]] = obj
                if obj not in _received_classes:
                    _own_classes.add(obj)
                state = (setter, state, self.is_result)
                return _make_class, (maker, args, pinned), state, None, None, _set_class_state
            globals_sent = args[1]
            if type(globals_sent) is _ModuleGlobals:
                state[1]["__globals__"] = {}
            if type(globals_sent) is not _Globals:
                return reduced
            module = globals_sent["__name__"]
            versions = {k: _version(module, k, v) for k, v in state[1]["__globals__"].items()}
            state = (setter, state, module, versions)
            return maker, args, state, None, None, _set_function_state

        @staticmethod
        def _pickle_class(cls: type) -> _ClassPickle | None:
            """A pickle of *cls* alone, or None if what it refers to can change in place."""
            reduced = cloudpickle._class_reduce(cls)
            if type(reduced) is not tuple or len(reduced) != 6:
                return None
            file = BytesIO()
            ByValue(file, None, False, inline_classes=True).dump(cls)
            kept = _ClassPickle(cls, file.getvalue(), reduced[1][-2])
            if kept.watch.volatile:
                return None
            if len(_class_pickles) >= _CLASSES_MAX:
                _class_pickles.clear()
            _class_pickles[cls] = kept
            return kept

        @staticmethod
        def _reduce_view(view: memoryview) -> Any:
            if view.c_contiguous and len(view.format) == 1 and 0 not in (view.ndim, view.nbytes):
                return _make_view, (pickle.PickleBuffer(view), view.format, view.shape)
            return bytes, (view.tobytes(),)

    _by_value = ByValue
    return ByValue


def _dump_by_value(obj: Any, buffer_callback: Any, is_result: bool) -> bytes:
    """Pickle with code by value.  Raises whatever the object's own hooks raise."""
    pickler = _by_value_pickler()
    from cloudpickle import cloudpickle

    # The public way to tell cloudpickle that a module in sys.modules cannot be imported elsewhere.
    added = []
    for name in list(_strange):
        module = sys.modules.get(name)
        if (
            name != "__main__"
            and isinstance(module, types.ModuleType)
            and module.__name__ in sys.modules
            and module.__name__ not in cloudpickle.list_registry_pickle_by_value()
        ):
            cloudpickle.register_pickle_by_value(module)
            added.append(module)
    try:
        file = BytesIO()
        pickler(file, buffer_callback, is_result).dump(obj)
        return file.getvalue()
    finally:
        for module in added:
            try:
                cloudpickle.unregister_pickle_by_value(module)
            except ValueError:
                pass  # another thread was first


# ---------------------------------------------------------------------------------------------
# The entry points
# ---------------------------------------------------------------------------------------------


def dumps(obj: Any, name: str = "value") -> tuple[bytes, list[memoryview]]:
    """Pickle *obj* for a worker: the stream, and the large buffers that travel beside it.

    The buffers are contiguous one-dimensional views of bytes, in the order in which loads() wants
    them; they keep *obj*'s memory alive.  *name* is what error messages call *obj*.

    Raises UnpicklableError naming the part of *obj* that cannot be sent.
    """
    buffers: list[memoryview] = []

    def callback(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BUFFER_MIN:
            return True
        buffers.append(raw)
        return False

    plain = None
    try:
        plain = _dumps(obj, PROTOCOL, buffer_callback=callback)
        if not _names_strange_module(plain):
            return plain, buffers
    except Exception:
        pass
    plain_buffers = buffers.copy()
    buffers.clear()
    try:
        return _dump_by_value(obj, callback, False), buffers
    except Exception as exc:
        if plain is not None and not _needs_value(plain):
            return plain, plain_buffers
        raise _explain(obj, name, exc, False) from _cause(exc)


def dumps_result(obj: Any, name: str = "result") -> tuple[bytes, list[memoryview]]:
    """Pickle *obj* in a worker for its owner; like dumps() in all else.

    What a worker can pickle by name the owner can find by name, for it is where the worker's
    modules came from.  Classes that came from the owner by value go back as their id.
    """
    buffers: list[memoryview] = []

    def callback(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BUFFER_MIN:
            return True
        buffers.append(raw)
        return False

    try:
        return _dumps(obj, PROTOCOL, buffer_callback=callback), buffers
    except Exception:
        buffers.clear()
    try:
        return _dump_by_value(obj, callback, True), buffers
    except Exception as exc:
        raise _explain(obj, name, exc, True) from _cause(exc)


def dumps_inband(obj: Any, name: str = "value", is_result: bool = False) -> bytes:
    """Pickle *obj* into one string of bytes, large buffers included."""
    plain = None
    try:
        plain = _dumps(obj, PROTOCOL)
        if is_result or not _names_strange_module(plain):
            return plain
    except Exception:
        pass
    try:
        return _dump_by_value(obj, None, is_result)
    except Exception as exc:
        if plain is not None and not _needs_value(plain):
            return plain
        raise _explain(obj, name, exc, is_result) from _cause(exc)


def dumps_function(fn: Any) -> bytes:
    """Pickle a callable for a worker.

    By name if a fresh process can import it: functions and classes of importable modules,
    builtins.  By value otherwise: everything from ``__main__``, a notebook, a module that cannot
    be found again; lambdas, closures, local functions.  Bound methods, partials and callable
    instances follow the same rule part by part.

    Raises UnpicklableError naming the function and the variable in it that cannot be sent, and
    TypeError if *fn* is not callable.
    """
    if not callable(fn):
        raise TypeError(f"a function is needed, not {_describe(fn)}")
    return dumps_inband(fn, _function_name(fn))


def loads(data: Any, buffers: Any = ()) -> Any:
    """Undo dumps(), dumps_result() and dumps_function().

    *buffers* are objects with the buffer protocol in the order dumps() gave them.  Arrays lie in
    them without a copy, and are read-only where the buffer is.  Unpickling runs user code, so any
    exception may come out of it.
    """
    return _loads(data, buffers=buffers)


def _needs_value(data: bytes) -> bool:
    """Whether a pickle by name is certain to fail in a worker.

    It is if it names Python code of a module nobody can import.  Modules that extensions make up
    to hold C types are strange too, but importing the extension makes them, so a name may do.
    """
    for name, needle in list(_strange.items()):
        if needle in data:
            members = getattr(sys.modules.get(name), "__dict__", {})
            for value in [*members.values()]:
                inside = value.__dict__.values() if isinstance(value, type) else (value,)
                if any(type(member) is types.FunctionType for member in inside):
                    return True
    return False


# ---------------------------------------------------------------------------------------------
# Watching by-value functions for changes
# ---------------------------------------------------------------------------------------------

_SCALARS = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        range,
        slice,
        type(Ellipsis),
        type(NotImplemented),
        _Missing,
        types.CodeType,
        types.MethodDescriptorType,
        types.WrapperDescriptorType,
        types.ClassMethodDescriptorType,
        types.GetSetDescriptorType,
        types.MemberDescriptorType,
        types.GenericAlias,
        types.UnionType,
    }
)

# Types of other modules whose instances never change what they pickle as.  Named, not imported: if
# the module is not loaded there are no instances.
_CONSTANT_TYPES = (
    ("re", "Pattern"),
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
    ("datetime", "date"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("zoneinfo", "ZoneInfo"),
    ("uuid", "UUID"),
    ("pathlib", "PurePath"),
    ("logging", "Logger"),
    ("operator", "itemgetter"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("typing", "TypeVar"),
    ("numpy", "generic"),
    ("numpy", "dtype"),
    ("numpy", "ufunc"),
)

#: Further types whose instances are constant for their lifetime; other modules may add theirs.
IMMUTABLE_TYPES: set[type] = set()

_WATCH_LIMIT = 2000


class _Watch:
    """Collects what the pickle of a by-value function depends on."""

    def __init__(self) -> None:
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        self.cells: list[tuple[Any, Any]] = []
        self.volatile = False
        self._seen: dict[int, Any] = {}
        self._budget = _WATCH_LIMIT

    def is_constant(self, value: Any) -> bool:
        """Whether *value* has no part that can change in place; watches functions on the way."""
        if type(value) in _SCALARS:
            return True
        if id(value) in self._seen:
            return True
        self._seen[id(value)] = value
        self._budget -= 1
        if self._budget < 0:
            return False
        kind = type(value)
        if kind is tuple or kind is frozenset:
            return all([self.is_constant(item) for item in value])
        if kind is types.FunctionType:
            if not _found_by_name(value):
                self.add_function(value)
            return True
        if isinstance(value, type):
            if not _found_by_name(value):
                self.add_class(value)
            return True
        if isinstance(value, types.ModuleType):
            return _judge(value.__name__)
        if kind is types.BuiltinFunctionType:
            return value.__self__ is None or self.is_constant(value.__self__)
        if kind is types.MethodType:
            return self.is_constant(value.__func__) and self.is_constant(value.__self__)
        if kind in IMMUTABLE_TYPES:
            return True
        for module, name in _CONSTANT_TYPES:
            loaded = sys.modules.get(module)
            if loaded is not None and isinstance(value, getattr(loaded, name, ())):
                return True
        return self._is_constant_instance(value)

    def _is_constant_instance(self, value: Any) -> bool:
        kind = type(value)
        if _found_by_name(value):
            return True
        functools = sys.modules.get("functools")
        if functools is not None:
            if kind is functools.partial:
                parts = (value.func, value.args, *value.keywords.values())
                return not value.__dict__ and all([self.is_constant(part) for part in parts])
            if kind.__name__ == "_lru_cache_wrapper" and hasattr(value, "__wrapped__"):
                return self.is_constant(value.__wrapped__)
        enum = sys.modules.get("enum")
        if enum is not None and isinstance(value, enum.Enum):
            return self.is_constant(kind)
        if isinstance(value, tuple) and not getattr(value, "__dict__", None):
            return self.is_constant(kind) and all([self.is_constant(item) for item in value])
        frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
        if frozen:
            fields = [getattr(value, name, None) for name in kind.__dataclass_fields__]
            return self.is_constant(kind) and all([self.is_constant(field) for field in fields])
        return False

    def add(self, value: Any) -> None:
        """Watch *value*; note if it can change in place."""
        if not self.is_constant(value):
            self.volatile = True

    def is_unchanged(self) -> bool:
        """Whether every watched binding is as it was."""
        for namespace, name, value in self.names:
            if namespace.get(name, MISSING) is not value:
                return False
        for cell, value in self.cells:
            try:
                if cell.cell_contents is not value:
                    return False
            except ValueError:
                if value is not MISSING:
                    return False
        return True

    def add_globals(self, fn: types.FunctionType) -> None:
        """Watch the globals that a by-value function takes along."""
        if _wanted_module(fn) is not None:
            return
        namespace = fn.__globals__
        for name in _global_names(fn.__code__):
            value = namespace.get(name, MISSING)
            self.names.append((namespace, name, value))
            self.add(value)

    def add_function(self, fn: types.FunctionType) -> None:
        """Watch the globals, cells, defaults and attributes of a by-value function."""
        self.add_globals(fn)
        for cell in fn.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                value = MISSING
            self.cells.append((cell, value))
            self.add(value)
        for value in fn.__defaults__ or ():
            self.add(value)
        for value in (fn.__kwdefaults__ or {}).values():
            self.add(value)
        for name, value in fn.__dict__.items():
            self.names.append((fn.__dict__, name, value))
            self.add(value)

    def add_class(self, cls: type) -> None:
        """Watch the globals that the methods of a by-value class refer to, nothing else of it.

        The cells of methods are left out: they hold ``__class__`` and the book-keeping of
        decorators (every dataclass has a set in one), which would make each such class volatile.
        """
        for base in cls.__mro__:
            if base is not cls and _found_by_name(base):
                continue
            for member in list(base.__dict__.values()):
                if isinstance(member, property):
                    functions = [member.fget, member.fset, member.fdel]
                else:
                    functions = [getattr(member, "__func__", member)]
                for fn in functions:
                    if isinstance(fn, types.FunctionType) and not _found_by_name(fn):
                        self.add_globals(fn)


def _global_names(code: types.CodeType) -> list[str]:
    """The globals that *code* and the functions defined in it refer to."""
    try:
        from cloudpickle import cloudpickle

        return list(cloudpickle._extract_code_globals(code))
    except (ImportError, AttributeError):
        names = dict.fromkeys(code.co_names)
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                names.update(dict.fromkeys(_global_names(const)))
        return list(names)


def function_watch(
    fn: Any,
) -> tuple[list[tuple[dict[str, Any], str, Any]], list[tuple[Any, Any]], bool] | None:
    """What dumps_function(fn) depends on, so that C can tell cheaply if it is still right.

    None: *fn* travels by name, its pickle is right for ever.  Otherwise ``(names, cells,
    volatile)``:

    names     list of (dict, name, value): right while ``dict[name] is value`` for each entry;
              *value* is MISSING where the name was not bound.
    cells     list of (cell, value): right while the cell's contents *is* value; MISSING where
              the cell was empty.
    volatile  the function captured something that can change in place (a list, an array, an
              instance), so identity proves nothing: pickle it again for every call.

    The values are kept alive by the lists, hence a new object can never take an old one's
    address.  Not watched: a new ``__code__`` or new attributes on the function itself, and
    attributes bound on a class later.
    """
    kind = type(fn)
    if kind is types.FunctionType or isinstance(fn, type):
        if _found_by_name(fn):
            return None
    elif kind is types.BuiltinFunctionType:
        if fn.__self__ is None or isinstance(fn.__self__, types.ModuleType):
            return None
    elif kind in _SCALARS or _found_by_name(fn):
        return None
    watch = _Watch()
    watch.add(fn)
    return watch.names, watch.cells, watch.volatile


# ---------------------------------------------------------------------------------------------
# Blame: the path to the part that cannot be pickled
# ---------------------------------------------------------------------------------------------

_NODE_LIMIT = 10_000
_SEARCH_SECONDS = 2.0


def _describe(obj: Any) -> str:
    """A short, safe description of any object for a message."""
    try:
        text = repr(obj)
    except Exception:
        text = f"<{type(obj).__name__} object>"
    return text if len(text) <= 80 else text[:77] + "..."


def _function_name(fn: Any) -> str:
    """What to call a callable in a message."""
    if hasattr(fn, "func") and hasattr(fn, "keywords"):
        return f"partial({_function_name(fn.func)})"
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else type(fn).__qualname__ + " object"


def _children(obj: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The parts of *obj* that a pickler visits, each with the path a user would write for it."""
    kind = type(obj)
    if isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield f"{path}[{_describe(key)}]", value
        for key in list(obj):
            yield f"{path} key {_describe(key)}", key
        if kind is dict:
            return
    if isinstance(obj, (list, tuple)):
        fields = getattr(obj, "_fields", None)
        for i, value in enumerate(obj):
            yield (f"{path}.{fields[i]}" if fields else f"{path}[{i}]"), value
        if kind in (list, tuple):
            return
    if isinstance(obj, (set, frozenset)):
        for value in list(obj):
            yield f"{path} element {_describe(value)}", value
        if kind in (set, frozenset):
            return
    if kind is types.FunctionType:
        for name in _global_names(obj.__code__) if _wanted_module(obj) is None else ():
            if name in obj.__globals__:
                yield f"{path} -> global {name}", obj.__globals__[name]
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=False):
            try:
                yield f"{path} -> closure variable {name}", cell.cell_contents
            except ValueError:
                pass
        for i, value in enumerate(obj.__defaults__ or ()):
            yield f"{path} -> default value {i}", value
        for name, value in (obj.__kwdefaults__ or {}).items():
            yield f"{path} -> default of {name}", value
        for name, value in list(obj.__dict__.items()):
            yield f"{path}.{name}", value
    elif kind is types.MethodType:
        yield f"{path}.__self__", obj.__self__
        yield path, obj.__func__
    elif isinstance(obj, type):
        for name, value in list(obj.__dict__.items()):
            if name not in ("__dict__", "__weakref__"):
                yield f"{path}.{name}", getattr(value, "__func__", value)
    elif kind.__name__ == "_lru_cache_wrapper":
        yield path, obj.__wrapped__
    elif kind.__name__ == "partial" and hasattr(obj, "keywords"):
        yield f"{path}.func", obj.func
        yield f"{path}.args", obj.args
        yield f"{path}.keywords", obj.keywords
    elif not isinstance(obj, types.ModuleType):
        yield from _parts_of_instance(obj, path)


def _parts_of_instance(obj: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The parts of an object that is pickled through its reduce method."""
    try:
        reduced = obj.__reduce_ex__(PROTOCOL)
    except Exception:
        # What it holds may still be the reason, so look at the attributes.
        yield from _attributes(getattr(obj, "__dict__", None), path)
        return
    if not isinstance(reduced, tuple):
        return
    args, state, items, pairs = (tuple(reduced) + (None,) * 5)[1:5]
    yield from _attributes(state, path)
    for i, value in enumerate(args or ()):
        if value is not type(obj):
            yield f"{path} (argument {i} of its constructor)", value
    for i, value in enumerate(items or ()):
        yield f"{path}[{i}]", value
    for key, value in pairs or ():
        yield f"{path}[{_describe(key)}]", value
    yield f"{path} (its class)", type(obj)


def _attributes(state: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The attributes in what __getstate__ gave."""
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        yield from _attributes(state[0], path)
        state = state[1]
    if isinstance(state, dict):
        for name, value in list(state.items()):
            yield (f"{path}.{name}" if isinstance(name, str) else f"{path} state"), value
    elif state is not None:
        yield f"{path} (its state)", state


def _failure(obj: Any, is_result: bool) -> Exception | None:
    """Why *obj* alone cannot be pickled, or None if it can."""
    try:
        _dump_by_value(obj, lambda buffer: False, is_result)
    except Exception as exc:
        return exc
    return None


def find_path(
    obj: Any, name: str = "value", is_result: bool = False
) -> tuple[str, Any, Exception] | None:
    """Find the smallest part of *obj* that cannot be pickled.

    Returns its path written from *name*, the part, and the exception; None if *obj* can be
    pickled.  Looks at no more than 10,000 parts and for no more than two seconds, and gives the
    deepest it has found by then.  Cycles are safe.
    """
    reason = _failure(obj, is_result)
    if reason is None:
        return None
    import time

    deadline = time.monotonic() + _SEARCH_SECONDS
    best = (name, obj, reason)
    seen = {id(obj): obj}  # keeps temporary states alive, so that ids stay unique
    # Each level: its culprit so far, the parts left to try, whether a part was met before.
    stack: list[list[Any]] = [[best, _children(obj, name), False]]
    nodes = 0
    while stack:
        level = stack[-1]
        deeper = None
        for path, part in level[1]:
            nodes += 1
            if nodes > _NODE_LIMIT or time.monotonic() > deadline:
                return best
            if type(part) in _SCALARS:
                continue
            if id(part) in seen:
                level[2] = True
                continue
            reason = _failure(part, is_result)
            if reason is not None:
                seen[id(part)] = part
                deeper = (path, part, reason)
                break
        if deeper is not None:
            if len(deeper[0]) > 400:
                return best
            best = deeper
            stack.append([deeper, _children(deeper[1], deeper[0]), False])
        elif not level[2]:
            return level[0]  # type: ignore[no-any-return]
        else:
            # It fails, perhaps only because it leads back to something above: try its siblings.
            stack.pop()
            best = level[0]
    return best


_ADVICE = (
    ("generator", "make it a list first"),
    ("lock", "create it in the worker, or with initializer="),
    ("RLock", "create it in the worker, or with initializer="),
    ("TextIOWrapper", "send the path and open the file in the worker"),
    ("Buffered", "send the path and open the file in the worker"),
    ("socket", "open it in the worker, or with initializer="),
    ("SSLContext", "make it in the worker, or with initializer="),
    ("Connection", "open it in the worker, or with initializer="),
    ("weakref", "send the object itself"),
    ("ReferenceType", "send the object itself"),
    ("frame", "send only the values that are needed"),
    ("traceback", "send traceback.format_tb() of it"),
    ("coroutine", "call it in the worker with asyncio.run()"),
)


def _advice(part: Any, is_result: bool) -> str:
    if is_result:
        return "return plain data in its place, or give its class a __reduce__ method"
    kind = type(part).__name__
    for word, advice in _ADVICE:
        if word in kind:
            return advice
    return "create it in the worker (initializer=), or give its class a __reduce__ method"


def _cause(exc: Exception) -> BaseException | None:
    """The user's own exception is worth a chain; the pickler's is already in the message."""
    own = (pickle.PicklingError, TypeError, AttributeError, RecursionError)
    return None if isinstance(exc, own) else exc


def _explain(obj: Any, name: str, exc: Exception, is_result: bool) -> Exception:
    """The exception to raise because *obj* could not be pickled for the reason *exc*."""
    if isinstance(exc, ImportError) and "cloudpickle" in str(exc):
        return exc
    if isinstance(exc, RecursionError) or isinstance(exc.__cause__, RecursionError):
        return UnpicklableError(
            f"{name}: nested too deeply to be pickled; send a flatter structure"
        )
    try:
        found = find_path(obj, name, is_result)
    except Exception:
        found = None
    path, part, reason = found if found is not None else (name, obj, exc)
    text = str(reason) or type(reason).__name__
    if not isinstance(reason, (pickle.PicklingError, TypeError, AttributeError)):
        text = f"{type(reason).__name__}: {text}"
    return UnpicklableError(f"{path}: {text}; {_advice(part, is_result)}")
