# SPDX-License-Identifier: BSD-3-Clause
"""Functions and classes by value: cloudpickle, with three additions.

They make by-value code behave like the code the user wrote:

Namespaces.  Every by-value function of one module shares one dictionary of globals in a worker,
which keeps its own binding of a global until the owner really binds another value: _bindings.py.
The owner stamps each global with a version.  An object that can change in place, as in ``cache =
{}``, has a new version when a digest of its pickle is another.  A name that was sent and is not
bound any more has a version too: the worker removes what it received.

A local function of an importable module that uses the module's functions or state runs on the
worker's own import of it instead.

Class identity.  A class keeps the id cloudpickle gave it.  In the direction owner -> worker the
newest state of the class is applied, and what was sent of it and is gone is removed.  In the
direction worker -> owner the owner's class always wins and is never modified; most results then
name their class by id alone.  A class that has slots is made with them.

Buffers.  A memoryview leaves the stream as the buffer it is over, like an array.

The functions that a pickle names (``_namespace``, ``_make_class``, ...) run where it is read.
"""

from __future__ import annotations

import _pickle as pickle  # the C half; pickle.py would import re, codecs and more
import os
import sys
import types
from _thread import _local
from io import BytesIO

from . import _bindings, _core, _enums
from ._importable import (
    MISSING,
    _found_by_name,
    _namespace_key,
    _resolve,
    _strange,
)
from ._watch import _global_names, _is_dispatcher, _wanted_module, _Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROTOCOL = 5


def expects_code(inherited: bool = False) -> bool:
    """Will functions or classes probably travel by value?  Then workers need cloudpickle at once.

    So it is where there is no file to import them from, as in a notebook, and where the main
    program defines some.  Not by a main() alone: that is no task.  inherited: what it has defined
    by now does not travel.
    """
    main = sys.modules.get("__main__")
    if not hasattr(main, "__file__"):
        return True
    return not inherited and any(
        isinstance(value, (types.FunctionType, type))
        and value.__module__ == "__main__"
        and name != "main"
        for name, value in list(vars(main).items())
    )


# ---------------------------------------------------------------------------------------------
# Namespaces: one dictionary of globals per by-value module and worker
# ---------------------------------------------------------------------------------------------

# Owner: module -> name -> (value last sent, its version, what says that it is the same).  Values
# whose identity does not say all are not kept (CHANGING stands for them): a digest of their pickle
# says whether they are what they were.  MISSING: the owner had sent the name and then deleted it.
_sent: dict[str, dict[str, tuple[Any, int, Any]]] = {}
_CHANGING = object()
_last_version = 0
# Owner: those whose digest is being made, which may lead to themselves; by thread.
_digesting = _local()

# Owner, by thread: `born` is what the workers for whom it pickles have inherited, or is not there;
# see multiprocessing/_born.py.  `own` is what workers leave of the script's globals that they have
# themselves, see multiprocessing/_script.py.
_target = _local()
# Worker: that module, if this worker has run the script.
_script: Any = None


class _Globals(dict):  # type: ignore[type-arg]
    """Travels as a reference to the worker's namespace of one module."""

    def __init__(self, module: str, seed: dict[str, Any]) -> None:
        super().__init__(seed, __name__=module)

    def __reduce__(self) -> Any:
        return _bindings.namespace, (self["__name__"], dict(self))


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


class _NotTwice(Exception):
    """An object that is to be pickled once for each time that it is sent."""


def _has_way(kind: type) -> bool:
    reduction = sys.modules.get("multiprocessing.reduction")
    return reduction is not None and kind in reduction.ForkingPickler._extra_reducers


def _digest(module: str, name: str, value: Any) -> Any:
    """Owner: 128 bits of what a global that can change in place is now, or None.

    None for what cannot be pickled, or only once for each journey: descriptors, and what libraries
    have their own ways for.
    """
    busy = _digesting.__dict__.setdefault("names", set())
    if (module, name) in busy:
        return 0, 0  # what leads here has it in its own digest
    buffers: list[Any] = []
    busy.add((module, name))
    try:
        file = BytesIO()
        _by_value_pickler()(file, buffers.append, False, once=False).dump(value)
        with file.getbuffer() as data:
            found = [_core._digest(data)]
        for buffer in buffers:
            with buffer.raw() as data:
                found.append(_core._digest(data))
        return found[0] if len(found) == 1 else tuple(found)
    except Exception:
        return None  # the journey itself will say why
    finally:
        busy.remove((module, name))
        for buffer in buffers:
            buffer.release()


def _version(module: str, name: str, value: Any) -> int:
    """Owner: the version of a global; the same number again only if nothing has changed.

    So what a worker's tasks or its initializer do to an object that is bound to a global stays in
    that worker until the owner's changes.

    The pid is part of it, so that a worker which is itself an owner never repeats the versions
    its own workers inherited by fork.
    """
    global _last_version
    names = _sent.setdefault(module, {})
    last = names.get(name)
    if last is not None and last[0] is value and last[2].is_unchanged():
        return last[1]
    if (module, name) in _digesting.__dict__.get("names", ()):
        return 0
    _last_version += 1
    version = os.getpid() << 32 | _last_version
    watch = _Watch()
    if not isinstance(value, types.FunctionType):
        lasting = watch.is_constant(value)
    elif _found_by_name(value) or _is_dispatcher(value):
        lasting = watch.is_constant(value)
    else:
        lasting = value.__closure__ is None
        watch.add_parts(value)  # its globals have versions of their own
    if lasting and not watch.volatile:
        names[name] = (value, version, watch)
        return version
    digest = _digest(module, name, value)
    last = names.get(name)
    if last is not None and last[0] is _CHANGING and digest is not None and last[2] == digest:
        return last[1]
    names[name] = (_CHANGING, version, digest)
    return version


def _versions(module: str, fn: types.FunctionType, bound: dict[str, Any]) -> dict[str, int]:
    """Owner: the versions of the globals that *fn* takes along, and of those now deleted."""
    versions = {name: _version(module, name, value) for name, value in bound.items()}
    sent = _sent.get(module, ())
    for name in _global_names(fn.__code__):
        if name in sent and name not in fn.__globals__:
            versions[name] = _version(module, name, MISSING)
    return versions


# Owner: says of a global whether functions leave it here.  multiprocessing/_ways.py sets it: locks
# and the like of multiprocessing's reach a worker by inheritance or initargs, and never in a call.
_stays: Callable[[Any], bool] | None = None


def _leave_behind(module: str, bound: dict[str, Any]) -> tuple[str, ...]:
    """Owner: take out of a function's globals what stays here, and return the names."""
    born = getattr(_target, "born", None)
    own = getattr(_target, "own", None)
    if _stays is None and born is None and own is None:
        return ()
    names = tuple(
        [
            name
            for name, value in bound.items()
            if (born is not None and born.has(module, name, value))
            or (_stays is not None and _stays(value))
            or (own is not None and own.has(module, name, value))
        ]
    )
    for name in names:
        del bound[name]
    return names


# ---------------------------------------------------------------------------------------------
# Classes by value
# ---------------------------------------------------------------------------------------------

# Owner: classes of module level that were sent; results may name them by id, so they must live.
_pinned: dict[str, type] = {}
# Worker: weak map from a class received from the owner to the id under which the owner keeps it.
_from_owner: Any = None
# Owner: weak map from a class to the names in its body that were ever sent.
_sent_attributes: Any = None
# Weak sets: classes received from elsewhere and complete; classes born here and sent.
_received_classes: Any = None
_own_classes: Any = None
# Owner: the pickles of classes, see _ClassPickle.  They keep their classes alive, so the table is
# emptied when a program that makes classes without end has filled it.
_class_pickles: dict[type, _ClassPickle] = {}
_CLASSES_MAX = 1024
# Worker: id of a class -> (the version of the pickle it was loaded from, weak reference to it, the
# versions of its functions' globals).
_loaded_classes: dict[str, tuple[int, Any, Any]] = {}


def _class_tables() -> None:
    """Make the weak tables of classes on first use."""
    global _from_owner, _received_classes, _own_classes, _sent_attributes
    if _from_owner is None:
        import weakref

        _received_classes = weakref.WeakSet()
        _own_classes = weakref.WeakSet()
        _from_owner = weakref.WeakKeyDictionary()
        _sent_attributes = weakref.WeakKeyDictionary()


def become_worker() -> None:
    """Forget, in a fork of the owner, that its classes were born here: their news is welcome."""
    _bindings.inherited.clear()
    if _own_classes is not None:
        _own_classes.clear()


def _keep_slots(cls: type, body: dict[str, Any], later: dict[str, Any]) -> None:
    """Have the skeleton of *cls* made with its slots: they cannot be added to a class later.

    cloudpickle leaves them out.  An instance then has a __dict__ in the worker, and its state does
    not fit the owner's class.  The members are the truth, not what was written as __slots__:
    private names in it are not mangled yet.
    """
    typing = sys.modules.get("typing")
    if typing is not None and typing.NamedTuple in cls.__dict__.get("__orig_bases__", ()):
        return  # it gives () itself, and refuses the name
    slots = []
    for name, value in cls.__dict__.items():
        if type(value) is types.MemberDescriptorType and value.__objclass__ is cls:
            slots.append(name)
        elif name in ("__dict__", "__weakref__") and type(value) is types.GetSetDescriptorType:
            slots.append(name)
    for name in slots:
        later.pop(name, None)
    body["__slots__"] = tuple(slots)


def _deleted_attributes(cls: type, now: dict[str, Any]) -> list[str]:
    """Owner: the names that were sent as part of the body of *cls* and are not in it any more."""
    ever = _sent_attributes.setdefault(cls, set())
    ever.update(now)
    return [name for name in ever if name not in cls.__dict__]


def _make_class(maker: Callable[..., type], args: tuple[Any, ...], pinned: str) -> type:
    """Find the class that *args* describe by its id, or make its skeleton.

    *pinned*: the qualified name of a class that its owner keeps, or "".
    """
    cls = _script.own_class(maker, args, pinned) if _script is not None and pinned else None
    if cls is None:
        cls = maker(*args)
    _class_tables()
    if pinned and cls not in _own_classes:
        _from_owner[cls] = args[-2]
    return cls


def _set_class_state(cls: type, state: Any) -> None:
    """Complete a class.  Nothing that comes back ever changes a class that was born here."""
    setter, inner, deleted, is_result, members = state
    if cls in _own_classes or (is_result and cls in _received_classes):
        return
    for name in deleted:
        if name in cls.__dict__:
            type.__delattr__(cls, name)
    setter(cls, inner if _script is None else _script.own_state(cls, inner))
    if members:
        _enums.set_attributes(cls, members)
    _received_classes.add(cls)


def _load_class(tracker: str, version: int, data: bytes) -> type:
    """Worker: a class from its own pickle, which is read only if it is not the one we have."""
    loaded = _loaded_classes.get(tracker)
    if loaded is not None and loaded[0] == version:
        cls = loaded[1]()
        if cls is not None:
            _bindings.use_part(loaded[2])
            return cls  # type: ignore[no-any-return]
    import weakref

    cls, versions = _bindings.load_part(data)
    if len(_loaded_classes) >= _CLASSES_MAX:
        _loaded_classes.clear()
    _loaded_classes[tracker] = (version, weakref.ref(cls), versions)
    return cls  # type: ignore[no-any-return]


class _ClassPickle:
    """The pickle of one by-value class, kept while nothing it depends on was bound anew.

    Pickling a small dataclass by value takes 100 us and reading it as long; with this, an instance
    costs 10 us to send and its class is read once per worker.
    """

    def __init__(self, cls: type, data: bytes, tracker: str) -> None:
        global _last_version
        _last_version += 1
        self.reduced = (_load_class, (tracker, os.getpid() << 32 | _last_version, data))
        self.watch = _Watch()
        self.watch.add(cls)

    def is_right(self) -> bool:
        """Whether pickling the class again would give the same."""
        return not self.watch.volatile and self.watch.is_unchanged()


def _class_by_id(tracker: str, name: str) -> type:
    """Owner: the class that a result names by id."""
    cls = _pinned.get(tracker)
    if cls is None:
        from cloudpickle import cloudpickle

        cls = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    if cls is None:
        raise pickle.UnpicklingError(f"the class {name} of this result is gone in this process")
    return cls


# ---------------------------------------------------------------------------------------------
# The pickler
# ---------------------------------------------------------------------------------------------


def _make_cached(fn: Any, parameters: dict[str, Any]) -> Any:
    """Rebuild a functools.lru_cache around a by-value function; its cache starts empty."""
    import functools

    return functools.lru_cache(**parameters)(fn)


# What descriptors of functools have for themselves in some versions of Python, and cannot send.
_OWN_TOOLS = ("lock", "_method_cache")


def _make_descriptor(kind: type, tools: tuple[str, ...]) -> Any:
    """Make an empty descriptor of functools with new tools; the rest is its state."""
    import threading
    import weakref

    made: Any = object.__new__(kind)
    for name in tools:
        setattr(made, name, threading.RLock() if name == "lock" else weakref.WeakKeyDictionary())
    return made


def _make_dispatcher(name: str) -> Any:
    """Make a functools.singledispatch function; its implementations come with its state.

    So they can refer to it.  *name* is what it calls itself in its messages.
    """
    import functools

    def nothing(*args: Any) -> None:
        """Is replaced by the state."""

    nothing.__name__ = name
    return functools.singledispatch(nothing)


def _set_dispatcher_state(fn: Any, state: Any) -> None:
    """Register the implementations, and give the function its attributes."""
    implementations, attributes, names = state
    for cls, implementation in implementations.items():
        fn.register(cls, implementation)
    fn.__dict__.update(attributes)
    for name, value in names.items():
        setattr(fn, name, value)


def _make_view(buffer: Any, fmt: str, shape: tuple[int, ...]) -> memoryview:
    """Rebuild a memoryview over a received buffer."""
    view = memoryview(buffer).cast("B")
    if fmt == "B" and len(shape) == 1:
        return view
    if len(shape) == 1:
        return view.cast(fmt)  # type: ignore[call-overload]
    return view.cast(fmt, shape)  # type: ignore[call-overload]


class DescriptorError(pickle.PicklingError):
    """A connection of multiprocessing's, which by its state is but the number of a descriptor.

    It would arrive as a connection to whatever has that number in the other process, and close
    that at its end.  Facades have a way for it: multiprocessing/_ways.py.
    """


_CONNECTIONS = ("multiprocessing.connection", "multiprocess.connection")


def _may_be_inherited() -> bool:
    """Is a pool open whose workers are forks?

    To them the number is right if the connection was there before, and nobody can say which were.
    """
    attend = sys.modules.get("trireme._attend")
    pools = [] if attend is None else list(attend._open_pools)
    return any(pool._start == "fork" and not pool._joined for pool in pools)


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
    descriptors = (functools.cached_property, functools.singledispatchmethod)

    class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
        """cloudpickle's pickler with namespaces, class identity and buffers as described above."""

        def __init__(
            self,
            file: Any,
            buffer_callback: Any,
            is_result: bool,
            inline_classes: bool = False,
            once: bool = True,
        ) -> None:
            super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
            self.is_result = is_result
            self.inline_classes = inline_classes
            self.once = once
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
            born = getattr(_target, "born", None)
            if not is_class and kind is not types.FunctionType:
                if born is not None and kind is types.MethodType and born.binds(obj):
                    return getattr, (obj.__self__, obj.__func__.__name__)
                if issubclass(kind, descriptors) and kind.__reduce__ is object.__reduce__:
                    return self._reduce_descriptor(obj)
                if not self.once and (hasattr(kind, "fileno") or _has_way(kind)):
                    raise _NotTwice
                if hasattr(kind, "fileno"):
                    self._check_way(kind)
                return NotImplemented
            if born is not None and (stand := born.stand(obj)) is not None:
                return stand.__reduce__()
            if self.is_result:
                if _resolve(obj.__module__, obj.__qualname__) is obj:
                    return NotImplemented  # a fork of the owner: the owner has it by name
                if is_class and obj in _from_owner:
                    return _class_by_id, (_from_owner[obj], obj.__qualname__)
            elif is_class and not self.inline_classes and born is None and not _found_by_name(obj):
                kept = _class_pickles.get(obj)
                if kept is not None and kept.is_right():
                    return kept.reduced
                kept = self._pickle_class(obj)
                if kept is not None:
                    return kept.reduced
            if not is_class and _is_dispatcher(obj) and not _found_by_name(obj):
                return self._reduce_dispatcher(obj)
            reduced = super().reducer_override(obj)
            if type(reduced) is not tuple or len(reduced) != 6:
                return reduced
            maker, args, state, _, _, setter = reduced
            if is_class:
                pinned = ""
                if not self.is_result and "<locals>" not in obj.__qualname__:
                    pinned = obj.__qualname__
                    _pinned[args[-2]] = obj
                if obj not in _received_classes:
                    _own_classes.add(obj)
                if "__slots__" in obj.__dict__ and maker is cloudpickle._make_skeleton_class:
                    _keep_slots(obj, args[3], state[0])
                members = None
                if maker is cloudpickle._make_skeleton_enum:
                    described, members = _enums.describe(obj, args, state[0])
                    if described is not None:
                        maker, args = _enums.make_enum, described
                deleted = _deleted_attributes(obj, state[0])
                state = (setter, state, deleted, self.is_result, members)
                return _make_class, (maker, args, pinned), state, None, None, _set_class_state
            globals_sent = args[1]
            if type(globals_sent) is _ModuleGlobals:
                state[1]["__globals__"] = {}
            if type(globals_sent) is not _Globals:
                return reduced
            module = globals_sent["__name__"]
            left = _leave_behind(module, state[1]["__globals__"])
            versions = _versions(module, obj, state[1]["__globals__"])
            state = (setter, state, module, versions, left)
            return maker, args, state, None, None, _bindings.set_function_state

        def _check_way(self, kind: type) -> None:
            if all(base.__module__ not in _CONNECTIONS for base in kind.__mro__):
                return
            try:
                self.dispatch_table[kind]
            except KeyError:
                if self.is_result or not _may_be_inherited():
                    raise DescriptorError(
                        f"a {kind.__name__} is a descriptor of this process, and no other has it"
                    ) from None

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
        def _reduce_descriptor(obj: Any) -> Any:
            tools = tuple(name for name in _OWN_TOOLS if name in obj.__dict__)
            if not tools:
                return NotImplemented
            rest = {k: v for k, v in obj.__dict__.items() if k not in tools}
            return _make_descriptor, (type(obj), tools), rest

        @staticmethod
        def _reduce_dispatcher(fn: Any) -> Any:
            made = ("register", "dispatch", "registry", "_clear_cache")
            attributes = {k: v for k, v in fn.__dict__.items() if k not in made}
            shown = ("__module__", "__name__", "__qualname__", "__doc__")
            state = (dict(fn.registry), attributes, {k: getattr(fn, k) for k in shown})
            return _make_dispatcher, (fn.__name__,), state, None, None, _set_dispatcher_state

        @staticmethod
        def _reduce_view(view: memoryview) -> Any:
            buffer: Any = view.tobytes()  # in the order of its items, whatever its strides are
            fmt = view.format.lstrip("@")
            shape = view.shape
            if len(fmt) != 1:
                fmt, shape = "B", (view.nbytes,)  # what a struct holds, which cast() cannot say
            elif view.c_contiguous and view.ndim and view.nbytes:
                buffer = pickle.PickleBuffer(view)
            elif not view.nbytes:
                shape = (0,)  # cast() knows no other shape without items
            return _make_view, (buffer, fmt, shape)

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
