# SPDX-License-Identifier: BSD-3-Clause
"""Maps at their edges: tasks that raise StopIteration, a full arena, a pool closed half-way."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
import trireme as tri
from conftest import open_pool
from tasklib import square
from trireme.multiprocessing import Pool as BorrowedPool

MB = 1 << 20


def first(items: list[int]) -> int:
    return next(iter(items))


def first_of(*items: list[int]) -> int:
    return first(items[0])


def outcomes(it: Iterator[Any]) -> list[Any]:
    """All that an iterator gives or raises, to its end."""
    out: list[Any] = []
    while len(out) < 100:
        try:
            out.append(next(it))
        except StopIteration:
            return out
        except RuntimeError as exc:
            out.append((str(exc), type(exc.__cause__)))
    raise AssertionError("it does not end")


# ---------------------------------------------------------------------------------------------
# StopIteration
# ---------------------------------------------------------------------------------------------

ITEMS: list[list[int]] = [[1], [2], [], [4], [], [6]]
STOPPED = ("a task raised StopIteration", StopIteration)


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_a_task_that_raises_stop_iteration_ends_no_iterator(pool: Any, chunk: int | None) -> None:
    want = [1, 2, STOPPED, 4, STOPPED, 6]
    assert outcomes(pool.imap(first, ITEMS, chunk=chunk)) == want
    out = outcomes(pool.imap_unordered(first, ITEMS, chunk=chunk))
    assert sorted(map(str, out)) == sorted(map(str, want))
    assert outcomes(pool.imap(first, [[]])) == [STOPPED]
    with pytest.raises(RuntimeError, match="a task raised StopIteration"):
        list(pool.imap(first, ITEMS, chunk=chunk))


class StopsWhenRead:
    def __reduce__(self) -> Any:
        return first, ([],)


def test_a_result_whose_reading_raises_it_ends_no_iterator(fast: Any) -> None:
    make = [lambda: 1, StopsWhenRead, lambda: 3]
    out = outcomes(fast.imap(lambda i: make[i](), range(3), chunk=1))
    assert out == [1, STOPPED, 3]


def test_the_same_under_a_borrowed_name() -> None:
    with BorrowedPool(2) as pool:
        assert outcomes(pool.imap(first, ITEMS)) == [1, 2, STOPPED, 4, STOPPED, 6]
        out = outcomes(pool.imap_unordered(first, ITEMS))
        assert sorted(map(str, out)) == sorted(map(str, [1, 2, STOPPED, 4, STOPPED, 6]))
        for call in (
            lambda: list(pool.imap(first, ITEMS, chunksize=2)),
            lambda: pool.map(first, ITEMS),
            lambda: pool.map(first, ITEMS, chunksize=3),
            lambda: pool.starmap(first_of, [(i, 0) for i in ITEMS]),
        ):
            with pytest.raises(RuntimeError, match="a task raised StopIteration"):
                call()
        with pytest.raises(StopIteration):
            pool.apply(first, ([],))


# ---------------------------------------------------------------------------------------------
# An arena that is full
# ---------------------------------------------------------------------------------------------


def slow_len(data: Any) -> int:
    time.sleep(0.002)
    return len(data)


def sorted_like(items: list[Any], results: Any) -> list[int]:
    """The results in the order of the input, if they are those of the input."""
    want = [len(i) for i in items]
    return want if sorted(results) == sorted(want) else []


CALLS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "map": lambda pool, items: pool.map(slow_len, items),
    "map of cheap items": lambda pool, items: pool.map(len, items),
    "map in chunks": lambda pool, items: pool.map(len, items, chunk=10),
    "starmap": lambda pool, items: pool.starmap(len, [(i,) for i in items]),
    "imap": lambda pool, items: list(pool.imap(slow_len, items)),
    "imap_unordered": lambda pool, items: sorted_like(
        items, pool.imap_unordered(slow_len, items, chunk=9)
    ),
    "map_async": lambda pool, items: pool.map_async(slow_len, items).get(60),
    "submit": lambda pool, items: [f.result(60) for f in [pool.submit(slow_len, i) for i in items]],
    "submit with names": lambda pool, items: [
        f.result(60) for f in [pool.submit(lambda *, a: len(a), a=i) for i in items]
    ],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("workers", [1, 2])
def test_more_arguments_than_the_arena_holds_go_one_after_another(
    workers: int, call: Callable[[Any, list[Any]], Any]
) -> None:
    with tri.Pool(workers, arena_bytes=8 * MB) as pool:
        assert call(pool, [b"x" * 1_000_000] * 20) == [1_000_000] * 20
        assert call(pool, [bytearray(1_000_000) for _ in range(20)]) == [1_000_000] * 20
        sizes = [1, 1_000_000, 10, 10, 100_000, 1_000_000] * 3
        assert call(pool, [bytes(n) for n in sizes]) == sizes


@pytest.mark.parametrize("size", [7 * MB, 9 * MB])
def test_what_can_never_fit_fails_at_once_whatever_is_in_flight(size: int) -> None:
    with tri.Pool(1, arena_bytes=8 * MB) as pool:
        busy = pool.submit(time.sleep, 60), pool.submit(len, bytes(MB))
        for call in (
            lambda: pool.submit(len, bytes(size)).result(20),
            lambda: pool.map(len, [bytes(size)] * 2),
            lambda: pool.imap(len, [bytes(size)]).next(20),
        ):
            with pytest.raises(MemoryError, match="do not fit"):
                call()
        assert not any(f.done() for f in busy)
        pool.terminate()


def test_who_waits_for_room_learns_that_the_pool_has_ended() -> None:
    pool = tri.Pool(1, arena_bytes=8 * MB)
    pool.submit(time.sleep, 60)
    raised: list[BaseException] = []

    def fill() -> None:
        try:
            while True:
                pool.submit(len, bytes(1_000_000))
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while pool.stats()["arena_live_bytes"] < 6_000_000 and time.monotonic() < end:
        time.sleep(0.01)
    thread.join(0.2)
    assert thread.is_alive() and not raised  # it waits: that is what is tested
    pool.terminate()
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(raised[0], (ValueError, tri.WorkerLost, CancelledError)), raised


def test_two_threads_that_fill_an_arena_do_not_wait_for_each_other() -> None:
    with tri.Pool(2, arena_bytes=8 * MB) as pool:
        got: list[int] = []

        def send() -> None:
            got.append(sum(pool.map(len, [bytes(3_000_000)] * 20)))

        threads = [threading.Thread(target=send, daemon=True) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert got == [60_000_000] * 3


# ---------------------------------------------------------------------------------------------
# A pool that is closed half-way
# ---------------------------------------------------------------------------------------------


def closed(pool: Any) -> None:
    for call in (
        lambda: pool.submit(abs, 1),
        lambda: pool.map(abs, [1]),
        lambda: pool.imap(abs, [1]),
        lambda: pool.map_async(abs, [1]),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("way", ["forkserver", "thread"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_an_iterator_made_before_close_goes_on_to_its_end(way: str, chunk: int | None) -> None:
    pool = open_pool(way)
    one = pool.imap(square, range(1000), chunk=chunk)
    two = pool.imap_unordered(square, iter(range(1000)), chunk=chunk)
    pool.close()
    closed(pool)
    assert list(one) == [i * i for i in range(1000)]
    closed(pool)
    assert sorted(two) == [i * i for i in range(1000)]
    closed(pool)
    pool.join()
    assert "joined" in repr(pool)


@pytest.mark.parametrize("way", ["forkserver", "thread"])
def test_join_does_not_wait_for_an_iterator_that_nobody_uses(way: str) -> None:
    for keep in (True, False):
        pool = open_pool(way)
        it = pool.imap(square, range(100_000), chunk=1)
        assert next(it) == 0
        pool.close()
        if not keep:
            del it
            gc.collect()
        pool.join()
        if keep:
            # What was computed still comes; then it says that this is not all.
            assert next(it) == 1
            with pytest.raises(ValueError, match="closed"):
                list(it)


def test_leaving_the_block_ends_an_iterator_over_endless_input() -> None:
    with tri.Pool(2) as pool:
        it = pool.imap(abs, iter(int, 1))
        assert next(it) == 0
    with pytest.raises(ValueError, match="closed"):
        list(it)


def test_input_that_fails_behind_close_lets_the_pool_end() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("input")

    pool = tri.Pool(1)
    it = pool.imap(abs, items())
    pool.close()
    assert next(it) == 1
    with pytest.raises(KeyError):
        next(it)
    pool.join()
    closed(pool)


def test_terminate_ends_an_iterator_of_a_closed_pool() -> None:
    pool = tri.Pool(1)
    it = pool.imap(time.sleep, [60] * 10)
    pool.close()
    pool.terminate()
    with pytest.raises((tri.WorkerLost, ValueError)):
        list(it)


# ---------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------


def name_here(_: int) -> str:
    time.sleep(0.01)
    return threading.current_thread().name


def test_threads_of_a_pool_leave_no_name_behind() -> None:
    before = threading.enumerate()
    for _ in range(2):
        with tri.Pool(3, kind="thread") as pool:
            here = set(pool.map(name_here, range(12), chunk=1))
        assert threading.enumerate() == before and threading.active_count() == len(before)
    assert not any(t.name in here for t in threading.enumerate())


def test_threads_of_an_executor_leave_their_names_to_nobody() -> None:
    from trireme.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3, thread_name_prefix="io") as e:
        assert all(n.startswith("io") for n in e.map(name_here, range(6)))
    with ThreadPoolExecutor(3, thread_name_prefix="cpu") as e:
        assert all(n.startswith("cpu") for n in e.map(name_here, range(6)))
    with tri.Pool(3, kind="thread") as pool:
        assert not any(n.startswith(("io", "cpu")) for n in pool.map(name_here, range(6)))
