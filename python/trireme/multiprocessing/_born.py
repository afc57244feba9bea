# SPDX-License-Identifier: BSD-3-Clause
"""What the workers of a fork have by inheritance: functions and classes of the program.

Under "fork" the originals send a function by name, and a worker finds its own: with the globals
that it had at the fork, a table of a gigabyte or a lock among them, which no pickle has to carry.
"""

from __future__ import annotations

import sys
import types
import weakref

from .. import _byvalue, _pickling
from . import _worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Born:
    """What the workers of one fork inherit of modules that no fresh process can import.

    Called, it pickles for those workers: what they have is not sent, be it as a part of something
    that goes by value, a partial() or a lambda.  Such code runs in the modules themselves, so it
    finds what an initializer or a task has set there.  A global that the program binds anew after
    the fork is sent, and from then on always.
    """

    def __init__(self) -> None:
        _pickling._look_for_strange_modules()
        self.modules = [
            name
            for name in [*_pickling._strange]
            if isinstance(sys.modules.get(name), types.ModuleType)
        ]
        # By id: a function or class, and what is sent in its place; None: it is known by its class.
        self._parts: dict[int, tuple[Any, Stand | None]] = {}
        self._globals: dict[str, dict[str, Callable[[], Any]]] = {}
        self._rebound: set[tuple[str, str]] = set()
        for module in self.modules:
            bound = dict(vars(sys.modules[module]))
            self._globals[module] = {name: _hold(value) for name, value in bound.items()}
            self._enter(module, list(bound.values()))

    def _enter(self, module: str, values: list[Any]) -> None:
        """Find the functions and classes among *values*, and in these classes."""
        while values:
            value = values.pop()
            kind = type(value)  # not isinstance(), which asks the object
            part = value.__func__ if kind is staticmethod or kind is classmethod else value
            is_class = issubclass(kind, type)
            if (
                not (is_class or type(part) is types.FunctionType)
                or id(part) in self._parts
                or part.__module__ != module
            ):
                continue
            if _pickling._resolve(module, part.__qualname__) is part:
                where = (module.encode(), part.__qualname__)
                self._parts[id(part)] = (part, Stand(_worker.find, where, part))
            elif kind is classmethod:
                self._parts[id(part)] = (part, None)
            else:
                continue
            if is_class:
                values.extend(vars(part).values())

    def __call__(self, dumps: Callable[..., Any], *args: Any) -> Any:
        """dumps(*args), for these workers."""
        target = _byvalue._target
        before = getattr(target, "born", None)
        target.born = self
        try:
            return dumps(*args)
        finally:
            target.born = before

    def stand(self, part: Any) -> Stand | None:
        """What is sent in the place of a function or class; None: it is not inherited."""
        known = self._parts.get(id(part))
        return None if known is None else known[1]

    def sent_as(self, function: Any) -> Any:
        """The same, or *function* itself."""
        return self.stand(function) or function

    def binds(self, method: types.MethodType) -> bool:
        """Whether *method* is what its object has under the name of an inherited function."""
        if id(method.__func__) not in self._parts:
            return False
        try:
            return bool(getattr(method.__self__, method.__func__.__name__) == method)
        except Exception:
            return False

    def has(self, module: str, name: str, value: Any) -> bool:
        """Whether the workers have *value* as that global, or had it when they began."""
        bound = self._globals.get(module)
        if bound is None:
            return False
        held = bound.get(name)
        if held is None or held() is not value:
            self._rebound.add((module, name))
        return (module, name) not in self._rebound


def _hold(value: Any) -> Callable[[], Any]:
    """What gives *value* while it lives.  Weak where it can be: it may hold the pool."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


class Stand:
    """Stands for a callable that a worker makes: ``make(*parts)``.

    It goes by the name of the user's function in messages.  What it is made of never changes,
    which _pickling's watch is told as a frozen dataclass would, so that it is sent once.
    """

    __dataclass_params__ = types.SimpleNamespace(frozen=True)
    __dataclass_fields__ = ("_make", "_parts")

    def __init__(self, make: Any, parts: tuple[Any, ...], named: Any) -> None:
        self._make = make
        self._parts = parts
        for name in ("__module__", "__qualname__"):
            text = getattr(named, name, None)
            setattr(self, name, text if isinstance(text, str) else type(named).__qualname__)

    def __call__(self, *args: Any, **kwds: Any) -> Any:
        return self._make(*self._parts)(*args, **kwds)

    def __reduce__(self) -> Any:
        return self._make, self._parts
