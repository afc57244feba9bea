# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the interpreter that scripts change at their top: they travel to the workers.

A fork has them.  Workers that start elsewhere get the recursion limit and the warnings filters of
the moment in which the pool was opened, if they are not what an interpreter begins with: then
nothing is sent, and nothing costs more than the comparison.

Filters travel as texts.  A category is looked up in its module, which the worker imports for it;
one that is a class of the script itself stays behind, with its filter.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Filter = tuple[str, str | None, str, str | None, int]

_RECURSION = 1000

# What an interpreter begins with (a debug build with none), and what NumPy adds in each process.
_FILTERS: tuple[Filter, ...] = (
    ("default", None, "builtins:DeprecationWarning", "__main__", 0),
    ("ignore", None, "builtins:DeprecationWarning", None, 0),
    ("ignore", None, "builtins:PendingDeprecationWarning", None, 0),
    ("ignore", None, "builtins:ImportWarning", None, 0),
    ("ignore", None, "builtins:ResourceWarning", None, 0),
)


def _text(pattern: Any) -> str | None:
    return pattern if pattern is None or isinstance(pattern, str) else pattern.pattern


def _by_numpy(message: Any, category: Any) -> bool:
    """Is it a filter that NumPy has made, and makes again where it is imported?"""
    return (_text(message) or "").startswith("numpy.") or category.__name__ == "RankWarning"


def _filters() -> list[Filter] | None:
    """The owner's filters; None if nobody has changed them."""
    warnings = sys.modules.get("warnings")
    if warnings is None:
        return None
    out: list[Filter] = []
    for action, message, category, module, line in list(warnings.filters):
        if action == "always" or _text(message) is not None:
            if _by_numpy(message, category):
                continue
        name = f"{category.__module__}:{category.__qualname__}"
        out.append((action, _text(message), name, _text(module), line))
    return None if tuple(out) == _FILTERS else out


def changed() -> dict[str, Any]:
    """Owner: what differs from an interpreter that has just started, for begin()'s info."""
    out: dict[str, Any] = {}
    limit = sys.getrecursionlimit()
    if limit != _RECURSION:
        out["recursion_limit"] = limit
    try:
        filters = _filters()
    except Exception:
        filters = None  # not filters as warnings makes them
    if filters is not None:
        out["warnings"] = filters
    return out


# In the fork server: the filters that its workers begin with.
_known: list[Filter] | None = None


def expect_forks() -> None:
    """In the fork server: look at the filters once, instead of in each worker."""
    global _known
    _known = _filters()


def apply(info: dict[str, Any]) -> None:
    """Worker: take over what changed() found."""
    limit = info.get("recursion_limit")
    if limit is not None:
        try:
            sys.setrecursionlimit(limit)
        except (RecursionError, ValueError, OverflowError):
            pass  # less than this worker has in use
    filters = info.get("warnings")
    # Options (-W, PYTHONWARNINGS) have made the same of a worker that starts elsewhere.
    if filters is not None and filters != (_known or _filters()):
        _apply_filters(filters)


def _apply_filters(filters: list[Filter]) -> None:
    import re
    import warnings
    from importlib import import_module

    made: list[Any] = []
    for action, message, category, module, line in filters:
        where, _, name = category.partition(":")
        found: Any
        try:
            if where == "__main__":
                continue
            found = sys.modules.get(where) or import_module(where)
            for part in name.split("."):
                found = getattr(found, part)
            made.append(
                (
                    action,
                    message and re.compile(message, re.IGNORECASE),
                    found,
                    module if module is None or module == "__main__" else re.compile(module),
                    line,
                )
            )
        except Exception:
            continue  # a class that this process cannot find raises no warnings here
    made += [f for f in warnings.filters if _by_numpy(f[1], f[2])]
    warnings.resetwarnings()
    warnings.filters[:] = made  # type: ignore[index]
