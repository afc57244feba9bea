# SPDX-License-Identifier: BSD-3-Clause
"""Wardens and workers that hang while they start, stop answering, or outlive their owner.

With the package built with kill points, where the time for an answer is read from the environment.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from test_start_methods import OPEN, lines

STUCK = (
    """
import os, sys
sys.path.insert(0, os.environ["TRIREME_CP_SITE"])
os.environ["TRIREME_START_TIMEOUT_MS"] = "3000"
"""
    + OPEN
    + """
import signal, time
def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
def gone(pid):
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end: time.sleep(0.01)
    return not alive(pid)
"""
)
WITH_CP = pytest.mark.skipif(
    "TRIREME_CP_SITE" not in os.environ, reason="needs the build with kill points"
)


@WITH_CP
@pytest.mark.parametrize("where", ["import", "fork"])
def test_a_warden_stuck_in_its_start_is_killed(
    start_script: Any, tmp_path: Any, where: str
) -> None:
    # A library that every worker wants, and that hangs the process that imports or forks it.
    (tmp_path / "numpy.py").write_text(
        """
import os, time
def hang():
    with open(os.environ["STUCK"], "w") as file: file.write(str(os.getpid()))
    time.sleep(100)
if os.environ.get("WHERE") == "import": hang()
if os.environ.get("WHERE") == "fork": os.register_at_fork(after_in_child=hang)
"""
    )
    source = f"""{STUCK}
sys.path.insert(0, {str(tmp_path)!r})
import numpy
os.environ["WHERE"], os.environ["STUCK"] = {where!r}, {str(tmp_path / "pid")!r}
start = time.monotonic()
try:
    open_pool()
except TimeoutError as exc:
    print(exc)
print(3 <= time.monotonic() - start < 20)
print(gone(int(open(os.environ["STUCK"]).read())))
del os.environ["WHERE"]
with open_pool() as pool:
    print(pool.map(abs, [-1]))
"""
    with start_script(source, "forkserver") as script:
        code, out, err = script.end(60)
        assert (code, err) == (0, "")
        assert lines(out) == [
            "the process that starts workers did not answer in time",
            "True",
            "True",
            "[1]",
        ]
        gone_by = time.monotonic() + 1  # the warden leaves when it sees that the owner has
        while script.group():
            assert time.monotonic() < gone_by, "a process was left over"
            time.sleep(0.01)


@WITH_CP
def test_a_worker_stuck_in_a_handler_breaks_the_pool(start_script: Any) -> None:
    source = f"""{STUCK}
os.register_at_fork(after_in_child=lambda: time.sleep(100))
start = time.monotonic()
with tri.Pool(2, start="fork") as pool:
    try:
        print(pool.map(abs, [-1]))
    except tri.WorkerLost as exc:
        print(exc)
    print(3 <= time.monotonic() - start < 20)
"""
    with start_script(source, "fork") as script:
        code, out, err = script.end(60)
        assert (code, err) == (0, "")
        assert "a worker hung in a handler" in lines(out)[0] and lines(out)[1:] == ["True"]
        until_gone(script)


@WITH_CP
def test_a_warden_that_stops_answering_is_replaced(start_script: Any) -> None:
    source = f"""{STUCK}
with open_pool(1) as pool:
    first = pool.submit(os.getppid).result()
os.kill(first, signal.SIGSTOP)
with open_pool(1) as pool:
    second = pool.submit(os.getppid).result()
    print(first != second, gone(first))
    os.kill(second, signal.SIGSTOP)
    with open_pool(1) as other:  # the stopped one serves a pool, which goes on
        third = other.submit(os.getppid).result()
        print(third != second, alive(second), pool.map(abs, [-1]))
    os.kill(second, signal.SIGCONT)  # it finds an order whose pool was given up
    for _ in range(50):
        time.sleep(0.01)
        assert pool.submit(os.getppid).result() == second
    print(alive(second))
"""
    with start_script(source, "forkserver") as script:
        code, out, err = script.end(60)
        assert (code, err) == (0, "")
        assert lines(out) == ["True True", "True True [1]", "True"]
        until_gone(script)


@WITH_CP
def test_a_stopped_warden_does_not_outlive_its_owner(start_script: Any) -> None:
    source = f"""{STUCK}
pool = open_pool(1)
stopped = pool.submit(os.getppid).result()
os.kill(stopped, signal.SIGSTOP)
other = open_pool(1)
print(other.submit(os.getppid).result() != stopped, alive(stopped))
"""
    with start_script(source, "forkserver") as script:
        code, out, err = script.end(60)
        assert (code, err) == (0, "")
        assert lines(out) == ["True True"]
        until_gone(script)


def until_gone(script: Any) -> None:
    gone_by = time.monotonic() + 10
    while script.group():
        assert time.monotonic() < gone_by, "processes outlived their owner"
        time.sleep(0.01)
