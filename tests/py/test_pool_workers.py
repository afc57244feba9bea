# SPDX-License-Identifier: BSD-3-Clause
"""What a worker of a pool is like: initializers, surroundings, nested pools, and what it prints."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import trireme as tri
from conftest import PROCESSES, open_pool, until
from tasklib import square

# -------------------------------------------------------------- initializer


def remember(value: int) -> None:
    threading.current_thread().remembered = value  # type: ignore[attr-defined]
    os.environ["TRIREME_TEST_REMEMBERED"] = str(value)


def recall(_: int) -> int:
    return threading.current_thread().remembered  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", [*PROCESSES, "thread", "serial"])
def test_initializer_runs_in_each_worker_before_its_first_task(way: str) -> None:
    with open_pool(way, initializer=remember, initargs=(42,)) as pool:
        assert set(pool.map(recall, range(50), chunk=1)) == {42}


def broken(message: str) -> None:
    raise LookupError(message)


@pytest.mark.parametrize("way", [*PROCESSES, "thread"])
def test_failing_initializer_is_one_clear_error_and_no_hang(way: str, capfd: Any) -> None:
    start = time.monotonic()
    with open_pool(way, initializer=broken, initargs=("no licence",)) as pool:
        for call in (
            lambda: pool.submit(square, 1).result(20),
            lambda: pool.map(square, range(10)),
            lambda: list(pool.imap(square, range(10))),
        ):
            with pytest.raises(LookupError, match="no licence"):
                call()
        if pool.kind == "process":
            assert pool.stats()["restarts"] <= 10
    assert time.monotonic() - start < 15
    assert capfd.readouterr().err == ""


def test_initializer_by_value_sees_its_closure() -> None:
    table = {"answer": 42}

    def prepare() -> None:
        import builtins

        builtins.trireme_test_table = table  # type: ignore[attr-defined]

    def look(_: int) -> int:
        import builtins

        return builtins.trireme_test_table["answer"]  # type: ignore[attr-defined]

    with open_pool("spawn", initializer=prepare) as pool:
        assert pool.map(look, range(4)) == [42] * 4


@pytest.mark.parametrize("way", PROCESSES)
def test_worker_is_replaced_after_so_many_tasks(way: str) -> None:
    with open_pool(way, max_tasks_per_worker=5) as pool:
        pids = [pool.submit(os.getpid).result(20) for _ in range(40)]
        assert max(pids.count(p) for p in set(pids)) <= 5
        assert len(set(pids)) >= 8
        assert pool.stats()["deaths"] == 0
        assert pool.map(square, range(100), chunk=1) == [x * x for x in range(100)]


# -------------------------------------------------------------- what a worker is like


def first_draws(pool: Any, draw: Callable[[], float]) -> list[float]:
    """The first number that each worker draws."""

    def task(_: int) -> tuple[int, float]:
        time.sleep(0.01)  # so that the next task goes to another worker
        return os.getpid(), draw()

    first: dict[int, float] = {}

    def all_drew() -> bool:
        for pid, value in pool.map(task, range(4), chunk=1):
            first.setdefault(pid, value)
        return len(first) == pool.workers

    until(all_drew)
    return list(first.values())


def end_by(how: str) -> None:
    if how == "exit":
        os._exit(1)
    os.kill(os.getpid(), getattr(signal, how))


def at_its_end(how: str) -> None:
    from multiprocessing import util

    util.Finalize(None, end_by, (how,), exitpriority=1)


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
@pytest.mark.parametrize("way", PROCESSES)
def test_a_worker_that_dies_as_it_ends_is_not_replaced(way: str, how: str) -> None:
    pool = open_pool(way, initializer=at_its_end, initargs=(how,))
    assert pool.map(abs, range(-9, 0)) == list(range(9, 0, -1))
    pool.close()
    pool.join()
    stats = pool.stats()
    assert (stats["deaths"], stats["restarts"]) == (0, 0)


def test_random_numbers_differ_between_workers_and_from_the_owner(processes: Any) -> None:
    random.seed(1)
    own = random.random()
    random.seed(1)
    assert len({*first_draws(processes, lambda: random.random()), own}) == 3


def test_numpy_random_state_differs_between_workers(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    np.random.seed(7)
    drawn = first_draws(processes, lambda: float(np.random.random()))
    np.random.seed(7)
    assert len({*drawn, float(np.random.random())}) == 3


def test_blas_threads_are_limited_so_that_cpus_are_used_once(monkeypatch: Any) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def limits() -> tuple[Any, Any]:
        return os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS")

    for way in PROCESSES:
        workers = tri.cpu_count()
        with open_pool(way, workers) as pool:
            assert pool.submit(limits).result(20) == ("1", "1")
        with open_pool(way, 1, threads_per_worker=3) as pool:
            assert pool.submit(limits).result(20) == ("3", "3")
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_limit_set_by_the_user_is_kept(run_script: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    source = """
        import os, trireme as tri
        for start in ("fork", "forkserver", "spawn"):
            with tri.Pool(2, start=start) as pool:
                print(pool.submit(lambda: os.environ["OMP_NUM_THREADS"]).result())
    """
    assert run_script(source)[0].split() == ["5", "5", "5"]


def test_path_and_arguments_are_the_owners(processes: Any) -> None:
    assert processes.submit(lambda: sys.argv).result(20) == sys.argv
    own = [os.path.abspath(p) if p else os.getcwd() for p in sys.path]
    assert processes.submit(lambda: sys.path).result(20) == own
    assert processes.submit(os.getcwd).result(20) == os.getcwd()


SETTINGS = """
    import sys, warnings
    sys.setrecursionlimit(4000)
    warnings.filterwarnings("error", "from a task", RuntimeWarning)
    import trireme as tri

    def deep(n):
        return n and 1 + deep(n - 1)

    def warn():
        try:
            warnings.warn("from a task", RuntimeWarning)
        except RuntimeWarning:
            return sys.flags.optimize, sys.flags.bytes_warning, sys.warnoptions[0]

    def begin():
        global seen
        seen = sys.getrecursionlimit()

    for start in ("fork", "forkserver", "spawn"):
        with tri.Pool(1, start=start, initializer=begin) as pool:
            print(pool.submit(deep, 3000).result(), *pool.submit(warn).result(), end=" ")
            print(pool.submit(lambda: seen).result())
"""


def test_settings_of_the_interpreter_are_the_owners(run_script: Any) -> None:
    out, err = run_script(SETTINGS, flags=("-bb", "-O", "-Wignore::UserWarning"))
    assert out.splitlines() == ["3000 1 2 ignore::UserWarning 4000"] * 3
    assert err == ""


def test_settings_that_nobody_changed_are_not_sent(run_script: Any) -> None:
    source = """
        import sys, warnings
        from trireme import _settings
        print(_settings.changed())
        try:
            import numpy
        except ImportError:
            pass
        print(_settings.changed())
        warnings.simplefilter("ignore")
        print(sorted(_settings.changed()))
    """
    assert run_script(source)[0].splitlines() == ["{}", "{}", "['warnings']"]


def test_filters_that_cannot_be_had_stay_behind() -> None:
    from trireme import _settings

    with warnings.catch_warnings():
        _settings.apply(
            {
                "warnings": [
                    ("error", None, "no_such_module:Nothing", None, 0),
                    ("error", None, "__main__:Mine", None, 0),
                    ("error", "hello", "builtins:UserWarning", None, 0),
                ],
                "recursion_limit": 1,
            }
        )
        with pytest.raises(UserWarning):
            warnings.warn("Hello, you", UserWarning, stacklevel=1)


def test_nested_pools_work_in_tasks(processes: Any) -> None:
    def inner(n: int) -> int:
        import trireme as tri

        with tri.Pool(1) as pool:
            return sum(pool.map(lambda x: x * x, range(n)))

    assert processes.map(inner, [10, 20, 30]) == [
        sum(x * x for x in range(n)) for n in (10, 20, 30)
    ]


def test_nested_default_pool_has_one_worker(fast: Any) -> None:
    def inner(_: int) -> tuple[int, list[int]]:
        import trireme as tri

        return tri.default_pool().workers, tri.map(abs, [-1, -2])

    assert fast.map(inner, range(2)) == [(1, [1, 2])] * 2


def test_tasks_may_start_children_of_their_own(processes: Any) -> None:
    def task(x: int) -> str:
        import subprocess

        return subprocess.run(["echo", str(x)], capture_output=True, text=True).stdout.strip()

    assert processes.map(task, range(3)) == ["0", "1", "2"]


# -------------------------------------------------------------- output


def test_prints_of_workers_reach_the_owners_stdout_before_the_result(
    processes: Any, capsys: Any
) -> None:
    def talk(x: int) -> int:
        print("line", x)
        print("half", end="")
        print("error", x, file=sys.stderr)
        return x

    assert processes.submit(talk, 7).result(20) == 7
    seen = capsys.readouterr()
    assert seen.out == "line 7\nhalf"
    assert seen.err == "error 7\n"
    print()
    processes.map(talk, range(5), chunk=1)
    seen = capsys.readouterr()
    assert sorted(x for x in seen.out.replace("half", "").split("\n") if x) == [
        f"line {i}" for i in range(5)
    ]


def test_prints_of_one_worker_come_in_order(capsys: Any) -> None:
    with open_pool("forkserver", 1) as pool:

        def talk(x: int) -> None:
            for i in range(100):
                print(x, i)

        pool.map(talk, range(20), chunk=1)
    lines = capsys.readouterr().out.split("\n")
    assert lines[:-1] == [f"{x} {i}" for x in range(20) for i in range(100)]


def test_redirected_stdout_gets_the_prints(processes: Any) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        processes.map(print, ["a"])
        assert list(processes.imap(print, ["b"])) == [None]
        processes.submit(print, "c").result(20)
        processes.map_async(print, ["d"]).get(20)
        processes.apply(print, ("e",))
    assert out.getvalue() == "a\nb\nc\nd\ne\n"


def test_much_output_neither_blocks_nor_gets_lost(fast: Any, capsys: Any) -> None:
    def flood(x: int) -> int:
        for _ in range(2000):
            print("x" * 200)
        return x

    assert fast.map(flood, range(4), chunk=1) == [0, 1, 2, 3]
    assert capsys.readouterr().out == ("x" * 200 + "\n") * 8000


def test_output_before_a_death_is_not_lost(processes: Any, capsys: Any) -> None:
    def last_words() -> None:
        print("last words")
        os._exit(1)

    with pytest.raises(tri.WorkerLost):
        processes.submit(last_words).result(20)
    assert capsys.readouterr().out == "last words\n"


def test_log_records_reach_the_owners_handlers(caplog: Any) -> None:
    caplog.set_level(logging.INFO)

    def task(x: int) -> None:
        logging.getLogger("simulation").warning("step %d", x, extra={"step": x})
        logging.getLogger("simulation").debug("hidden")

    for way in PROCESSES:
        caplog.clear()
        with open_pool(way) as pool:
            pool.submit(task, 3).result(20)
        found = [r for r in caplog.records if r.name == "simulation"]
        assert [r.getMessage() for r in found] == ["step 3"]
        assert found[0].levelno == logging.WARNING
        assert found[0].step == 3
        assert found[0].process != os.getpid()


def test_warnings_in_workers_are_shown_by_the_owner(run_script: Any) -> None:
    source = """
        import trireme as tri, warnings
        def f():
            warnings.warn("mind the gap")
        with tri.Pool(1, start="spawn") as pool:
            pool.submit(f).result()
    """
    _, err = run_script(source)
    assert err.count("UserWarning: mind the gap") == 1
