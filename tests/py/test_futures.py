# SPDX-License-Identifier: BSD-3-Clause
"""A Future of a pool is a concurrent.futures.Future to everything that accepts one."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import os
import re
import threading
import time
import weakref
from typing import Any

import pytest
import trireme as tri
from conftest import open_pool, until


def square(x: int) -> int:
    return x * x


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail() -> None:
    raise KeyError("missing")


# -------------------------------------------------------------- basics


def test_it_is_a_standard_future(pool: Any) -> None:
    future = pool.submit(square, 3)
    assert isinstance(future, cf.Future)
    assert future.result() == 9
    assert future.result(0) == 9
    assert future.result(timeout=1) == 9
    assert future.exception() is None
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert not future.cancel()


def test_arguments_and_keywords_arrive(pool: Any) -> None:
    def task(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert pool.submit(task).result() == ((), {})
    assert pool.submit(task, 1, "two", [3.0]).result() == ((1, "two", [3.0]), {})
    assert pool.submit(task, 1, key={"a": 1}).result() == ((1,), {"key": {"a": 1}})
    assert pool.submit(task, **{"fn": 1, "self": 2}).result() == ((), {"fn": 1, "self": 2})
    assert pool.submit(task, *range(300)).result() == (tuple(range(300)), {})


def test_failure_is_the_exception_and_is_raised_each_time(pool: Any) -> None:
    future = pool.submit(fail)
    for _ in range(2):
        with pytest.raises(KeyError, match="missing"):
            future.result(20)
    assert isinstance(future.exception(), KeyError)
    assert future.done()


def test_result_with_a_limit_raises_timeout_and_can_be_repeated(workers: Any) -> None:
    future = workers.submit(nap, 0.2)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        future.result(0.02)
    with pytest.raises(cf.TimeoutError):
        future.exception(timeout=0)
    assert time.monotonic() - start < 0.19
    assert future.result(20) == 0.2


@pytest.mark.parametrize("bad", ["1", [], float("nan")])
def test_bad_limit_is_refused(fast: Any, bad: Any) -> None:
    future = fast.submit(nap, 0.05)
    with pytest.raises((TypeError, ValueError)):
        future.result(bad)
    assert future.result(20) == 0.05


def test_futures_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="submit"):
        tri.Future()


def test_outsiders_cannot_complete_it(fast: Any) -> None:
    future = fast.submit(square, 2)
    calls = [lambda: future.set_result(1), lambda: future.set_exception(ValueError())]
    for call in (*calls, future.set_running_or_notify_cancel):
        with pytest.raises((RuntimeError, cf.InvalidStateError), match=r"by the pool|FINISHED"):
            call()
    assert future.result(20) == 4
    for call in calls:
        with pytest.raises(cf.InvalidStateError, match="FINISHED.*returned int"):
            call()


def test_repr_names_the_state(workers: Any) -> None:
    future = workers.submit(square, 2)
    assert re.search("state=(pending|running)>|state=finished returned int>", repr(future))
    future.result(20)
    assert "state=finished returned int>" in repr(future)
    future = workers.submit(square, "2")
    future.exception(20)
    assert "state=finished raised TypeError>" in repr(future)


class Curious:
    """Looks at the future whose result it is."""

    def __init__(self, seen: object = None) -> None:
        self.seen = seen

    def __reduce__(self) -> Any:
        return look_at_the_future, ()


LOOKED_AT: list[Any] = []


def look_at_the_future() -> Curious:
    return Curious([repr(future) for future in LOOKED_AT])


def test_repr_asks_nobody_who_is_busy_with_the_answer(processes: Any) -> None:
    future = processes.submit(Curious)
    LOOKED_AT[:] = [future]
    try:
        assert re.search("state=finished>", future.result(20).seen[0])
    finally:
        LOOKED_AT.clear()


# -------------------------------------------------------------- running, cancel


def test_running_is_true_while_a_worker_has_it(workers: Any) -> None:
    future = workers.submit(nap, 0.3)
    until(future.running)
    assert not future.done()
    assert not future.cancel()
    assert future.result(20) == 0.3
    assert not future.running()


def test_cancel_of_what_has_not_started(workers: Any) -> None:
    busy = [workers.submit(nap, 0.3) for _ in range(2)]
    until(lambda: all(f.running() for f in busy))
    waiting = workers.submit(square, 1)
    assert waiting.cancel()
    assert waiting.cancel()
    assert waiting.cancelled()
    assert waiting.done()
    assert not waiting.running()
    with pytest.raises(cf.CancelledError):
        waiting.result()
    with pytest.raises(cf.CancelledError):
        waiting.exception()
    assert [f.result(20) for f in busy] == [0.3, 0.3]
    assert workers.stats()["cancelled"] == 1


def test_cancelled_task_never_runs(fast: Any, tmp_path: Any) -> None:
    mark = tmp_path / "mark"
    busy = [fast.submit(nap, 0.1) for _ in range(2)]
    until(lambda: all(f.running() for f in busy))
    waiting = fast.submit(mark.touch)
    assert waiting.cancel()
    assert fast.map(square, range(10)) == [x * x for x in range(10)]
    assert not mark.exists()


def test_cancel_calls_the_callbacks_and_wakes_waiters(workers: Any) -> None:
    busy = [workers.submit(nap, 0.3) for _ in range(2)]
    until(lambda: all(f.running() for f in busy))
    waiting = workers.submit(square, 1)
    seen: list[Any] = []
    waiting.add_done_callback(seen.append)
    waker = threading.Timer(0.02, waiting.cancel)
    waker.start()
    done, rest = cf.wait([waiting], timeout=20)
    assert done == {waiting}
    until(lambda: seen == [waiting])
    waker.join()


# -------------------------------------------------------------- the standard library


def test_wait_first_completed_first_exception_all(pool: Any) -> None:
    futures = [pool.submit(nap, 0.01 * i) for i in range(4)]
    done, rest = cf.wait(futures, timeout=20)
    assert len(done) == 4
    assert not rest
    futures = [pool.submit(nap, 0.02), pool.submit(fail)]
    done, rest = cf.wait(futures, timeout=20, return_when=cf.FIRST_EXCEPTION)
    assert futures[1] in done
    assert len(cf.wait(futures, timeout=20, return_when=cf.FIRST_COMPLETED).done) >= 1


def test_wait_gives_up_in_time(workers: Any) -> None:
    future = workers.submit(nap, 0.4)
    start = time.monotonic()
    done, rest = cf.wait([future], timeout=0.05)
    assert time.monotonic() - start < 0.35
    assert rest == {future}
    assert future.result(20) == 0.4


def test_as_completed_gives_each_once_and_the_quick_first(workers: Any) -> None:
    slow = workers.submit(nap, 0.4)
    quick = [workers.submit(square, i) for i in range(50)]
    order = list(cf.as_completed([slow, *quick], timeout=20))
    assert len(order) == 51
    assert set(order) == {slow, *quick}
    assert order[-1] is slow


def test_as_completed_with_futures_of_many_makers(fast: Any) -> None:
    with cf.ThreadPoolExecutor(1) as other, open_pool("thread", 1) as third:
        futures = [fast.submit(square, 2), other.submit(square, 3), third.submit(square, 4)]
        assert sorted(f.result() for f in cf.as_completed(futures, timeout=20)) == [4, 9, 16]


def test_callbacks_run_once_with_the_future(pool: Any) -> None:
    ended = threading.Event()
    seen: list[Any] = []
    future = pool.submit(nap, 0.02)
    future.add_done_callback(seen.append)
    future.add_done_callback(lambda f: ended.set())
    assert ended.wait(20)
    assert seen == [future]
    late: list[Any] = []
    future.add_done_callback(late.append)
    assert late == [future]
    assert future.result() == 0.02


def test_callback_that_raises_harms_nobody(workers: Any, caplog: Any) -> None:
    ended = threading.Event()
    future = workers.submit(nap, 0.02)
    future.add_done_callback(lambda f: 1 / 0)
    future.add_done_callback(lambda f: ended.set())
    assert ended.wait(20)
    assert future.result(20) == 0.02
    assert workers.submit(square, 3).result(20) == 9


def test_callback_may_submit_and_wait(workers: Any) -> None:
    """A callback that waits for another task must not wait for itself."""
    ended = threading.Event()
    got: list[int] = []

    def follow(future: Any) -> None:
        got.append(workers.submit(square, future.result()).result(20))
        ended.set()

    workers.submit(square, 3).add_done_callback(follow)
    assert ended.wait(20)
    assert got == [81]


def test_chain_of_callbacks_ends(workers: Any) -> None:
    ended = threading.Event()
    left = 200

    def again(future: Any) -> None:
        nonlocal left
        left -= 1
        if left:
            workers.submit(square, left).add_done_callback(again)
        else:
            ended.set()

    workers.submit(square, 1).add_done_callback(again)
    assert ended.wait(30)


def test_a_thread_runs_only_while_a_future_is_watched(fast: Any) -> None:
    assert fast.submit(square, 2).result(20) == 4
    names = [t.name for t in threading.enumerate()]
    assert "trireme-watch" not in names
    cf.wait([fast.submit(nap, 0.01)], timeout=20)
    until(lambda: "trireme-watch" not in [t.name for t in threading.enumerate()])


def test_callbacks_are_called_where_waiting_for_them_failed_once() -> None:
    failed = []

    class Poor(tri.Pool):
        def _step(self, seconds: float) -> int:
            if not failed:
                failed.append(seconds)
                raise MemoryError("no room for the output of a worker")
            return super()._step(seconds)

    ended = threading.Event()
    with Poor(1) as pool:
        pool.submit(nap, 0.05).add_done_callback(lambda future: ended.set())
        assert ended.wait(20)
    assert failed


def test_a_thread_that_cannot_wait_says_so_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Poor(tri.Pool):
        def _step(self, seconds: float) -> int:
            raise MemoryError("no room")

    said: list[Any] = []
    monkeypatch.setattr("trireme._attend._AGAIN", 0)
    monkeypatch.setattr(threading, "excepthook", said.append)
    with Poor(1) as pool:
        future = pool.submit(nap, 0.05)
        future.add_done_callback(lambda future: None)
        until(lambda: "trireme-watch" not in [t.name for t in threading.enumerate()])
        assert future.result(20) == 0.05
    assert [args.exc_type for args in said] == [MemoryError]


# -------------------------------------------------------------- asyncio


def test_await_gather_and_wrap_future(pool: Any) -> None:
    async def main() -> None:
        assert await pool.submit(square, 3) == 9
        assert await asyncio.wrap_future(pool.submit(square, 4)) == 16
        values = await asyncio.gather(
            *(asyncio.wrap_future(pool.submit(square, i)) for i in range(50))
        )
        assert values == [i * i for i in range(50)]
        with pytest.raises(KeyError):
            await pool.submit(fail)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_the_loop_runs_while_a_task_is_awaited(workers: Any) -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticker = asyncio.create_task(tick())
        assert await workers.submit(nap, 0.2) == 0.2
        ticker.cancel()
        assert ticks > 5

    asyncio.run(asyncio.wait_for(main(), 30))


def test_awaiting_with_a_limit_cancels_the_task_in_the_queue(workers: Any) -> None:
    async def main() -> None:
        busy = [workers.submit(nap, 0.3) for _ in range(2)]
        while not all(f.running() for f in busy):
            await asyncio.sleep(0.005)
        waiting = workers.submit(square, 1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(waiting), 0.05)
        assert waiting.cancelled()
        for f in busy:
            assert await f == 0.3

    asyncio.run(asyncio.wait_for(main(), 30))


def test_run_in_executor_accepts_a_pool_as_it_has_submit(workers: Any) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(workers, square, 7)

    assert asyncio.run(asyncio.wait_for(main(), 30)) == 49


def test_dropping_a_future_leaves_its_task_alone(fast: Any, tmp_path: Any) -> None:
    mark = tmp_path / "mark"
    fast.submit(mark.touch)
    fast.submit(square, 1).result(20)
    until(mark.exists)


def test_futures_and_results_are_freed(workers: Any) -> None:
    class Value(dict):
        pass

    future = workers.submit(square, 2)
    future.result(20)
    ref = weakref.ref(future)
    del future
    gc.collect()
    assert ref() is None


def test_many_futures_in_flight_all_end(workers: Any) -> None:
    futures = [workers.submit(square, i) for i in range(20_000)]
    assert [f.result(60) for f in futures] == [i * i for i in range(20_000)]


def test_results_taken_in_any_order(fast: Any) -> None:
    futures = [fast.submit(square, i) for i in range(2_000)]
    assert [f.result(20) for f in reversed(futures)] == [i * i for i in reversed(range(2_000))]


def test_unpickling_runs_on_the_thread_that_wants_the_value(fast: Any) -> None:
    """A result whose unpickling blocks costs the one who asks for it, nobody else."""
    bad = fast.submit(lambda: Blocks())
    good = [fast.submit(square, i) for i in range(100)]
    assert [f.result(20) for f in good] == [i * i for i in range(100)]
    until(bad.done)


class Blocks:
    def __reduce__(self) -> Any:
        return time.sleep, (5,)


def test_future_of_a_terminated_pool_ends(workers: Any) -> None:
    if workers.way == "thread":
        pytest.skip("threads cannot be killed")
    futures = [workers.submit(nap, 30) for _ in range(5)]
    until(lambda: futures[0].running() or futures[1].running())
    workers.terminate()
    for f in futures:
        assert f.done()
        with pytest.raises(tri.WorkerLost):
            f.result(0)


def test_waiters_of_a_terminated_pool_are_woken(processes: Any) -> None:
    future = processes.submit(nap, 30)
    until(future.running)
    caught: list[Any] = []

    def wait() -> None:
        caught.append(future.exception(20))

    watched = processes.submit(nap, 30)
    told = threading.Event()
    watched.add_done_callback(lambda f: told.set())
    waiter = threading.Thread(target=wait)
    waiter.start()
    processes.terminate()
    waiter.join(10)
    assert not waiter.is_alive()
    assert isinstance(caught[0], tri.WorkerLost)
    assert told.wait(10)


def test_worker_lost_says_what_happened(processes: Any) -> None:
    future = processes.submit(os._exit, 7)
    with pytest.raises(tri.WorkerLost) as info:
        future.result(20)
    assert info.value.exitcode == 7
    assert isinstance(info.value.pid, int)
    assert isinstance(info.value, cf.BrokenExecutor)
    assert processes.submit(square, 5).result(20) == 25
