# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of faults share.

A row of the fault matrix is a function whose *source* runs as ``__main__`` of an interpreter of its
own (run_row), because many faults take processes with them and a hang must end.  Each such program
has a limit after which it prints the stacks of its threads and fails, and carries a tag in its
environment; every process that descends from it inherits the tag, so leftovers are counted by
reading /proc/*/environ, whatever their parents are by then.

Nothing here sleeps for a fixed time to let something happen: until() polls a condition.
Limits grow with the load of the machine: they bound hangs, not speed.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
TAG = "TRI_FAULT_TAG"
STARTS = ("fork", "forkserver")

# Before a row's own lines.  sys.path is the tests' own, so the package under test is the same one.
PREAMBLE = """\
import faulthandler, sys
faulthandler.dump_traceback_later({limit}, exit=True)
sys.path[:] = {path!r}
import contextlib, ctypes, errno, functools, gc, itertools, os, random, resource, signal, subprocess
import tempfile, threading, time
import trireme as tri
from faultlib import *
"""


def load_factor() -> float:
    """How much slower than an idle one this machine may be now."""
    return 1.0 + min(6.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def within(seconds: float) -> float:
    """A promise of *seconds* on an idle machine, as a limit on this one."""
    return seconds * load_factor()


def until(condition: Callable[[], Any], limit: float = 10.0, what: Any = "") -> Any:
    """Wait until *condition()* is true and return what it gave; *what* says it if it never is."""
    end = time.monotonic() + within(limit)
    pause = 0.0005
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {within(limit):.1f} s: {text}")
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


# ---------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    """Is there such a process, and is it no zombie?"""
    return state_of(pid) not in ("", "Z", "X")


def state_of(pid: int) -> str:
    """The letter of /proc/PID/stat; "" for none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    """The parent's pid; 0 for none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def name_of(pid: int) -> str:
    """The name that /proc/PID/comm has."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    """Living and dead children of *pid* that nobody has reaped."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and parent_of(int(name)) == pid:
            found.append(int(name))
    return found


def tagged(tag: str) -> list[int]:
    """Processes with this tag in their environment, zombies left out."""
    needle = f"{TAG}={tag}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if needle in file.read().split(b"\0") and alive(int(name)):
                        found.append(int(name))
            except OSError:
                pass
    return found


def own_processes() -> list[int]:
    """Processes that carry the tag of this row, itself and what traces it left out."""
    tracer = os.getppid()
    return [pid for pid in tagged(os.environ[TAG]) if pid != tracer]


def wardens() -> list[int]:
    """Processes of this row that are wardens."""
    return [pid for pid in own_processes() if name_of(pid) == "trireme-warden"]


def the_warden() -> int:
    """The only one.  A worker that was forked just now has its warden's name for an instant."""
    return int(until(lambda: len(wardens()) == 1 and wardens(), 5.0, "one warden")[0])


def fd_count(pid: int | str = "self") -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


# ---------------------------------------------------------------------------------------------
# Pools
# ---------------------------------------------------------------------------------------------


def square(x: int) -> int:
    """The innocent task."""
    return x * x


def _deeper(n: Any) -> Any:
    """Recursion that goes through C at each level."""
    return sorted([n], key=_deeper)


def die(how: str = "") -> None:
    """End this process in one of the ways of the matrix; return when told none."""
    if not how:
        return
    import ctypes
    import faulthandler

    faulthandler.disable()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit 0":
        os._exit(0)
    elif how == "exit 3":
        os._exit(3)
    elif how == "segfault":
        ctypes.string_at(8)
    elif how == "abort":
        os.abort()
    elif how == "stack":
        # Python bounds its own recursion, so the stack is made too small for what that permits.
        import resource

        nested: list[Any] = []
        for _ in range(150):
            nested = [nested]
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 14, 1 << 14))
        repr(nested)
        _deeper(nested)
    elif how == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def healthy(pool: Any, live: int | None = None) -> None:
    """The pool has all its workers within a second, works, and holds no memory it should not."""
    until(lambda: pool.stats()["workers_alive"] == pool.workers, 1.0, "all workers alive")
    n = 40 * pool.workers
    assert pool.map(square, range(n)) == [x * x for x in range(n)]
    assert pool.submit(square, 12).result(within(10)) == 144
    until(lambda: _idle(pool), 3.0, lambda: f"all slots free: {pool.stats()}")
    if live is not None:
        # Less is possible: blocks on their way home when `live` was taken have arrived since.
        until(lambda: _live_now(pool) <= live, 3.0, lambda: f"{live} bytes: {_live_now(pool)}")


def _idle(pool: Any) -> bool:
    """What a failed map left in flight has ended too."""
    pool.submit(square, 1).result(within(10))
    stats = pool.stats()
    return bool(stats["slots_free"] == stats["slots"])


def pids_of(pool: Any) -> list[int]:
    """The workers' pids, sorted, once each has started."""
    healthy(pool)
    until(lambda: len(pool.stats()["pids"]) == pool.workers, 5.0, "all workers started")
    return sorted(pool.stats()["pids"])


def nap(seconds: float) -> int:
    """A task that keeps its worker busy, so that the next one goes to another."""
    time.sleep(seconds)
    return os.getpid()


def _live_now(pool: Any) -> int:
    """Bytes in use once each worker has had a task, found no other, and gone to sleep.

    A worker takes back blocks that were freed when it finds nothing to do.
    """
    seen: set[int] = set()
    end = time.monotonic() + within(5)
    while len(seen) < pool.workers:
        futures = [pool.submit(nap, 0.002) for _ in range(pool.workers)]
        seen |= {future.result(within(10)) for future in futures}
        assert time.monotonic() < end, "a worker gets no task"
    until(lambda: all(state_of(pid) == "S" for pid in pool.stats()["pids"]), 5.0, "all asleep")
    return int(pool.stats()["arena_live_bytes"])


def live_bytes(pool: Any, *functions: Callable[[], object]) -> int:
    """Arena bytes that a pool at rest holds: its set-up and the functions it was sent.

    *functions* are called in a worker first, so that theirs are among them.
    """
    for function in functions:
        pool.submit(function).result(within(10))
    healthy(pool)
    return min(_live_now(pool) for _ in range(3))


def pid_in_task(pool: Any) -> int:
    """The pid of some worker."""
    return int(pool.submit(os.getpid).result(within(10)))


@contextlib.contextmanager
def marks() -> Iterator[Any]:
    """A file to which tasks add a line each; gives an object with path, add(text), lines()."""
    with tempfile.NamedTemporaryFile(prefix="tri-marks-") as file:
        yield Marks(file.name)


class Marks:
    """O_APPEND lines: each write is whole, whoever is killed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def add(self, text: object) -> None:
        """One line, in one write."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, f"{text}\n".encode())
        finally:
            os.close(fd)

    def lines(self) -> list[str]:
        """All of them so far."""
        with open(self.path) as file:
            return file.read().split()


def results(iterator: Any) -> Iterator[Any]:
    """The values of an iterator of results, with exceptions in the place of what failed."""
    while True:
        try:
            value = next(iterator)
        except StopIteration:
            return
        except Exception as exc:
            value = exc
        yield value


def zombies() -> list[int]:
    """Dead processes of this row that nobody has reaped: children of it and of its wardens."""
    parents = [os.getpid(), *wardens()]
    return [p for parent in parents for p in children_of(parent) if state_of(p) == "Z"]


def failure(call: Callable[[], object]) -> BaseException:
    """What *call()* raised."""
    try:
        value = call()
    except BaseException as exc:
        return exc
    raise AssertionError(f"nothing was raised; it returned {value!r:.200}")


# ---------------------------------------------------------------------------------------------
# Running a row
# ---------------------------------------------------------------------------------------------


class Run:
    """A program that runs, and what came of it."""

    def __init__(self, process: subprocess.Popen[str], tag: str, limit: float) -> None:
        self.process = process
        self.tag = tag
        self.limit = limit
        self.out = ""
        self.err = ""

    def finish(self) -> Run:
        """Wait for its end; at its limit it is killed and the test fails."""
        try:
            self.out, self.err = self.process.communicate(timeout=self.limit + 10)
        except subprocess.TimeoutExpired:
            self.end_all()
            self.out, self.err = self.process.communicate()
            said = f"{self.out}{self.err}"
            raise AssertionError(f"did not end in {self.limit:.0f} s\n{said}") from None
        return self

    @property
    def code(self) -> int:
        """Its exit code, negative for a signal."""
        return self.process.returncode

    def leftovers(self, limit: float = 1.0) -> list[int]:
        """Processes of it that are still there after *limit* seconds."""
        end = time.monotonic() + within(limit)
        while True:
            left = tagged(self.tag)
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.005)

    def end_all(self) -> None:
        """Kill what carries its tag."""
        for pid in tagged(self.tag):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def describe(self) -> str:
        """For messages."""
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def program(row: Callable[..., object] | str, args: tuple[Any, ...], limit: float) -> str:
    """The text of a row as a program."""
    path = [HERE, *(os.path.abspath(p) if p else os.getcwd() for p in sys.path)]
    head = PREAMBLE.format(limit=limit, path=path)
    if isinstance(row, str):
        return head + textwrap.dedent(row)
    lines = textwrap.dedent(inspect.getsource(row)).splitlines()
    while lines[0].startswith("@"):
        del lines[0]
    return "\n".join([head, *lines, f"{row.__name__}{args!r}", ""])


def start_row(
    row: Callable[..., object] | str,
    *args: Any,
    limit: float = 20.0,
    prefix: tuple[str, ...] = (),
    env: dict[str, str | None] | None = None,
    **popen: Any,
) -> Run:
    """Start a row as a program of its own, in its own session."""
    limit = within(limit)
    tag = uuid.uuid4().hex
    environ = {**os.environ, TAG: tag, "PYTHONDONTWRITEBYTECODE": "1"}
    for name, value in (env or {}).items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    popen.setdefault("stdin", subprocess.DEVNULL)
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", program(row, args, limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
        **popen,
    )
    return Run(process, tag, limit)


def run_row(
    row: Callable[..., object] | str, *args: Any, noise: bool = False, **options: Any
) -> Run:
    """Run a row to its end: exit code 0, nothing on stderr unless *noise*, nothing left over."""
    run = start_row(row, *args, **options)
    try:
        run.finish()
        left = [f"{pid} {name_of(pid)}" for pid in run.leftovers()]
    finally:
        run.end_all()
    assert run.code == 0, run.describe()
    assert not left, f"left over: {left}\n{run.describe()}"
    assert noise or not run.err, run.describe()
    return run


def matrix(*starts: str, noise: bool = False, limit: float = 20.0, **options: Any) -> Any:
    """Make a row f(start) a test for each way of starting workers."""
    import pytest

    def make(row: Callable[[str], object]) -> Any:
        @pytest.mark.parametrize("start", starts or STARTS)
        def test(start: str) -> None:
            run_row(row, start, noise=noise, limit=limit, **options)

        test.__name__ = row.__name__
        test.__doc__ = row.__doc__
        return test

    return make
