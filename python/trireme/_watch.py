# SPDX-License-Identifier: BSD-3-Clause
"""Is the pickle of a by-value function still right?

A function sent by value takes along what it refers to: globals, cells, defaults.  Pickling it again
for every call would cost more than most calls, so what it depends on is written down once, as
bindings that must still be the same objects.  That proves something only where those objects cannot
change in place; a function that refers to one that can is *volatile* and pickled for each call.

A class is what its body is bound to, and its bases' bodies are.  What the language, dataclasses,
enum, abc and typing keep there for themselves is compared like the rest, but not looked into: it
can change in place and means nothing to a worker.
"""

from __future__ import annotations

import gc
import sys
import types
from _operator import is_

from ._importable import MISSING, _found_by_name, _judge, _Missing, _namespace_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
    ("typing", "ParamSpec"),
    ("typing", "TypeVarTuple"),
    ("typing", "TypeAliasType"),
    ("typing", "_Final"),
    ("dataclasses", "Field"),
    ("dataclasses", "_MISSING_TYPE"),
    ("dataclasses", "_HAS_DEFAULT_FACTORY_CLASS"),
    ("attr", "Attribute"),
    ("_collections", "_tuplegetter"),
    ("numpy", "generic"),
    ("numpy", "dtype"),
    ("numpy", "ufunc"),
)

# numpy's scalars that are not: they have fields, which can be set.
_RECORDS = ("void", "record")

#: Further types whose instances are constant for their lifetime; other modules may add theirs.
IMMUTABLE_TYPES: set[type] = set()

# Attributes of classes that others than the user keep there.
_BOOKKEEPING = (
    "_abc_",
    "_member_",
    "_value2member_",
    "_hashable_values_",
    "_unhashable_values_",
    "_field_defaults",
)

_METHODS = (types.FunctionType, staticmethod, classmethod, property)

_WATCH_LIMIT = 2000


class _Watch:
    """Collects what the pickle of a by-value function depends on."""

    def __init__(self) -> None:
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        self.cells: list[tuple[Any, Any]] = []
        self.functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self.namespaces: list[tuple[dict[Any, Any], tuple[Any, ...], tuple[Any, ...]]] = []
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
        if kind is types.BuiltinFunctionType or kind is types.MethodWrapperType:
            return value.__self__ is None or self.is_constant(value.__self__)
        if kind is types.MethodType:
            return self.is_constant(value.__func__) and self.is_constant(value.__self__)
        if kind is staticmethod or kind is classmethod:
            return self.is_constant(value.__func__)
        if isinstance(value, (property, types.DynamicClassAttribute)) and _found_by_name(kind):
            return all([self.is_constant(part) for part in (value.fget, value.fset, value.fdel)])
        if kind in IMMUTABLE_TYPES:
            return True
        for module, name in _CONSTANT_TYPES:
            loaded = sys.modules.get(module)
            if loaded is not None and isinstance(value, getattr(loaded, name, ())):
                if kind.__module__.partition(".")[0] == module:
                    return kind.__name__ not in _RECORDS
                # Somebody's own class of such: it is constant if it adds no state.
                return not getattr(value, "__dict__", None) and self.is_constant(kind)
        return self._is_constant_instance(value)

    def _is_constant_instance(self, value: Any) -> bool:
        kind = type(value)
        if _found_by_name(value):
            return True
        functools = sys.modules.get("functools")
        if functools is not None:
            if kind is functools.partial:
                self.add_namespace(value.keywords)
                self.add_namespace(value.__dict__)
                return all([self.is_constant(part) for part in (value.func, value.args)])
            if kind is functools.partialmethod:
                parts = (value.func, value.args, *value.keywords.values())
                return all([self.is_constant(part) for part in parts])
            if kind is functools.cached_property:
                return self.is_constant(value.func)
            if kind is functools.singledispatchmethod:
                return self.is_constant(value.func) and self.is_constant(value.dispatcher)
            if kind.__name__ == "_lru_cache_wrapper" and hasattr(value, "__wrapped__"):
                self.add_namespace(value.__dict__)
                return self.is_constant(value.__wrapped__)
        enum = sys.modules.get("enum")
        if enum is not None and isinstance(value, enum.Enum):
            return self.is_constant(kind)
        if isinstance(value, tuple) and not getattr(value, "__dict__", None):
            return self.is_constant(kind) and all([self.is_constant(item) for item in value])
        # Not that of a base: a plain subclass can be changed.
        if getattr(kind.__dict__.get("__dataclass_params__"), "frozen", False):
            if hasattr(value, "__dict__"):
                self.add_namespace(value.__dict__)
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
        for fn, code, defaults, kwdefaults in self.functions:
            if (
                fn.__code__ is not code
                or fn.__defaults__ is not defaults
                or fn.__kwdefaults__ is not kwdefaults
            ):
                return False
        for namespace, names, values in self.namespaces:
            if len(namespace) != len(names):
                return False
            if names and not (
                all(map(is_, namespace, names)) and all(map(is_, namespace.values(), values))
            ):
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
        if _is_dispatcher(fn):
            self.add_namespace(_dict_behind(fn.registry))  # type: ignore[attr-defined]
            return
        for cell in fn.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                value = MISSING
            self.cells.append((cell, value))
            self.add(value)
        self.add_parts(fn)

    def add_parts(self, fn: types.FunctionType) -> None:
        """Watch what a function is made of: its code, defaults and attributes."""
        for value in fn.__defaults__ or ():
            self.add(value)
        self.functions.append((fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__))
        if fn.__kwdefaults__:
            self.add_namespace(fn.__kwdefaults__)
        self.add_namespace(fn.__dict__)

    def add_namespace(self, namespace: dict[Any, Any]) -> None:
        """Watch all that is bound in *namespace*, and that nothing is added."""
        self.namespaces.append((namespace, tuple(namespace), tuple(namespace.values())))
        for name, value in list(namespace.items()):
            if name != "__annotations__":
                self.add(value)

    def add_class(self, cls: type) -> None:
        """Watch the body of a by-value class, of its bases and of its metaclass."""
        for base in cls.__mro__:
            if base is not cls:
                if id(base) in self._seen or _found_by_name(base):
                    continue
                self._seen[id(base)] = base
            self.add_body(base)
        self.is_constant(type(cls))

    def add_body(self, cls: type) -> None:
        """Watch what the names in the body of a class are bound to."""
        body = _dict_behind(cls.__dict__)
        self.namespaces.append((body, tuple(body), tuple(body.values())))
        for name, value in list(body.items()):
            if isinstance(value, types.FunctionType):
                self.add_method(value)
            elif name.startswith("__") and name.endswith("__") and type(value) not in _METHODS:
                continue  # the language's, or a decorator's
            elif not name.startswith(_BOOKKEEPING):
                self.add(value)

    def add_method(self, fn: types.FunctionType) -> None:
        """Watch a function in a class.

        What decorators and the language put around it is a function of an importable module, and
        may hold state in its cells: a set against recursion in every dataclass, for one.  Only
        the functions and classes there are of interest.
        """
        if fn.__name__ in ("__annotate_func__", "__annotate__") or _found_by_name(fn):
            return
        if not _judge(fn.__globals__.get("__name__") or "__main__"):
            self.is_constant(fn)
            return
        if id(fn) in self._seen:
            return
        self._seen[id(fn)] = fn
        self.add_globals(fn)
        for cell in fn.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            if isinstance(value, types.FunctionType):
                self.cells.append((cell, value))
                self.add_method(value)
            elif isinstance(value, (*_METHODS, type)):
                self.cells.append((cell, value))
                self.add(value)


def _dict_behind(proxy: Any) -> dict[Any, Any]:
    """The dictionary that a mappingproxy shows: C looks names up in it, with no call of Python."""
    (found,) = [obj for obj in gc.get_referents(proxy) if isinstance(obj, dict)]
    return found


def _is_dispatcher(fn: types.FunctionType) -> bool:
    """Whether *fn* is what functools.singledispatch made of a function."""
    functools = sys.modules.get("functools")
    if functools is None or fn.__globals__ is not functools.__dict__:
        return False
    return hasattr(fn, "registry") and fn.__code__ in functools.singledispatch.__code__.co_consts


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
        if isinstance(value, (types.FunctionType, type)):
            if value.__module__ == module:
                return module
        elif not _Watch().is_constant(value):
            return module
    return None


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
) -> tuple[list[Any], list[Any], bool, list[Any], list[Any]] | None:
    """What dumps_function(fn) depends on, so that C can tell cheaply if it is still right.

    None: *fn* travels by name, its pickle is right for ever.  Otherwise ``(names, cells,
    volatile, functions, namespaces)``:

    names     list of (dict, name, value): right while ``dict[name] is value`` for each entry;
              *value* is MISSING where the name was not bound.
    cells     list of (cell, value): right while the cell's contents *is* value; MISSING where
              the cell was empty.
    volatile  the function captured something that can change in place (a list, an array, an
              instance), so identity proves nothing: pickle it again for every call.
    functions list of (function, code, defaults, kwdefaults): right while it has these objects.
    namespaces  list of (dict, names, values): right while these are all that the dict holds.
              The bodies of classes are among them.

    The values are kept alive by the lists, hence a new object can never take an old one's
    address.
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
    return watch.names, watch.cells, watch.volatile, watch.functions, watch.namespaces
