# SPDX-License-Identifier: BSD-3-Clause
"""What ``install(report=True)`` prints at exit: what ran where, and what was left.

Nothing is counted per task.  A pool counts its tasks in C anyway, and its counters are read when it
ends, or at exit; so what is wrapped here is called once per pool, per process or per lock.  The
methods are those of the classes, so that a pool of a subclass is seen, too.

The time saved is an estimate, and printed as one: tasks times what the original takes for a task
more than Trireme does.  These figures are rounded down from measurements of empty tasks on one
server with Python 3.11; see docs/doors.md.  A pool whose tasks wait for each other, or are long,
saves that much CPU time, and less on the clock.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import time
import weakref
from functools import wraps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

# Microseconds per task that the original needs more.  A chunk of a map is one task.
SAVED_US = {
    "multiprocessing.Pool": 12.0,
    "multiprocessing.pool.ThreadPool": 3.0,
    "futures.ProcessPoolExecutor": 60.0,
    "futures.ThreadPoolExecutor": 4.0,
}

# Methods of contexts that make something; whose it is, its class says.
_MAKERS = (
    "Array",
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Pipe",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "Semaphore",
    "SimpleQueue",
    "Value",
)


class _Record:
    """One pool: what it is, and its counters as they were last seen."""

    def __init__(self, label: str, native: Any) -> None:
        self.label = label
        self.native = weakref.ref(native)
        self.workers = int(native.workers)
        self.start = native.start if native.kind == "process" else "threads"
        self.opened = time.monotonic()
        self.open_s = 0.0
        self.tasks = -1  # not known: it was dropped before anybody looked

    def look(self) -> None:
        """Read the counters."""
        native = self.native()
        if native is None or native._is_fork:
            return
        self.tasks = int(native._stats()["completed"])
        self.open_s = time.monotonic() - self.opened


_owner = 0
_began = 0.0
_records: list[_Record] = []
_by_pool: weakref.WeakKeyDictionary[Any, _Record] = weakref.WeakKeyDictionary()
_left: dict[str, int] = {}  # what the originals made, by name
_made: dict[str, int] = {}  # what Trireme made besides pools
_inside = 0  # calls of makers that run: what they make in turn is theirs


def begin() -> None:
    """To be called once, in the program that is to be reported on."""
    global _owner, _began
    _owner = os.getpid()
    _began = time.monotonic()
    atexit.register(_print)


def _opened(label: str, native: Any) -> None:
    if native is None or native in _by_pool or os.getpid() != _owner:
        return
    record = _Record(label, native)
    _records.append(record)
    _by_pool[native] = record


def _count(where: dict[str, int], what: str) -> None:
    if os.getpid() == _owner:
        where[what] = where.get(what, 0) + 1


def _count_outer(what: str) -> None:
    """Of the originals; but not what a maker that is counted has made."""
    if not _inside:
        _count(_left, what)


def _wrap(cls: type, name: str, after: Callable[..., object]) -> None:
    """Have *after* called with the result and the arguments of a method."""
    method = cls.__dict__.get(name)
    if not callable(method) or hasattr(method, "__trireme_report__"):
        return

    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        global _inside
        _inside += 1
        try:
            result = method(*args, **kwargs)
        finally:
            _inside -= 1
        after(result, *args)
        return result

    wrapper.__trireme_report__ = True  # type: ignore[attr-defined]
    try:
        setattr(cls, name, wrapper)
    except TypeError:
        pass  # a class made in C


def _after_maker(name: str) -> Callable[..., None]:
    def after(result: Any, *_: Any) -> None:
        if not _inside:  # a Queue makes its own Locks
            one = result[0] if isinstance(result, tuple) else result
            ours = type(one).__module__.partition(".")[0] == "trireme"
            _count(_made if ours else _left, name)

    return after


def look_at(original: ModuleType, twin: ModuleType | None) -> None:
    """Called when a module has been imported, before its names are replaced."""
    name = original.__name__.removeprefix("concurrent.")
    classes = vars(original)
    if name == "multiprocessing.process":
        # _inside: a Manager starts a Process
        _wrap(classes["BaseProcess"], "start", lambda *_: _count_outer("Process"))
    elif name == "multiprocessing.managers":
        _wrap(classes["BaseManager"], "start", lambda *_: _count_outer("BaseManager"))
    elif name == "multiprocessing.context":
        for module in (original, twin):
            for cls in [*vars(module).values()] if module is not None else []:
                if isinstance(cls, type) and "Context" in cls.__name__ or _is_mixin(cls):
                    for maker in _MAKERS:
                        _wrap(cls, maker, _after_maker(maker))
    elif name == "multiprocessing":
        # It has bound methods of what has been wrapped since.
        for module in (original, twin):
            for attribute, value in [*vars(module).items()] if module is not None else []:
                if attribute in _MAKERS and hasattr(value, "__self__"):
                    setattr(module, attribute, getattr(value.__self__, attribute))
    elif name == "futures" and sys.version_info >= (3, 15):
        # It imports its executors lazily, so what is replaced before its first use never comes.
        for part in ("process", "thread"):
            importlib.import_module(f"{original.__name__}.{part}")
    elif twin is not None:
        _look_at_pools(name, original, twin)


def _is_mixin(cls: Any) -> bool:
    return isinstance(cls, type) and cls.__name__.startswith("_With")


def _look_at_pools(name: str, original: ModuleType, twin: ModuleType) -> None:
    classes = vars(original)
    if name in ("multiprocessing.pool", "futures.process", "futures.thread"):
        from . import _pool

        for method in ("close", "join", "terminate"):
            _wrap(_pool.Pool, method, lambda _, native, *__: _look(native))
    if name == "multiprocessing.pool":
        _wrap(classes["Pool"], "__init__", lambda *_: _count(_left, "Pool"))

        def made(_: Any, pool: Any, *__: Any) -> None:
            threads = isinstance(pool, vars(twin)["ThreadPool"])
            _opened(f"multiprocessing.{'pool.ThreadPool' if threads else 'Pool'}", pool._native)

        _wrap(vars(twin)["Pool"], "__init__", made)
    elif name in ("futures.process", "futures.thread"):
        title = "ProcessPoolExecutor" if name == "futures.process" else "ThreadPoolExecutor"
        _wrap(classes[title], "__init__", lambda *_: _count(_left, title))
        _wrap(
            vars(twin)[title],
            "_make_pool",
            lambda native, *_: _opened(f"futures.{title}", native),
        )


def _look(native: Any) -> None:
    record = _by_pool.get(native)
    if record is not None and os.getpid() == _owner:
        record.look()


# ---------------------------------------------------------------------------------------------
# Printing
# ---------------------------------------------------------------------------------------------


def _plural(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items()))


def text() -> str:
    """The report."""
    lines = [f"trireme: what ran where, in {time.monotonic() - _began:.1f} s"]
    for label in sorted({record.label for record in _records}):
        records = [r for r in _records if r.label == label]
        known = [r for r in records if r.tasks >= 0]
        tasks = sum(r.tasks for r in known)
        open_s = sum(r.open_s for r in known)
        most = max(r.workers for r in records)
        ways = ", ".join(sorted({r.start for r in records}))
        line = f"  {label}: {_plural(len(records), 'pool')} of up to {_plural(most, 'worker')}"
        line += f" ({ways}), {_plural(tasks, 'task')}"
        if open_s > 0:
            line += f", {tasks / open_s:,.0f} tasks/s while open"
        lines.append(line)
        saved = tasks * SAVED_US[label] / 1e6
        lines.append(
            f"    about {saved:.3f} s of overhead saved, an estimate: "
            f"{SAVED_US[label]:.0f} us for each task"
        )
        if len(known) < len(records):
            dropped = len(records) - len(known)
            lines.append(f"    not counted: {_plural(dropped, 'pool')} dropped without an end")
    if not _records:
        lines.append("  no pool was opened")
    if _made:
        lines.append(f"  also Trireme's: {_listed(_made)}")
    lines.append(f"  left to the originals: {_listed(_left) or 'nothing'}")
    return "\n".join(lines)


def _print() -> None:
    if os.getpid() != _owner:
        return
    for record in _records:
        record.look()
    try:
        print(text(), file=sys.stderr, flush=True)
    except Exception:
        pass  # stderr is gone, and with it the reader
