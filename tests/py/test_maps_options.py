# SPDX-License-Identifier: BSD-3-Clause
"""map, starmap, imap and imap_unordered: their options, and maps in the background."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
import trireme as tri
from conftest import open_pool
from tasklib import add, fails_at_3, square

# -------------------------------------------------------------- options


@pytest.mark.parametrize("method", ["map", "starmap", "imap", "imap_unordered"])
@pytest.mark.parametrize("chunk", [0, -1, 1.5, "1", True])
def test_bad_chunk_is_refused(workers: Any, method: str, chunk: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="chunk"):
        getattr(workers, method)(square, [1, 2], chunk=chunk)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("timeout", 0, ValueError),
        ("timeout", -1, ValueError),
        ("timeout", float("nan"), ValueError),
        ("timeout", "1", TypeError),
        ("retries", -1, ValueError),
        ("retries", 70_000, ValueError),
        ("retries", 1.5, TypeError),
        ("priority", 3, ValueError),
        ("priority", -3, ValueError),
        ("priority", "high", TypeError),
    ],
)
def test_bad_options_are_refused_by_every_method(option: str, value: Any, error: type) -> None:
    with open_pool("fork") as pool:
        for call in (
            lambda **o: pool.map(square, [1], **o),
            lambda **o: pool.starmap(square, [(1,)], **o),
            lambda **o: pool.imap(square, [1], **o),
            lambda **o: pool.imap_unordered(square, [1], **o),
            lambda **o: pool.map_async(square, [1], **o),
            lambda **o: pool.apply(square, (1,), **o),
            lambda **o: pool.apply_async(square, (1,), **o),
            lambda **o: pool.submit(square, 1, **o),
        ):
            with pytest.raises(error, match=option):
                call(**{option: value})
        assert pool.map(square, [3]) == [9]
        assert pool.stats()["submitted"] == 1


def test_unknown_option_is_refused(workers: Any) -> None:
    with pytest.raises(TypeError):
        workers.map(square, [1], chunksize=3)


def test_options_of_none_mean_the_default(workers: Any) -> None:
    assert workers.map(square, [1, 2], chunk=None, timeout=None, retries=0, priority=0) == [1, 4]
    assert workers.submit(square, 3, timeout=None).result(20) == 9


def test_map_timeout_is_per_item(processes: Any) -> None:
    def nap(x: float) -> float:
        time.sleep(x)
        return x

    assert processes.map(nap, [0.05] * 20, timeout=0.6) == [0.05] * 20
    with pytest.raises(tri.TaskTimeout):
        processes.map(nap, [0.0, 30.0, 0.0], timeout=0.2)
    assert processes.map(square, range(5)) == [0, 1, 4, 9, 16]


def test_imap_item_that_runs_too_long_fails_alone(fast: Any) -> None:
    def nap(x: float) -> float:
        time.sleep(x)
        return x

    results = fast.imap(nap, [0.0, 30.0, 0.0, 0.0], timeout=0.2)
    assert next(results) == 0.0
    with pytest.raises(tri.TaskTimeout):
        next(results)
    assert list(results) == [0.0, 0.0]


def test_map_retries_a_task_whose_worker_died(fast: Any, tmp_path: Any) -> None:
    mark = str(tmp_path / "mark")

    def dies_once(x: int) -> int:
        if x == 5:
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return x
            os._exit(9)
        return x

    assert fast.map(dies_once, range(10), retries=1) == list(range(10))
    assert fast.stats()["retried"] >= 1


def test_higher_priority_runs_first() -> None:
    with open_pool("fork", 1) as pool:
        gate_r, gate_w = os.pipe()
        os.set_inheritable(gate_r, True)
        order: list[int] = []
        # A worker of start="fork" has the pipe; it is busy until a byte arrives.
        with open_pool("fork", 1) as busy:
            first = busy.submit(os.read, gate_r, 1)
            until_running(first)
            futures = []
            for i, priority in enumerate([0, -2, 2, -1, 1, 0, 2]):
                future = busy.submit(time.monotonic_ns, priority=priority)
                futures.append((priority, i, future))
            os.write(gate_w, b"x")
            first.result(20)
            order = [p for p, _, f in sorted(futures, key=lambda t: t[2].result(20))]
        assert order == [2, 2, 1, 0, 0, -1, -2]
        os.close(gate_r)
        os.close(gate_w)
        assert pool.map(square, [1], priority=2) == [1]


def until_running(future: Any) -> None:
    end = time.monotonic() + 20
    while not future.running():
        assert time.monotonic() < end
        time.sleep(0.001)


# -------------------------------------------------------------- background


def test_map_async_get_wait_ready_successful(pool: Any) -> None:
    result = pool.map_async(square, range(100))
    assert result.get(20) == [x * x for x in range(100)]
    assert result.get() == [x * x for x in range(100)]
    result.wait(1)
    assert result.ready()
    assert result.successful()
    result = pool.starmap_async(add, [(1, 2), (3, 4)])
    assert result.get(timeout=20) == [3, 7]


def test_map_async_that_runs_is_not_ready(workers: Any) -> None:
    result = workers.map_async(time.sleep, [0.3])
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(TimeoutError):
        result.get(0.01)
    result.wait(0.01)
    assert not result.ready()
    assert result.get(20) == [None]
    assert result.successful()


def test_map_async_failure_is_raised_by_get_every_time(pool: Any) -> None:
    result = pool.map_async(fails_at_3, range(5))
    for _ in range(2):
        with pytest.raises(ValueError, match="three"):
            result.get(20)
    result.wait(1)
    assert result.ready()
    assert not result.successful()


def test_map_async_callbacks_are_called_once_without_anybody_waiting(pool: Any) -> None:
    done, failed = threading.Event(), threading.Event()
    values: list[Any] = []
    errors: list[Any] = []
    keep = [
        pool.map_async(square, range(10), callback=lambda v: (values.append(v), done.set())),
        pool.starmap_async(
            fails_at_3, [(3,)], error_callback=lambda e: (errors.append(e), failed.set())
        ),
    ]
    assert done.wait(20)
    assert failed.wait(20)
    for r in keep:
        r.wait(1)
    assert values == [[x * x for x in range(10)]]
    assert len(errors) == 1
    assert isinstance(errors[0], ValueError)


def test_map_async_callback_is_called_when_the_result_was_dropped(workers: Any) -> None:
    done = threading.Event()
    workers.map_async(square, range(10), callback=lambda v: done.set())
    assert done.wait(20)


def test_map_async_of_nothing_calls_its_callback(pool: Any) -> None:
    done = threading.Event()
    result = pool.map_async(square, [], callback=lambda v: done.set())
    assert done.wait(20)
    assert result.successful()


def meet(path: str) -> bool:
    """Whether the other task was there as well, at most 0.15 s after this one came."""
    mine, other = path.split()
    with open(mine, "w"):
        pass
    end = time.monotonic() + 0.15
    while not (found := os.path.exists(other)) and time.monotonic() < end:
        time.sleep(0.002)
    return found


def test_two_coarse_items_run_at_the_same_time(workers: Any, tmp_path: Any) -> None:
    """The second was sent when the owner had looked after its workers, after 0.2 s."""
    workers.map(square, range(10))
    met = []
    for i in range(5):  # once will do: a loaded machine may start one late
        a, b = tmp_path / f"a{i}", tmp_path / f"b{i}"
        met.append(all(workers.map(meet, [f"{a} {b}", f"{b} {a}"])))
        time.sleep(0.05)
    assert any(met)


def test_default_pool_serves_module_functions() -> None:
    try:
        assert tri.map(square, range(10)) == [x * x for x in range(10)]
        assert tri.map(add, [1, 2], [3, 4], chunk=1) == [4, 6]
        assert tri.starmap(add, [(1, 2)]) == [3]
        assert tri.submit(square, 5).result(20) == 25
        first = tri.default_pool()
        assert tri.default_pool() is first
        first.terminate()
        assert tri.map(square, [2]) == [4]
        assert tri.default_pool() is not first
    finally:
        tri.default_pool().terminate()
