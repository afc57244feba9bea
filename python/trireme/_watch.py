# SPDX-License-Identifier: BSD-3-Clause
"""Is the pickle of a by-value function still right?

A function sent by value takes along what it refers to: globals, cells, defaults.  Pickling it again
for every call would cost more than most calls, so what it depends on is written down once, as
bindings that must still be the same objects.  That proves something only where those objects cannot
change in place; a function that refers to one that can is *volatile* and pickled for each call.
"""

from __future__ import annotations

import sys
import types

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
        self.functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self.sizes: list[tuple[dict[str, Any], int]] = []
        self.classes = False
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
                self.sizes.append((value.__dict__, 0))
                return not value.__dict__ and all([self.is_constant(part) for part in parts])
            if kind.__name__ == "_lru_cache_wrapper" and hasattr(value, "__wrapped__"):
                self.add_attributes(value)
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
        for fn, *parts in self.functions:
            now = fn.__code__, fn.__defaults__, fn.__kwdefaults__
            if not all([a is b for a, b in zip(now, parts, strict=True)]):
                return False
        return all(len(namespace) == size for namespace, size in self.sizes)

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
        self.add_parts(fn)

    def add_parts(self, fn: types.FunctionType) -> None:
        """Watch what a function is made of: its code, defaults and attributes."""
        for value in fn.__defaults__ or ():
            self.add(value)
        self.functions.append((fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__))
        if fn.__kwdefaults__:
            self.add_namespace(fn.__kwdefaults__)
        self.add_attributes(fn)

    def add_attributes(self, value: Any) -> None:
        """Watch the attributes of a function or of what wraps one."""
        self.add_namespace(value.__dict__)

    def add_namespace(self, namespace: dict[str, Any]) -> None:
        """Watch all that is bound in *namespace*, and that nothing is added."""
        self.sizes.append((namespace, len(namespace)))
        for name, value in namespace.items():
            self.names.append((namespace, name, value))
            self.add(value)

    def add_class(self, cls: type) -> None:
        """Watch the globals that the methods of a by-value class refer to, nothing else of it.

        The cells of methods are left out: they hold ``__class__`` and the book-keeping of
        decorators (every dataclass has a set in one), which would make each such class volatile.
        """
        self.classes = True
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
) -> tuple[list[Any], list[Any], bool, list[Any], list[Any], bool] | None:
    """What dumps_function(fn) depends on, so that C can tell cheaply if it is still right.

    None: *fn* travels by name, its pickle is right for ever.  Otherwise ``(names, cells,
    volatile, functions, sizes, classes)``:

    names     list of (dict, name, value): right while ``dict[name] is value`` for each entry;
              *value* is MISSING where the name was not bound.
    cells     list of (cell, value): right while the cell's contents *is* value; MISSING where
              the cell was empty.
    volatile  the function captured something that can change in place (a list, an array, an
              instance), so identity proves nothing: pickle it again for every call.
    functions list of (function, code, defaults, kwdefaults): right while it has these objects.
    sizes     list of (dict, size): right while nothing was added to the dict.
    classes   a class travels along, and attributes bound on one later are not watched: a map,
              which is for many items, should pickle it again.

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
    return (
        watch.names,
        watch.cells,
        watch.volatile,
        watch.functions,
        watch.sizes,
        watch.classes,
    )
