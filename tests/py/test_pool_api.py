# SPDX-License-Identifier: BSD-3-Clause
"""A pool from opening to its end: options, initializers, stats, threads of the caller, nesting."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import pickle
import random
import sys
import threading
import time
import tracemalloc
import weakref
from typing import Any

import pytest
import trireme as tri
from conftest import PROCESSES, live_bytes, open_pool, settle, until


def square(x: int) -> int:
    return x * x


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def pids_of(pool: Any) -> list[int]:
    """All workers, once they are up: a pool opens before they are."""
    until(lambda: len(pool.stats()["pids"]) == pool.workers)
    return pool.stats()["pids"]


# -------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"workers": 0}, ValueError, "1 to 1024"),
        ({"workers": -1}, ValueError, "1 to 1024"),
        ({"workers": 5000}, ValueError, "1 to 1024"),
        ({"workers": "2"}, TypeError, "int"),
        ({"workers": True}, TypeError, "int"),
        ({"workers": 2.0}, TypeError, "int"),
        ({"kind": "green"}, ValueError, "kind must be one of"),
        ({"start": "magic"}, ValueError, "start must be one of"),
        ({"initializer": 5}, TypeError, "callable"),
        ({"max_tasks_per_worker": 0}, ValueError, "at least 1"),
        ({"max_tasks_per_worker": 1.5}, TypeError, "int"),
        ({"colour": "red"}, TypeError, "colour"),
    ],
)
@pytest.mark.parametrize("kind", ["process", "thread", "serial"])
def test_bad_options_are_refused(kind: str, options: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        tri.Pool(**{"kind": kind, **options})


def test_workers_default_to_the_cpus() -> None:
    with tri.Pool() as pool:
        assert pool.workers == tri.cpu_count()
        assert pool.kind == "process"
        assert pool.start == "forkserver"


def test_cpu_count_honours_the_environment(run_script: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHON_CPU_COUNT", "3")
    out, _ = run_script(
        "import trireme as tri; print(tri.cpu_count(), tri.Pool(kind='thread').workers)"
    )
    assert out.split() == ["3", "3"]
    assert tri.cpu_count(physical=True) >= 1


def test_repr_says_what_and_in_which_state(workers: Any) -> None:
    assert "2" in repr(workers)
    assert "open" in repr(workers)
    workers.close()
    assert "closed" in repr(workers)
    workers.join()
    assert "joined" in repr(workers)


def test_one_worker_and_many_workers() -> None:
    for n in (1, 9):
        with open_pool("fork", n) as pool:
            assert pool.map(square, range(100)) == [x * x for x in range(100)]
            assert len(pids_of(pool)) == n


def test_stats_count_tasks(workers: Any) -> None:
    for i in range(10):
        workers.submit(square, i).result(20)
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 / 0).result(20)
    stats = workers.stats()
    assert stats["submitted"] == stats["completed"] == 11
    assert stats["failed"] == 1
    assert stats["workers"] == 2
    assert stats["deaths"] == 0
    assert stats["slots_free"] == stats["slots"]
    assert stats["pids"] == [] if workers.kind == "thread" else len(stats["pids"]) <= 2


# -------------------------------------------------------------- apply


def test_apply_and_apply_async(pool: Any) -> None:
    assert pool.apply(pow, (2, 5)) == 32
    assert pool.apply(int, ["ff"], {"base": 16}) == 255
    assert pool.apply(dict) == {}
    result = pool.apply_async(pow, (2, 6))
    assert result.get(20) == 64
    assert result.ready()
    assert result.successful()
    values: list[Any] = []
    errors: list[Any] = []
    done = threading.Event()
    a = pool.apply_async(square, (3,), callback=values.append)
    b = pool.apply_async(square, ("x",), error_callback=lambda e: (errors.append(e), done.set()))
    assert a.get(20) == 9
    with pytest.raises(TypeError):
        b.get(20)
    assert done.wait(20)
    until(lambda: values == [9])
    assert not b.successful()
    assert isinstance(errors[0], TypeError)


def test_apply_keywords_may_be_named_like_options(pool: Any) -> None:
    def task(timeout: int = 0, retries: int = 0, priority: int = 0) -> tuple:
        return timeout, retries, priority

    assert pool.apply(task, (), {"timeout": 1, "retries": 2, "priority": 3}) == (1, 2, 3)


# -------------------------------------------------------------- ending


def test_close_lets_tasks_finish_and_refuses_new_ones(pool: Any) -> None:
    result = pool.map_async(nap, [0.01] * 4, chunk=1)
    pool.close()
    for call in (
        lambda: pool.map(square, [1]),
        lambda: pool.submit(square, 1),
        lambda: pool.imap(square, [1]),
        lambda: pool.apply(square, (1,)),
        lambda: pool.map_async(square, [1]),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()
    pool.join()
    assert result.get(0) == [0.01] * 4


def test_join_needs_close(pool: Any) -> None:
    with pytest.raises(ValueError, match="still open"):
        pool.join()


def test_ending_twice_is_harmless(pool: Any) -> None:
    pool.close()
    pool.close()
    pool.join()
    pool.join()
    pool.terminate()
    pool.terminate()
    with pytest.raises(ValueError, match="closed"):
        pool.submit(square, 1)


def test_results_are_readable_after_the_end(workers: Any) -> None:
    np = pytest.importorskip("numpy")
    plain = workers.submit(square, 3)
    array = workers.submit(np.arange, 100_000)
    workers.close()
    workers.join()
    assert plain.result(0) == 9
    assert array.result(0)[-1] == 99_999


def test_workers_are_gone_after_join(processes: Any) -> None:
    pids = pids_of(processes)
    processes.close()
    processes.join()
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}") or _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()[0] in "ZX"


def test_terminate_ends_busy_workers_at_once(processes: Any) -> None:
    pids = pids_of(processes)
    futures = [processes.submit(nap, 60) for _ in range(4)]
    until(lambda: sum(f.running() for f in futures) == 2)
    start = time.monotonic()
    processes.terminate()
    assert time.monotonic() - start < 2.0
    for pid in pids:
        until(lambda p=pid: not os.path.exists(f"/proc/{p}") or _is_zombie(p), 2)


def test_terminate_ends_every_future_even_very_many(processes: Any) -> None:
    futures = [processes.submit(nap, 60) for _ in range(5000)]
    processes.terminate()
    assert all(f.done() for f in futures)


def test_leaving_the_block_finishes_the_tasks(workers: Any) -> None:
    with workers:
        futures = [workers.submit(nap, 0.02) for _ in range(6)]
    assert all(f.done() for f in futures)
    assert [f.result(0) for f in futures] == [0.02] * 6


def test_an_exception_out_of_the_block_terminates(processes: Any) -> None:
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError), processes:
        future = processes.submit(nap, 60)
        until(future.running)
        raise ZeroDivisionError
    assert time.monotonic() - start < 5
    with pytest.raises(tri.WorkerLost):
        future.result(0)


def test_dropped_pool_ends_its_workers() -> None:
    pool = open_pool("forkserver")
    pids = pids_of(pool)
    ref = weakref.ref(pool)
    del pool
    gc.collect()
    assert ref() is None
    for pid in pids:
        until(lambda p=pid: not os.path.exists(f"/proc/{p}") or _is_zombie(p), 3)


def test_pool_cannot_be_pickled_and_says_why(workers: Any) -> None:
    with pytest.raises(TypeError, match="belongs to the process that opened it"):
        pickle.dumps(workers)
    if workers.kind == "process":
        with pytest.raises(TypeError, match="belongs to the process that opened it"):
            workers.submit(len, [workers]).result(20)
        with pytest.raises(TypeError, match="belongs to the process that opened it"):
            workers.map(lambda x: workers, [1])


def test_descriptors_are_given_back(processes: Any) -> None:
    start = processes.way
    with open_pool(start) as first:
        first.map(square, range(10))
    del first
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with open_pool(start) as pool:
            pool.map(square, range(10))
        del pool
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


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


def test_random_numbers_differ_between_workers_and_from_the_owner(processes: Any) -> None:
    random.seed(1)
    own = random.random()
    random.seed(1)

    def draw(_: int) -> tuple[int, float]:
        end = time.monotonic() + 0.02
        value = random.random()
        while time.monotonic() < end:
            pass
        return os.getpid(), value

    drawn = processes.map(draw, range(8), chunk=1)
    first = {}
    for pid, value in drawn:
        first.setdefault(pid, value)
    assert len(first) == 2
    assert len({*first.values(), own}) == 3


def test_numpy_random_state_differs_between_workers(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    np.random.seed(7)

    def draw(_: int) -> tuple[int, float]:
        time.sleep(0.02)
        return os.getpid(), float(np.random.random())

    first: dict[int, float] = {}
    for pid, value in processes.map(draw, range(8), chunk=1):
        first.setdefault(pid, value)
    np.random.seed(7)
    assert len({*first.values(), float(np.random.random())}) == 3


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


# -------------------------------------------------------------- threads of the caller


def test_many_threads_share_one_pool(workers: Any) -> None:
    errors: list[BaseException] = []

    def use(seed: int) -> None:
        try:
            for i in range(40):
                assert workers.submit(square, seed + i).result(30) == (seed + i) ** 2
            assert workers.map(square, range(seed, seed + 500)) == [
                x * x for x in range(seed, seed + 500)
            ]
            assert list(workers.imap(square, range(60))) == [x * x for x in range(60)]
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=use, args=(1000 * i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads)
    assert errors == []


def test_a_pool_works_in_another_thread_than_the_main_one() -> None:
    got: list[Any] = []

    def use(way: str) -> None:
        try:
            with open_pool(way) as pool:
                got.append(pool.map(square, range(10)))
        except BaseException as exc:
            got.append(exc)

    for way in (*PROCESSES, "thread"):
        thread = threading.Thread(target=use, args=(way,))
        thread.start()
        thread.join(30)
    assert got == [[x * x for x in range(10)]] * 4


def test_several_threads_may_draw_from_one_iterator(workers: Any) -> None:
    results = workers.imap(square, range(3000))
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.extend(results)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert sorted(got) == [x * x for x in range(3000)]


def test_a_waiting_thread_does_not_hold_the_others_up(fast: Any) -> None:
    slow = fast.submit(nap, 0.5)
    waiter = threading.Thread(target=slow.result)
    waiter.start()
    start = time.monotonic()
    for i in range(100):
        assert fast.submit(square, i).result(20) == i * i
    assert time.monotonic() - start < 0.45
    waiter.join(20)


def test_two_pools_do_not_disturb_each_other() -> None:
    with open_pool("forkserver") as a, open_pool("fork") as b, open_pool("thread") as c:
        futures = [p.submit(square, i) for i in range(300) for p in (a, b, c)]
        assert [f.result(20) for f in futures] == [i * i for i in range(300) for _ in range(3)]
        a.terminate()
        assert b.map(square, [3]) == c.map(square, [3]) == [9]


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


# -------------------------------------------------------------- leaks


def test_arena_is_empty_when_nothing_is_held(processes: Any) -> None:
    processes.map(square, range(1000))
    processes.map(str.upper, ["x" * 5000] * 50)
    before = settle(processes)
    for _ in range(3):
        processes.map(square, range(5000))
        processes.map(str.upper, ["y" * 70_000] * 20)
        [f.result(20) for f in [processes.submit(str.upper, "z" * 10_000) for _ in range(100)]]
        for r in processes.imap(str.upper, ["w" * 9000] * 100):
            del r
        with pytest.raises(ZeroDivisionError):
            processes.map(lambda x: [1] * 10_000 if x else 1 / 0, range(100, -1, -1))
    settle(processes, before)


def test_memory_of_the_owner_is_flat_over_many_calls(workers: Any) -> None:
    def use(n: int) -> None:
        for i in range(n):
            workers.submit(square, i).result(20)
            if i % 50 == 0:
                workers.map(square, range(200))
                list(workers.imap(str, range(30)))
                workers.apply_async(square, (i,)).get(20)
                try:
                    workers.submit(int, "x").result(20)
                except ValueError:
                    pass

    use(1500)
    gc.collect()
    tracemalloc.start()
    use(500)
    gc.collect()
    first = tracemalloc.get_traced_memory()[0]
    use(4000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert grown < 40_000


def test_resident_memory_is_flat_over_a_hundred_thousand_calls(fast: Any) -> None:
    """What tracemalloc does not see: memory of the C part."""

    def rss() -> int:
        gc.collect()
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    def use(n: int) -> None:
        for _ in range(n // 1000):
            for f in [fast.submit(square, i) for i in range(400)]:
                f.result(20)
            for _ in fast.imap(str, range(300), chunk=1):
                pass
            fast.map(square, range(300), chunk=1)

    use(20_000)
    before = rss()
    use(100_000)
    assert rss() - before < 2 << 20


def test_functions_made_anew_for_each_call_do_not_pile_up(fast: Any) -> None:
    def fresh(i: int) -> Any:
        return lambda x: x + i

    for i in range(600):
        assert fast.submit(fresh(i), 1).result(20) == 1 + i
    gc.collect()
    peak = live_bytes(fast)
    for i in range(1200):
        assert fast.submit(fresh(i), 1).result(20) == 1 + i
    assert live_bytes(fast) < peak + 400_000
    assert sum(type(o).__module__ == "trireme._core" for o in gc.get_objects()) < 600


def test_worker_memory_is_flat_over_many_functions(fast: Any) -> None:
    def rss(_: int) -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    def burn(n: int) -> None:
        for i in range(n):
            fast.submit(lambda x, i=i: x + i, 1).result(20)

    burn(400)
    before = max(fast.map(rss, range(20), chunk=1))
    burn(1500)
    assert max(fast.map(rss, range(20), chunk=1)) - before < 6 << 20
