# SPDX-License-Identifier: BSD-3-Clause
"""trireme.multiprocessing with everything by value, for notebooks: in place of multiprocess.

Functions and arguments go by value under both names.  Here results do as well: a task may return
a lambda, a closure or an instance of a class that was defined in a function.
"""

from __future__ import annotations

from importlib import import_module

from .. import multiprocessing as _facade
from ..multiprocessing import *  # noqa: F403  (for type checkers; the names are set again below)
from . import context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = list(_facade.__all__)

globals().update(
    (name, getattr(context._default_context, name, None) or getattr(_facade, name))
    for name in __all__
)


def __getattr__(name: str) -> Any:
    """A submodule, or what else trireme.multiprocessing has."""
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as exc:
        if exc.name != f"{__name__}.{name}":
            raise
    try:
        return getattr(_facade, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
