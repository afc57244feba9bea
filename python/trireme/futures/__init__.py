# SPDX-License-Identifier: BSD-3-Clause
"""concurrent.futures on Trireme's pools: change the import, keep the program.

>>> from trireme.futures import ProcessPoolExecutor
>>> with ProcessPoolExecutor() as executor:
...     squares = list(executor.map(lambda x: x * x, range(10)))

The executors are subclasses of the standard library's, their futures are its futures, and
:func:`wait`, :func:`as_completed` and the exceptions are its own objects, so programs may mix the
two.  See docs/futures.md for what is better and for the two switches.
"""

from __future__ import annotations

from concurrent import futures as _original
from concurrent.futures import _base as _base
from concurrent.futures._base import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    TimeoutError,
    as_completed,
    wait,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sys
    from typing import Any

    if sys.version_info >= (3, 14):
        from concurrent.futures import InterpreterPoolExecutor  # noqa: F401

    from . import process as process
    from . import thread as thread
    from .process import ProcessPoolExecutor
    from .thread import ThreadPoolExecutor

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenExecutor",
    "CancelledError",
    "Executor",
    "Future",
    "InvalidStateError",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "wait",
]

# As in the original, an executor's module is imported when the executor is first asked for.
_WHERE = {
    "ProcessPoolExecutor": "trireme.futures.process",
    "ThreadPoolExecutor": "trireme.futures.thread",
    "process": "trireme.futures.process",
    "thread": "trireme.futures.thread",
}
if "InterpreterPoolExecutor" in _original.__all__:  # Python 3.14, built with interpreters
    _WHERE["InterpreterPoolExecutor"] = "concurrent.futures.interpreter"
    __all__ += ["InterpreterPoolExecutor"]


if not TYPE_CHECKING:  # checkers know the names from above, and refuse any other

    def __getattr__(name: str) -> Any:
        where = _WHERE.get(name)
        if where is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module = import_module(where)
        value = module if where.endswith(f".{name}") else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "process", "thread", "__author__", "__doc__"])
