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
    from typing import Any


def functions() -> dict[int, tuple[Any, Any]]:
    """By id, the functions of modules that only a fork of this process has.

    They are there in its workers with the globals they have now, locks and queues among them, and
    so go by name.  One that is defined later goes by value.
    """
    _pickling._look_for_strange_modules()
    found = {}
    for name in [*_pickling._strange]:
        module = sys.modules.get(name)
        for value in list(vars(module).values()) if isinstance(module, types.ModuleType) else ():
            if (
                isinstance(value, types.FunctionType)
                and value.__module__ == name
                and _pickling._resolve(name, value.__qualname__) is value
            ):
                where = (name.encode(), value.__qualname__)
                found[id(value)] = (value, Stand(_worker.find, where, value))
    return found


def versions() -> dict[str, dict[str, int]]:
    """What the workers have of the same modules, for functions that go by value all the same."""
    return {
        name: _byvalue.scalar_versions(name)
        for name in [*_pickling._strange]
        if isinstance(sys.modules.get(name), types.ModuleType)
    }


def classes() -> list[type]:
    """The classes of modules that only a fork of this process has: its workers have them, too.

    Under the ids that they get here, before the fork, instances of them are sent.  So a worker
    finds its own class, the one that functions which go by name know.
    """
    _pickling._look_for_strange_modules()
    found: dict[type, None] = {}
    for name in [*_pickling._strange]:
        module = sys.modules.get(name)
        waiting = list(vars(module).values()) if isinstance(module, types.ModuleType) else []
        while waiting:
            value = waiting.pop()
            if (
                isinstance(value, type)
                and value not in found
                and value.__module__ == name
                and _pickling._resolve(name, value.__qualname__) is value
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
