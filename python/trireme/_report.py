# SPDX-License-Identifier: BSD-3-Clause
"""What ``install(report=True)`` prints at exit: what ran where, and what was left.

Nothing is counted per task.  A pool counts its tasks in C anyway, and its counters are read when it
ends, or at exit; a queue has numbers for its messages anyway, read when it is dropped, or at exit.
So what is wrapped here is called once per pool, per process or per lock.

It is wrapped where it is defined, in the originals and in our twins, whichever doors are open: as
soon as a module has been imported, by whomever, and before anybody has its names.  So it does not
matter by what way a program comes to a class.  Methods are wrapped in the classes, so that an
instance of a subclass is seen, too, and whose it is, its class says.

The time saved is an estimate, and printed as one: tasks times what the original takes for a task
more than Trireme does.  These figures are rounded down from measurements of empty tasks on one
server with Python 3.11; see docs/doors.md.  A pool whose tasks wait for each other, or are long,
saves that much CPU time, and less on the clock.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import time
import weakref
from _thread import _local
from functools import wraps

from . import _imports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

# Microseconds per task that the original needs more.  A chunk of a map is one task.
SAVED_US = {
    "multiprocessing.Pool": 12.0,
    "multiprocessing.pool.ThreadPool": 3.0,
    "multiprocess.Pool": 60.0,
    "futures.ProcessPoolExecutor": 60.0,
    "futures.ThreadPoolExecutor": 4.0,
}
MESSAGE_SAVED_US = 2.0  # of a queue

_ORIGINALS = ("multiprocessing", "multiprocess", "concurrent")
_PACKAGES = ("multiprocessing", "multiprocess", "trireme.multiprocessing", "trireme.multiprocess")
_FUTURES = ("concurrent.futures", "trireme.futures")

_QUEUES = ("JoinableQueue", "Queue", "SimpleQueue")

# By the last part of a module's name: classes whose instances count when they are made, those
# that count from their start(), and functions.
_MADE = {
    "pool": ("Pool",),
    "queues": _QUEUES,
    "synchronize": (
        "Barrier",
        "BoundedSemaphore",
        "Condition",
        "Event",
        "Lock",
        "RLock",
        "Semaphore",
    ),
}
_STARTED = ("process", "managers")
_CALLED = {
    "connection": ("Pipe",),
    "_pipes": ("pipe",),
    "sharedctypes": ("Array", "RawArray", "RawValue", "Value"),
}
_EXECUTORS = {"process": "ProcessPoolExecutor", "thread": "ThreadPoolExecutor"}


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


class _Queues:
    """The queues of one kind."""

    def __init__(self) -> None:
        self.made = 0
        self.messages = 0  # of those that have ended


class _Here(_local):
    """Of this thread: how many calls that make something it is in; what they make is theirs."""

    inside = 0


_here = _Here()
_owner = 0
_began = 0.0
_records: list[_Record] = []
_by_pool: weakref.WeakKeyDictionary[Any, _Record] = weakref.WeakKeyDictionary()
_queues: dict[str, _Queues] = {}  # by what they are
_numbers = itertools.count()
_alive: dict[int, Any] = {}  # of a queue, what is done at its end
_left: dict[str, int] = {}  # what the originals made, by name
_made: dict[str, int] = {}  # what Trireme made besides pools and queues


def begin() -> None:
    """To be called once, in the program that is to be reported on."""
    global _owner, _began
    _owner = os.getpid()
    _began = time.monotonic()
    atexit.register(_print)
    for package in _PACKAGES:
        for part in (*_MADE, *_STARTED, *_CALLED):
            _imports.when_imported(f"{package}.{part}", _look_at)
    for package in _FUTURES:
        for part in _EXECUTORS:
            _imports.when_imported(f"{package}.{part}", _look_at_futures)
    _imports.when_imported("trireme._pool", _look_at_native)


# ---------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------


def _count(where: dict[str, int], what: str) -> None:
    if os.getpid() == _owner:
        where[what] = where.get(what, 0) + 1


def _whose(cls: type) -> tuple[bool, str, str]:
    """Of the first known class among its bases: is it ours, of which door, and its name."""
    for base in cls.__mro__:
        package, _, rest = str(base.__module__).partition(".")
        if package == "trireme":
            return True, rest.partition(".")[0], base.__name__
        if package in _ORIGINALS:
            return False, package, base.__name__
    return False, "", cls.__name__


def _opened(native: Any, maker: Any) -> None:
    """A pool of ours, and the object that programs have of it."""
    if native is None or native in _by_pool or os.getpid() != _owner:
        return
    _, door, name = _whose(type(maker))
    record = _Record(f"{door}.{'pool.' if name == 'ThreadPool' else ''}{name}", native)
    _records.append(record)
    _by_pool[native] = record


def _followed(queue: Any, label: str) -> None:
    """A queue of ours; its mailbox is looked at once more when the queue has gone."""
    if os.getpid() != _owner:
        return
    kind = _queues.setdefault(label, _Queues())
    kind.made += 1
    number = next(_numbers)
    end = _alive[number] = weakref.finalize(queue, _ended, number, kind, queue._box)
    end.atexit = False


def _ended(number: int, kind: _Queues, box: Any) -> None:
    _alive.pop(number, None)
    kind.messages += box.sent()


def _after_making(_: Any, one: Any, *__: Any) -> None:
    ours, door, name = _whose(type(one))
    if not ours or getattr(one, "_is_original", False):
        _count(_left, name)
    elif name in ("Pool", "ThreadPool"):
        _opened(one._native, one)
    elif name in _QUEUES:
        _followed(one, f"{door}.{name}")
    elif name not in _EXECUTORS.values():  # whose pools are opened when there is work
        _count(_made, name)


def _after_starting(_: Any, one: Any) -> None:
    name = _whose(type(one))[2]
    _count(_left, "Manager" if name == "SyncManager" else name)


def _after_starting_process(*_: Any) -> None:
    if not _is_original(sys._getframe(2)):  # pools and executors start workers at any time
        _count(_left, "Process")


def _is_original(frame: Any) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _ORIGINALS


def _after_call(where: dict[str, int], name: str) -> Callable[..., None]:
    return lambda *_: _count(where, name)


# ---------------------------------------------------------------------------------------------
# Wrapping
# ---------------------------------------------------------------------------------------------


def _wrapped(function: Any, after: Callable[..., object]) -> Any:
    """*function*, and *after* called with its result and arguments, if it is not in another one."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _here.inside += 1
        try:
            result = function(*args, **kwargs)
        finally:
            _here.inside -= 1
        if not _here.inside:
            after(result, *args)
        return result

    wrapper.__trireme_report__ = True  # type: ignore[attr-defined]
    return wrapper


def _wrap(cls: Any, name: str, after: Callable[..., object]) -> None:
    """The method of that name, if the class has one of its own."""
    method = vars(cls).get(name) if isinstance(cls, type) else None
    if callable(method) and not hasattr(method, "__trireme_report__"):
        setattr(cls, name, _wrapped(method, after))


def _look_at(module: ModuleType) -> None:
    names = vars(module)  # the door that the module may be is not to be opened by this
    part = module.__name__.rpartition(".")[2]
    for name in _MADE.get(part, ()):
        _wrap(names.get(name), "__init__", _after_making)
    _wrap(names.get("BaseManager"), "start", _after_starting)
    _wrap(names.get("BaseProcess"), "start", _after_starting_process)
    for name in _CALLED.get(part, ()):
        function = names.get(name)
        if callable(function) and not hasattr(function, "__trireme_report__"):
            where = _made if function.__module__.startswith("trireme.") else _left
            what = "Pipe" if name == "pipe" else name
            names[name] = _wrapped(function, _after_call(where, what))


def _look_at_futures(module: ModuleType) -> None:
    cls = vars(module).get(_EXECUTORS[module.__name__.rpartition(".")[2]])
    _wrap(cls, "__init__", _after_making)
    _wrap(cls, "_make_pool", _opened)


def _look_at_native(module: ModuleType) -> None:
    cls = vars(module)["Pool"]
    for name in ("close", "join", "terminate"):
        setattr(cls, name, _then_look(vars(cls)[name]))


def _then_look(method: Any) -> Any:
    """Unlike what makes something it may run callbacks, and what these make counts."""

    @wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        _look(self)
        return result

    return wrapper


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


def _saving(n: int, us: float, what: str) -> str:
    seconds = n * us / 1e6
    return f"    about {seconds:.3f} s of overhead saved, an estimate: {us:.0f} us for each {what}"


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
        lines.append(_saving(tasks, SAVED_US[label], "task"))
        if len(known) < len(records):
            dropped = len(records) - len(known)
            lines.append(f"    not counted: {_plural(dropped, 'pool')} dropped without an end")
    if not _records:
        lines.append("  no pool of Trireme's was opened")
    for label, kind in sorted(_queues.items()):
        lines.append(
            f"  {label}: {_plural(kind.made, 'queue')}, {_plural(kind.messages, 'message')}"
        )
        lines.append(_saving(kind.messages, MESSAGE_SAVED_US, "message"))
    if _made:
        lines.append(f"  also Trireme's: {_listed(_made)}")
    lines.append(f"  left to the originals: {_listed(_left) or 'nothing'}")
    return "\n".join(lines)


def _print() -> None:
    if os.getpid() != _owner:
        return
    for record in _records:
        record.look()
    for end in list(_alive.values()):
        alive = end.detach()  # called at exit, it does nothing
        if alive is not None:
            alive[1](*alive[2])
    try:
        print(text(), file=sys.stderr, flush=True)
    except Exception:
        pass  # stderr is gone, and with it the reader
