# SPDX-License-Identifier: BSD-3-Clause
"""trireme.futures: deaths, time limits, retries, initializers and workers that are replaced."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from pathlib import Path
from typing import Any

import pytest
import trireme as tri
from futureslib import (
    LONG,
    double,
    fail,
    get_state,
    kill_self,
    open_executor,
    set_state,
    touch,
    until,
)
from trireme.futures import ThreadPoolExecutor

pytest_plugins = ("futureslib",)


def test_a_death_breaks_the_executor_by_default(start: str) -> None:
    with open_executor(start) as e:
        finished = e.submit(double, 4)
        assert finished.result() == 8
        others = [e.submit(time.sleep, LONG) for _ in range(4)]
        until(others[0].running)
        next(iter(e._processes.values())).kill()
        # Ended without anybody's asking for it: callbacks are a way to see that.
        told = threading.Event()
        others[-1].add_done_callback(lambda _: told.set())
        assert told.wait(LONG)
        for f in others:
            assert isinstance(f.exception(LONG), BrokenProcessPool)
        with pytest.raises(BrokenProcessPool, match="the process pool is not usable anymore"):
            e.submit(double, 1)
        assert finished.result() == 8
        assert e._broken


def test_whoever_was_told_of_a_death_cannot_submit(start: str) -> None:
    for _ in range(5):
        with open_executor(start) as e:
            with pytest.raises(BrokenProcessPool):
                e.submit(kill_self).result()
            with pytest.raises(BrokenProcessPool):
                e.submit(double, 1)


def test_with_isolate_a_death_costs_its_task_only(start: str) -> None:
    with open_executor(start, on_crash="isolate") as e:
        before, dead, after = (e.submit(f) for f in (os.getpid, kill_self, os.getpid))
        assert isinstance(dead.exception(LONG), tri.WorkerLost)
        assert before.result() and after.result()
        assert list(e.map(double, range(20))) == [2 * i for i in range(20)]


@pytest.mark.parametrize("on_crash", ["break", "isolate"])
def test_a_time_limit_ends_its_task_and_breaks_nothing(on_crash: Any) -> None:
    with open_executor("fork", timeout=0.2, on_crash=on_crash) as e:
        late = e.submit(time.sleep, LONG)
        assert isinstance(late.exception(LONG), tri.TaskTimeout)
        assert isinstance(late.exception(), TimeoutError)
        assert list(e.map(double, range(5))) == [0, 2, 4, 6, 8]


def die_once(path: str) -> str:
    if not os.path.exists(path):
        touch(path)
        kill_self()
    return "alive"


@pytest.mark.parametrize("on_crash", ["break", "isolate"])
def test_a_task_with_retries_outlives_a_death(on_crash: Any, tmp_path: Path) -> None:
    with open_executor("fork", 1, retries=1, on_crash=on_crash) as e:
        assert e.submit(die_once, str(tmp_path / "x")).result(LONG) == "alive"
        assert e.submit(double, 1).result(LONG) == 2
        with pytest.raises(BrokenProcessPool):
            e.submit(kill_self).result(LONG)


def test_initializers_run_in_every_worker(executor: Any) -> None:
    with type(executor)(2, initializer=set_state, initargs=(11,)) as e:
        assert {e.submit(get_state).result() for _ in range(10)} == {11}


def test_a_failing_initializer_breaks_the_executor(executor: Any) -> None:
    cls = BrokenThreadPool if isinstance(executor, ThreadPoolExecutor) else BrokenProcessPool
    options = {}
    if cls is BrokenProcessPool:
        options["mp_context"] = executor._mp_context
    with type(executor)(2, initializer=fail, **options) as e:
        future = e.submit(double, 1)
        assert isinstance(future.exception(LONG), cls)
        until(lambda: e._broken)
        with pytest.raises(cls):
            e.submit(double, 1)


@pytest.mark.parametrize("kind", ["spawn", "forkserver"])
def test_max_tasks_per_child_replaces_workers_and_breaks_nothing(kind: str) -> None:
    with open_executor(kind, 1, max_tasks_per_child=2) as e:
        pids = [e.submit(os.getpid).result(LONG) for _ in range(6)]
        assert len(set(pids)) == 3
        assert all(pids[i] == pids[i + 1] for i in (0, 2, 4))


def test_managers_are_known_to_the_workers(start: str) -> None:
    context = multiprocessing.get_context(start)
    with context.Manager() as manager, open_executor(start) as e:
        shared = manager.list()
        list(e.map(shared.append, range(5)))
        assert sorted(shared) == list(range(5))


def test_threads_have_the_names_that_were_asked_for() -> None:
    with ThreadPoolExecutor(2, "reader") as e:
        names = {e.submit(lambda: threading.current_thread().name).result() for _ in range(10)}
        assert names <= {"reader_0", "reader_1"}
        assert len(e._threads) == 1  # it was idle each time


def test_a_task_may_wait_for_another_of_the_same_threads() -> None:
    with ThreadPoolExecutor(2) as e:
        assert e.submit(lambda: e.submit(double, 21).result()).result(LONG) == 42
