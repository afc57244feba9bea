# SPDX-License-Identifier: BSD-3-Clause
"""A pool from opening to its end: options, stats, calls, ways to end it, threads of the caller.

What its workers are like is in test_pool_workers.py, what it leaves in memory in
test_pool_memory.py, maps in test_maps.py, futures in test_futures.py.
"""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import trireme as tri
from conftest import PROCESSES, open_pool, pids_of, until
from faultlib import alive
from tasklib import nap, square, wait_for

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
        ({"max_restarts": 0}, ValueError, "max_restarts must be at least 1"),
        ({"max_restarts": -1}, ValueError, "max_restarts must be at least 1"),
        ({"max_restarts": "a"}, TypeError, "max_restarts must be an int"),
        ({"slots": 0}, ValueError, "slots must be from 1 to"),
        ({"slots": -1}, ValueError, "slots must be from 1 to"),
        ({"slots": 10**9}, ValueError, "slots must be from 1 to"),
        ({"slots": True}, TypeError, "slots must be an int"),
        ({"arena_bytes": 0}, ValueError, "arena_bytes must be from 1 to"),
        ({"arena_bytes": -1}, ValueError, "arena_bytes must be from 1 to"),
        ({"arena_bytes": 1.5}, TypeError, "arena_bytes must be an int"),
        ({"spin": -1}, ValueError, "spin must be 0 seconds or more"),
        ({"spin": float("nan")}, ValueError, "spin must be 0 seconds or more"),
        ({"spin": "a"}, TypeError, "spin must be a number of seconds"),
        ({"threads_per_worker": -1}, ValueError, "threads_per_worker must be at least 0"),
        ({"threads_per_worker": "a"}, TypeError, "threads_per_worker must be an int"),
        ({"colour": "red"}, TypeError, "colour"),
    ],
)
@pytest.mark.parametrize("kind", ["process", "thread", "serial"])
def test_bad_options_are_refused(kind: str, options: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        tri.Pool(**{"kind": kind, **options})


class Whole:
    """A number as NumPy's integers are: no int, but it says that it is one."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def test_whatever_is_an_integer_will_do() -> None:
    two = Whole(2)
    with tri.Pool(
        two,  # type: ignore[arg-type]
        max_tasks_per_worker=Whole(1000),  # type: ignore[arg-type]
        threads_per_worker=two,  # type: ignore[arg-type]
        arena_bytes=Whole(1 << 24),  # type: ignore[arg-type]
        slots=Whole(128),  # type: ignore[arg-type]
        max_restarts=two,  # type: ignore[arg-type]
        spin=two.value,
    ) as pool:
        assert (pool.workers, pool.stats()["slots"]) == (2, 128)
        squares = pool.map(square, range(9), chunk=two, retries=two)  # type: ignore[arg-type]
        assert squares == [x * x for x in range(9)]
        assert pool.submit(square, 3, priority=Whole(1)).result(20) == 9  # type: ignore[arg-type]
    with tri.Pool(two, kind="serial") as serial:  # type: ignore[arg-type]
        assert serial.map(square, range(9), chunk=two, priority=two)[8] == 64


@pytest.mark.parametrize(
    "options",
    [{"max_tasks_per_worker": 10**12}, {"threads_per_worker": 10**12}, {"max_restarts": 10**12}],
)
def test_a_number_without_limit_may_be_huge(options: dict) -> None:
    with tri.Pool(1, start="fork", **options) as pool:
        assert pool.submit(square, 3).result(20) == 9


@pytest.mark.parametrize("kind", ["thread", "serial"])
def test_what_needs_processes_is_refused_elsewhere(kind: str) -> None:
    for options in ({"max_tasks_per_worker": 3}, {"threads_per_worker": 2}):
        with pytest.raises(ValueError, match="needs worker processes"):
            tri.Pool(1, kind=kind, **options)
    with tri.Pool(1, kind=kind) as pool:
        for options in ({"timeout": 1}, {"retries": 1}):
            for call in (
                lambda o: pool.map(square, [1], **o),
                lambda o: pool.starmap(pow, [(1, 2)], **o),
                lambda o: pool.imap(square, [1], **o),
                lambda o: pool.imap_unordered(square, [1], **o),
                lambda o: pool.map_async(square, [1], **o),
                lambda o: pool.starmap_async(pow, [(1, 2)], **o),
                lambda o: pool.submit(square, 1, **o),
                lambda o: pool.apply(square, (1,), **o),
                lambda o: pool.apply_async(square, (1,), **o),
            ):
                with pytest.raises(ValueError, match="needs worker processes"):
                    call(options)
        # What asks for nothing is no mistake.
        assert pool.map(square, [3], timeout=None, retries=0, priority=1) == [9]
        assert pool.submit(square, 3, timeout=float("inf"), retries=0).result(20) == 9


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
    if workers.kind == "thread":
        assert stats["pids"] == []
    else:
        assert 1 <= len(stats["pids"]) <= 2  # a pool opens before all its workers are up


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
    assert not any(alive(pid) for pid in pids)


def test_terminate_ends_busy_workers_at_once(processes: Any) -> None:
    pids = pids_of(processes)
    futures = [processes.submit(nap, 60) for _ in range(4)]
    until(lambda: sum(f.running() for f in futures) == 2)
    start = time.monotonic()
    processes.terminate()
    assert time.monotonic() - start < 2.0
    until(lambda: not any(alive(pid) for pid in pids), 2)


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
    until(lambda: not any(alive(pid) for pid in pids), 3)


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


def test_a_waiting_thread_does_not_hold_the_others_up(fast: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    slow = fast.submit(wait_for, str(go))
    waiter = threading.Thread(target=slow.result)
    waiter.start()
    until(slow.running)
    for i in range(100):
        assert fast.submit(square, i).result(20) == i * i
    assert waiter.is_alive() and not slow.done()
    go.touch()
    waiter.join(20)
    assert not waiter.is_alive() and slow.result(0) is None


def test_two_pools_do_not_disturb_each_other() -> None:
    with open_pool("forkserver") as a, open_pool("fork") as b, open_pool("thread") as c:
        futures = [p.submit(square, i) for i in range(300) for p in (a, b, c)]
        assert [f.result(20) for f in futures] == [i * i for i in range(300) for _ in range(3)]
        a.terminate()
        assert b.map(square, [3]) == c.map(square, [3]) == [9]
