# SPDX-License-Identifier: BSD-3-Clause
"""Queues of trireme.multiprocess: functions and classes of the user's own script go by value."""

from __future__ import annotations

from .. import _pickling
from ..multiprocessing import _ways
from ..multiprocessing import queues as _facade

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]


def dumps(obj: Any) -> tuple[bytes, list[memoryview]]:
    """Pickle *obj* by name where the other process can find it, else by value."""
    plain = None
    try:
        plain = _facade.dumps(obj)
        if not _pickling._names_strange_module(plain[0]):
            return plain
    except Exception:
        pass
    try:
        _ways.follow()
        return _pickling.dumps_inband(obj), []
    except Exception:
        if plain is not None:
            return plain
        raise


class _ByValue(_facade._Box):
    _dumps = staticmethod(dumps)
    _loads: Any = staticmethod(_pickling.loads)


class Queue(_ByValue, _facade.Queue):
    """A Queue of objects that may be made of code, too."""


class JoinableQueue(_ByValue, _facade.JoinableQueue):
    """A JoinableQueue of objects that may be made of code, too."""


class SimpleQueue(_ByValue, _facade.SimpleQueue):
    """A SimpleQueue of objects that may be made of code, too."""


def __getattr__(name: str) -> Any:
    return getattr(_facade, name)
