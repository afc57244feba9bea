# SPDX-License-Identifier: BSD-3-Clause
"""The standard library's multiprocessing, with ``Pool`` and ``ThreadPool`` on Trireme's runtime.

Every name and submodule of the running Python's multiprocessing is here.  What is not a pool is
the original's object itself, so both modules may be used side by side: they share the start
method, processes, locks and queues.  See docs/multiprocessing.md for what pools do better.
"""

from __future__ import annotations

import multiprocessing as _original
import types

# The original has these names without being asked for them, too.
from . import context, process, reduction  # noqa: F401
from .context import reduction as reducer  # noqa: F401

TYPE_CHECKING = False
if TYPE_CHECKING:  # what has the original's type, and what has not
    from multiprocessing import (
        Array,
        AuthenticationError,
        Barrier,
        BoundedSemaphore,
        BufferTooShort,
        Condition,
        Event,
        JoinableQueue,
        Lock,
        Manager,
        Pipe,
        Process,
        ProcessError,
        Queue,
        RawArray,
        RawValue,
        RLock,
        Semaphore,
        SimpleQueue,
        TimeoutError,
        Value,
        active_children,
        allow_connection_pickling,
        cpu_count,
        current_process,
        freeze_support,
        get_all_start_methods,
        get_logger,
        get_start_method,
        log_to_stderr,
        parent_process,
        set_executable,
        set_forkserver_preload,
        set_start_method,
    )

    Pool = context._default_context.Pool
    get_context = context._default_context.get_context
    __all__ = [
        "Array", "AuthenticationError", "Barrier", "BoundedSemaphore", "BufferTooShort",
        "Condition", "Event", "JoinableQueue", "Lock", "Manager", "Pipe", "Pool", "Process",
        "ProcessError", "Queue", "RLock", "RawArray", "RawValue", "Semaphore", "SimpleQueue",
        "TimeoutError", "Value", "active_children", "allow_connection_pickling", "cpu_count",
        "current_process", "freeze_support", "get_all_start_methods", "get_context",
        "get_logger", "get_start_method", "log_to_stderr", "parent_process", "reducer",
        "set_executable", "set_forkserver_preload", "set_start_method",
    ]
else:
    __all__ = list(_original.__all__)
del TYPE_CHECKING  # not a name of the original's

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
