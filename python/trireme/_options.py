# SPDX-License-Identifier: BSD-3-Clause
"""What callers of a pool pass, checked and brought into the form that the pool wants.

Every kind of pool takes the same options and refuses the same mistakes in the same words.  What C
looks at for each call anyway (timeout, retries, priority) is checked there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

KINDS = ("process", "thread", "serial")
STARTS = ("forkserver", "fork", "spawn")


def _as_items(items: Any, what: str) -> Any:
    """*items* as a list, tuple or range; says what is wrong when it cannot be."""
    if type(items) in (list, tuple, range):
        return items
    try:
        return list(items)
    except TypeError as exc:
        if hasattr(type(items), "__iter__") or hasattr(type(items), "__getitem__"):
            raise
        hint = f"; did you mean range({items})?" if isinstance(items, int) else ""
        raise TypeError(
            f"{what} needs an iterable of items, not {type(items).__name__} ({items!r}){hint}"
        ) from exc


def _as_iterator(items: Any, what: str) -> Iterator[Any]:
    try:
        return iter(items)
    except TypeError:
        _as_items(items, what)
        raise


def _check_pool_options(
    workers: Any, kind: str, start: str, initializer: Any, max_tasks_per_worker: Any
) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, not {start!r}")
    if workers is not None:
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise TypeError(f"workers must be an int or None, not {type(workers).__name__}")
        if not 1 <= workers <= 1024:
            raise ValueError(f"workers must be from 1 to 1024, not {workers}")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be callable")
    if max_tasks_per_worker is not None:
        if isinstance(max_tasks_per_worker, bool) or not isinstance(max_tasks_per_worker, int):
            raise TypeError(
                "max_tasks_per_worker must be an int or None, "
                f"not {type(max_tasks_per_worker).__name__}"
            )
        if max_tasks_per_worker < 1:
            raise ValueError("max_tasks_per_worker must be at least 1")


def _chunk(chunk: int | None) -> int:
    if chunk is None:
        return 0
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a positive int or None, not {chunk!r}")
    return chunk


def _map_options(
    chunk: int | None, timeout: float | None, retries: int, priority: int
) -> dict[str, Any]:
    """The options that every map takes, as ``_core.PoolBase._job`` wants them."""
    return {"chunk": _chunk(chunk), "timeout": timeout, "retries": retries, "priority": priority}
