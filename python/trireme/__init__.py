# SPDX-License-Identifier: BSD-3-Clause
"""Trireme: a parallel runtime in C with a Python face.

>>> import trireme as tri
>>> with tri.Pool() as pool:
...     squares = pool.map(lambda x: x * x, range(10))

No ``if __name__ == "__main__"`` is needed; lambdas, closures and functions of a notebook travel by
value; a worker that dies costs the task it had started and nothing else.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
    from typing import Generic as _Generic

    from ._doors import install, uninstall
    from ._errors import RemoteError, TaskTimeout, WorkerLost
    from ._future import Future
    from ._pool import Pool, cpu_count, default_pool, map, starmap, submit
    from ._share import Shared, share
else:

    class _Generic:
        """In typing's place, which takes milliseconds to import."""

        __slots__ = ()
        __class_getitem__ = classmethod(type(list[int]))


__version__ = "0.1.0"

__all__ = [
    "Future",
    "Pool",
    "RemoteError",
    "Shared",
    "TaskTimeout",
    "WorkerLost",
    "cpu_count",
    "default_pool",
    "install",
    "map",
    "share",
    "starmap",
    "submit",
    "uninstall",
]

# Importing costs little: each name brings its module in when it is first used.
_WHERE = {
    "Future": "_future",
    "Pool": "_pool",
    "RemoteError": "_errors",
    "Shared": "_share",
    "TaskTimeout": "_errors",
    "WorkerLost": "_errors",
    "cpu_count": "_pool",
    "default_pool": "_pool",
    "install": "_doors",
    "map": "_pool",
    "share": "_share",
    "starmap": "_pool",
    "submit": "_pool",
    "uninstall": "_doors",
}


if not TYPE_CHECKING:  # checkers know the names from above, and refuse any other

    def __getattr__(name: str) -> Any:
        where = _WHERE.get(name)
        if where is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{where}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
