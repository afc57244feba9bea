# SPDX-License-Identifier: BSD-3-Clause
"""What the workers of a fork have by inheritance: functions and classes of the program.

Under "fork" the originals send a function by name, and a worker finds its own: with the globals
that it had at the fork, a table of a gigabyte or a lock among them, which no pickle has to carry.
"""

from __future__ import annotations

import sys
import types

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
        self._globals = {name: dict(vars(sys.modules[name])) for name in self.modules}
        self._rebound: set[tuple[str, str]] = set()
        self._functions: dict[int, tuple[Any, Stand]] = {}
        for module, bound in self._globals.items():
            for value in bound.values():
                if (
                    isinstance(value, types.FunctionType)
                    and value.__module__ == module
                    and _pickling._resolve(module, value.__qualname__) is value
                ):
                    where = (module.encode(), value.__qualname__)
                    self._functions[id(value)] = (value, Stand(_worker.find, where, value))

    def __call__(self, dumps: Callable[..., Any], *args: Any) -> Any:
        """dumps(*args), for these workers."""
        target = _byvalue._target
        before = getattr(target, "born", None)
        target.born = self
        try:
            return dumps(*args)
        finally:
            target.born = before

    def stand(self, function: Any) -> Stand | None:
        """What is sent in the place of *function*; None: it is not inherited."""
        known = self._functions.get(id(function))
        return None if known is None else known[1]

    def sent_as(self, function: Any) -> Any:
        """The same, or *function* itself."""
        return self._functions.get(id(function), (None, function))[1]

    def has(self, module: str, name: str, value: Any) -> bool:
        """Whether the workers have *value* as that global, or had it when they began."""
        bound = self._globals.get(module)
        if bound is None:
            return False
        if bound.get(name, _pickling.MISSING) is not value:
            self._rebound.add((module, name))
        return (module, name) not in self._rebound

    def classes(self) -> list[type]:
        """The classes of these modules, under the ids that they get here, before the fork.

        Instances are sent under these ids.  So a worker finds its own class, the one that functions
        which go by name know.
        """
        found: dict[type, None] = {}
        for module, bound in self._globals.items():
            waiting = list(bound.values())
            while waiting:
                value = waiting.pop()
                if (
                    isinstance(value, type)
                    and value not in found
                    and value.__module__ == module
                    and _pickling._resolve(module, value.__qualname__) is value
                ):
                    found[value] = None
                    waiting.extend(vars(value).values())
        if found:
            try:
                from cloudpickle import cloudpickle
            except ImportError:
                return []  # said when one of them is sent
            for value in found:
                cloudpickle._get_or_create_tracker_id(value)
        return list(found)


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
