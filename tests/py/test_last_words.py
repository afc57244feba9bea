# SPDX-License-Identifier: BSD-3-Clause
"""What a worker that crashes leaves of where it was: WorkerLost.stack, and its cause."""

from __future__ import annotations

import concurrent.futures as cf
import ctypes
import faulthandler
import os
import pickle
import random
import resource
import signal
import sys
import threading
import traceback
from typing import Any

import pytest
import trireme as tri
from conftest import PROCESSES, open_pool
from trireme import futures

PATIENCE = 60


@pytest.fixture(params=PROCESSES)
def plain(request: pytest.FixtureRequest) -> Any:
    """A pool of a program in which faulthandler is not enabled, which it is in pytest."""
    enabled = faulthandler.is_enabled()
    faulthandler.disable()
    before = os.environ.pop("PYTHONFAULTHANDLER", None)
    try:
        with open_pool(request.param) as pool:
            yield pool
    finally:
        if before is not None:
            os.environ["PYTHONFAULTHANDLER"] = before
        if enabled:
            faulthandler.enable(sys.__stderr__)


def read_nothing() -> None:
    ctypes.string_at(0)


def end_badly(how: str) -> None:
    if how == "read":
        read_nothing()
    elif how == "abort":
        os.abort()
    elif how == "thread":
        thread = threading.Thread(target=read_nothing, name="other")
        thread.start()
        thread.join()
    elif how == "stack":
        deep: Any = iter([1])
        for _ in range(1_000_000):
            deep = filter(None, deep)
        next(deep)  # recursion in C that nothing counts
    elif how == "own":  # the task's own wish
        files = [open(os.devnull, "w") for _ in range(200)]
        faulthandler.enable(random.choice(files))
        read_nothing()
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        signal.raise_signal(getattr(signal, how))


def lost(future: Any) -> Any:
    exc = future.exception(PATIENCE)
    assert isinstance(exc, tri.WorkerLost), exc
    return exc


def frames(exc: Any) -> list[str]:
    return [line.rpartition(" in ")[2] for line in exc.stack.split("\n") if " File " in line]


@pytest.mark.parametrize("how", ["read", "abort", "SIGBUS", "SIGFPE", "SIGILL", "thread"])
def test_a_crash_says_where_it_was(plain: Any, how: str) -> None:
    exc = lost(plain.submit(end_badly, how))
    assert exc.stack.startswith("Fatal Python error: ")
    if how == "read":
        assert frames(exc) == ["string_at", "read_nothing", "end_badly"]
        assert f'"{__file__}", line {read_nothing.__code__.co_firstlineno + 1} in' in exc.stack
    elif how == "thread":
        assert frames(exc)[:2] == ["string_at", "read_nothing"]
        assert frames(exc)[-1] == "end_badly"
    else:
        assert frames(exc)[-1] == "end_badly"
    shown = "".join(traceback.format_exception(exc))
    assert exc.stack in shown
    assert shown.index(exc.stack) < shown.index("was killed by SIG")
    assert exc.stack not in str(exc)
    copy = pickle.loads(pickle.dumps(exc))
    assert (copy.stack, copy.signal) == (exc.stack, exc.signal)
    assert plain.map(abs, range(-5, 5)) == [abs(x) for x in range(-5, 5)]


def test_a_stack_that_is_used_up_says_so_too(plain: Any) -> None:
    exc = lost(plain.submit(end_badly, "stack"))
    assert exc.signal == signal.SIGSEGV
    assert exc.stack.startswith("Fatal Python error: ")
    assert frames(exc) == ["end_badly"]


def test_what_has_nothing_to_say_says_nothing(plain: Any, capfd: Any) -> None:
    for how in ("killed", "SIGTERM", "own"):
        exc = lost(plain.submit(end_badly, how))
        assert exc.stack is None
    assert tri.WorkerLost("as I say").stack is None
    assert capfd.readouterr() == ("", "")


def test_each_crash_has_its_own(plain: Any) -> None:
    for how in ("read", "killed", "abort", "read"):
        exc = lost(plain.submit(end_badly, how))
        assert (exc.stack is None) == (how == "killed")
        if exc.stack:
            assert frames(exc)[0] == ("string_at" if how == "read" else "end_badly")


def fork_and_crash() -> int:
    pid = os.fork()
    if pid == 0:
        read_nothing()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_of_a_task_is_no_worker(plain: Any, capfd: Any) -> None:
    assert plain.submit(fork_and_crash).result(PATIENCE) == -signal.SIGSEGV
    exc = lost(plain.submit(end_badly, "abort"))
    assert frames(exc) == ["end_badly"]
    assert capfd.readouterr().err == ""


def fork_and_ask(path: str) -> int:
    pid = os.fork()
    if pid == 0:
        with open(path, "w") as file:
            faulthandler.enable(file)
            read_nothing()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_of_a_task_may_enable_faulthandler(plain: Any, tmp_path: Any) -> None:
    path = tmp_path / "told"
    assert plain.submit(fork_and_ask, str(path)).result(PATIENCE) == -signal.SIGSEGV
    assert "read_nothing" in path.read_text()


def the_culprit(others: int, thread: bool) -> None:
    stop = threading.Event()
    for _ in range(others):
        threading.Thread(target=stop.wait, daemon=True).start()
    if thread:
        other = threading.Thread(target=read_nothing)
        other.start()
        other.join()
    read_nothing()


@pytest.mark.parametrize("thread", [False, True])
def test_of_many_threads_the_one_that_crashed_is_there(plain: Any, thread: bool) -> None:
    """faulthandler names the latest first, and the main thread last."""
    for others in (4, 16, 30, 60):
        exc = lost(plain.submit(the_culprit, others, thread))
        assert exc.stack.count("Current thread") == 1
        at = exc.stack.index("Current thread")
        assert "in read_nothing" in exc.stack[at:].split("\n\n")[0]
        assert len(exc.stack) <= 8200


def use_up_descriptors() -> None:
    try:
        while True:
            os.dup(0)
    except OSError:
        pass
    read_nothing()


def lower_the_limit(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.dup2(fd, min(most, 1024) - 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    read_nothing()


def test_a_task_may_use_up_its_descriptors(plain: Any, tmp_path: Any) -> None:
    assert frames(lost(plain.submit(use_up_descriptors)))[-1] == "use_up_descriptors"
    path = tmp_path / "file"
    lost(plain.submit(lower_the_limit, str(path)))
    assert path.read_bytes() == b""


def close_all() -> None:
    os.closerange(3, 10000)
    read_nothing()


def open_all(path: str, n: int) -> None:
    os.closerange(3, 10000)
    for _ in range(n):
        os.open(path, os.O_WRONLY | os.O_CREAT)
    read_nothing()


def test_a_task_may_close_what_it_likes(plain: Any, tmp_path: Any) -> None:
    assert frames(lost(plain.submit(close_all)))[-1] == "close_all"
    path = tmp_path / "file"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for n in range(min(most, 1024) - 8, min(most, 1024) - 3):
        # One of them ends next to where faulthandler writes to.
        assert frames(lost(plain.submit(open_all, str(path), n)))[-1] == "open_all"
    assert path.read_bytes() == b""


@pytest.mark.parametrize("start", PROCESSES)
def test_where_faulthandler_is_enabled_it_speaks_as_well(run_script: Any, start: str) -> None:
    """The environment of these scripts has PYTHONFAULTHANDLER."""
    out, err = run_script(
        """
import ctypes, faulthandler, sys
import trireme as tri
def crash(): ctypes.string_at(0)
with tri.Pool(1, start=sys.argv[1]) as pool:
    exc = pool.submit(crash).exception(60)
    print(faulthandler.is_enabled(), exc.stack.count(" in crash"))
    with open("told", "w") as file:
        faulthandler.enable(file)  # the workers have what was so when the pool was opened
        print(pool.submit(crash).exception(60).stack.count(" in crash"))
with open("told", "w") as file, tri.Pool(1, start=sys.argv[1]) as pool:
    faulthandler.enable(file)
    print(pool.submit(crash).exception(60).stack is None)
""",
        start,
    )
    assert out.split() == ["True", "1", "1", str(start == "fork")]
    assert err.count("Fatal Python error: Segmentation fault") == (2 if start == "fork" else 3)


def test_what_is_below_the_tasks_is_left_out(plain: Any) -> None:
    def nested() -> Any:
        with tri.Pool(1, start="fork") as inner:
            return inner.submit(end_badly, "read").exception(PATIENCE)

    exc = plain.submit(nested).result(PATIENCE)
    assert frames(exc) == ["string_at", "read_nothing", "end_badly"]


def test_one_crash_for_many_items(plain: Any) -> None:
    with pytest.raises(tri.WorkerLost) as caught:
        plain.map(end_badly, ["read"])
    exc = caught.value
    assert frames(exc)[-1] == "end_badly"


def test_an_executor_that_breaks_says_it_too() -> None:
    enabled = faulthandler.is_enabled()
    faulthandler.disable()
    try:
        with futures.ProcessPoolExecutor(1) as executor:
            exc = executor.submit(read_nothing).exception(PATIENCE)
    finally:
        if enabled:
            faulthandler.enable(sys.__stderr__)
    assert isinstance(exc, cf.BrokenExecutor)
    assert "read_nothing" in "".join(traceback.format_exception(exc))
