# SPDX-License-Identifier: BSD-3-Clause
"""What callers of a pool pass, checked and brought into the form that the pool wants.

Every kind of pool takes the same options and refuses the same mistakes in the same words.  What C
looks at for each call anyway (timeout, retries, priority) is checked there.
"""

from __future__ import annotations

import operator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

_ENDLESS = (1 << 31) - 1  # a number without an upper limit may be larger, and means this one

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


def _integer(
    name: str, value: Any, low: int, high: int | None, what: str = "an int or None"
) -> int:
    """*value* as an int, whatever says that it is one (NumPy's do); bool is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {what}, not {type(value).__name__}") from None
    if high is None and number < low:
        raise ValueError(f"{name} must be at least {low}, not {number}")
    if high is not None and not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {number}")
    return min(number, high or _ENDLESS)


def _task_options(timeout: float | None, retries: int) -> dict[str, Any]:
    """What a facade's pool or executor adds to each submit(): only what was asked for."""
    options: dict[str, Any] = {}
    if timeout is not None:
        if not timeout > 0:
            raise ValueError("timeout must be more than 0 seconds")
        options["timeout"] = timeout
    if _integer("retries", retries, 0, 65535, "an int"):
        options["retries"] = retries
    return options


def _spin_ns(spin: Any) -> int:
    if spin is None:
        return -1
    try:
        if isinstance(spin, str):
            raise TypeError
        seconds = float(spin)
    except (TypeError, ValueError):
        raise TypeError(
            f"spin must be a number of seconds or None, not {type(spin).__name__}"
        ) from None
    if not seconds >= 0:
        raise ValueError(f"spin must be 0 seconds or more, not {seconds}")
    return int(min(seconds, 1e9) * 1e9)


def _check_pool_options(
    kind: str,
    start: str,
    initializer: Any,
    workers: Any,
    max_tasks_per_worker: Any,
    threads_per_worker: Any,
    arena_bytes: Any,
    slots: Any,
    spin: Any,
    max_restarts: Any,
) -> dict[str, int]:
    """Refuse what is wrong; what is left as ``_core.PoolBase._open`` wants it, and ``threads``.

    0 is the default there; ``threads`` is -1 for that.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, not {start!r}")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be callable")
    numbers = {"spin_ns": _spin_ns(spin)}
    table: tuple[tuple[str, str, Any, int, int | None], ...] = (
        ("workers", "workers", workers, 1, 1024),
        ("max_tasks_per_worker", "max_tasks", max_tasks_per_worker, 1, None),
        ("threads_per_worker", "threads", threads_per_worker, 0, None),
        ("arena_bytes", "arena_bytes", arena_bytes, 1, 1 << 60),
        ("slots", "slots", slots, 1, 1 << 19),
        ("max_restarts", "max_restarts", max_restarts, 1, None),
    )
    for name, into, value, low, high in table:
        none = -1 if into == "threads" else 0
        numbers[into] = none if value is None else _integer(name, value, low, high)
    for name, value in (
        ("max_tasks_per_worker", max_tasks_per_worker),
        ("threads_per_worker", threads_per_worker),
    ):
        if value is not None and kind != "process":
            raise ValueError(f"{name} needs worker processes: kind must be 'process', not {kind!r}")
    return numbers


def _chunk(chunk: Any) -> int:
    if chunk is None:
        return 0
    return _integer("chunk", chunk, 1, None)


def _shown(progress: Any, iterables: Sequence[Any]) -> Any:
    """What a map over *iterables* is to update for *progress*; None for nothing."""
    if not progress:
        return None
    from ._progress import make_progress

    try:
        total = min(len(i) for i in iterables)
    except TypeError:
        total = None
    return make_progress(progress, total)


def _map_options(
    chunk: int | None, timeout: float | None, retries: int, priority: int
) -> dict[str, Any]:
    """The options that every map takes, as ``_core.PoolBase._job`` wants them."""
    return {"chunk": _chunk(chunk), "timeout": timeout, "retries": retries, "priority": priority}
