# SPDX-License-Identifier: BSD-3-Clause
"""trireme.multiprocessing with everything by value, for notebooks: in place of multiprocess.

Functions and arguments go by value under both names.  Here results do as well: a task may return
a lambda, a closure or an instance of a class that was defined in a function.
"""

from __future__ import annotations

import sys
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
    """Submodules other than pool, queues and context are those of trireme.multiprocessing."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name in ("pool", "queues"):
        return import_module(f"{__name__}.{name}")
    try:
        return getattr(_facade, name)
    except AttributeError:
        pass
    try:
        module = import_module(f"{_facade.__name__}.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    sys.modules[f"{__name__}.{name}"] = module
    return module
