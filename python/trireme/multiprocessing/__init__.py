# SPDX-License-Identifier: BSD-3-Clause
"""The standard library's multiprocessing, with ``Pool`` and ``ThreadPool`` on Trireme's runtime.

Every name and submodule of the running Python's multiprocessing is here.  What is not a pool is
the original's object itself, so both modules may be used side by side: they share the start
method, processes, locks and queues.  See docs/multiprocessing.md for what pools do better.
"""

from __future__ import annotations

import multiprocessing as _original
import types
from multiprocessing import *  # noqa: F403  (for type checkers; the names are set again below)

# The original has these names without being asked for them, too.
from . import context, process, reduction  # noqa: F401
from .context import reduction as reducer  # noqa: F401

__all__ = list(_original.__all__)

SUBDEBUG = 5
SUBWARNING = 25

# Methods of the default context, as in the original; what a version adds besides is its own.
globals().update(
    (name, getattr(context._default_context, name, None) or getattr(_original, name))
    for name in __all__
)


def __getattr__(name: str) -> types.ModuleType:
    """A submodule: which of the original's are there depends on what was imported before."""
    if not name.startswith("_"):
        from importlib import import_module

        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as exc:
            if exc.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
