# SPDX-License-Identifier: BSD-3-Clause
"""The standard library's multiprocessing, with ``Pool`` and ``ThreadPool`` on Trireme's runtime.

Every name and submodule of the running Python's multiprocessing is here.  What is not a pool is
the original's object itself, so both modules may be used side by side: they share the start
method, processes, locks and queues.  See docs/multiprocessing.md for what pools do better.
"""

from __future__ import annotations

import multiprocessing as _original
from multiprocessing import *  # noqa: F403  (for type checkers; the names are set again below)

from . import context
from .context import reduction as reducer  # noqa: F401  (the original has this name, too)

__all__ = list(_original.__all__)

SUBDEBUG = 5
SUBWARNING = 25

# Methods of the default context, as in the original; what a version adds besides is its own.
globals().update(
    (name, getattr(context._default_context, name, None) or getattr(_original, name))
    for name in __all__
)
