# SPDX-License-Identifier: BSD-3-Clause
"""A task of a pool of threads may wait for other tasks of the same pool: it runs them itself."""

from __future__ import annotations

import contextvars
import decimal
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import pytest
import trireme as tri
from trireme.futures import ThreadPoolExecutor
from trireme.multiprocessing.pool import ThreadPool

LONG = 60


def square(x: int) -> int:
    return x * x


WAYS: dict[str, Callable[[tri.Pool, int], list[int]]] = {
    "submit": lambda p, n: [p.submit(square, i).result() for i in range(n)],
    "submit all": lambda p, n: [f.result() for f in [p.submit(square, i) for i in range(n)]],
    "apply": lambda p, n: [p.apply(square, (i,)) for i in range(n)],
    "apply_async": lambda p, n: [p.apply_async(square, (i,)).get() for i in range(n)],
    "map": lambda p, n: p.map(square, range(n)),
    "map, chunks of one": lambda p, n: p.map(square, range(n), chunk=1),
    "map, caller": lambda p, n: p.map(square, range(n), caller=True),
    "starmap": lambda p, n: p.starmap(square, [(i,) for i in range(n)]),
    "map_async": lambda p, n: p.map_async(square, range(n)).get(),
    "imap": lambda p, n: list(p.imap(square, range(n))),
    "imap_unordered": lambda p, n: sorted(p.imap_unordered(square, range(n), chunk=1)),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_every_thread_may_wait_in_a_task(way: str, workers: int) -> None:
    with tri.Pool(workers, kind="thread") as p:
        outer = [p.submit(WAYS[way], p, n) for n in range(1, 20)]
        assert [f.result(LONG) for f in outer] == [[i * i for i in range(n)] for n in range(1, 20)]


def test_tasks_may_wait_for_tasks_that_wait() -> None:
    def fib(n: int) -> int:
        if n < 2:
            return n
        a, b = p.submit(fib, n - 1), p.submit(fib, n - 2)
        return int(a.result() + b.result())

    with tri.Pool(2, kind="thread") as p:
        assert p.submit(fib, 12).result(LONG) == 144


def test_what_such_a_task_raises_is_raised_where_it_is_waited_for() -> None:
    def fails() -> None:
        raise LookupError("inner")

    def outer() -> str:
        with pytest.raises(LookupError, match="inner"):
            p.submit(fails).result()
        with pytest.raises(ZeroDivisionError):
            p.map(lambda x: 1 // x, [1, 0])
        return threading.current_thread().name

    with tri.Pool(1, kind="thread") as p:
        assert p.submit(outer).result(LONG)
        assert p.submit(square, 3).result(LONG) == 9


def test_a_time_limit_of_the_wait_is_kept() -> None:
    def outer() -> Any:
        future = p.submit(square, 3)
        with pytest.raises(TimeoutError):
            future.result(0.05)
        return future

    with tri.Pool(1, kind="thread") as p:
        assert p.submit(outer).result(LONG).result(LONG) == 9


def test_a_task_that_is_run_so_finds_nothing_of_the_one_that_waits() -> None:
    word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="none")

    def inner() -> Any:
        found = str(decimal.Decimal(1) / 3), word.get(), sys.exc_info()[1]
        decimal.getcontext().prec = 3
        word.set("inner")
        return found

    def outer() -> Any:
        word.set("outer")
        with decimal.localcontext() as context:
            context.prec = 5
            try:
                raise LookupError("handled")
            except LookupError:
                found = p.submit(inner).result()
                return found, word.get(), decimal.getcontext().prec, sys.exc_info()[0]

    with tri.Pool(1, kind="thread") as p:
        assert p.submit(outer).result(LONG) == (
            ("0." + 28 * "3", "none", None),
            "outer",
            5,
            LookupError,
        )


@pytest.mark.parametrize("kept", [60, 70])
@pytest.mark.parametrize("way", ["submit", "map, chunks of one", "imap", "imap_unordered"])
def test_a_task_may_have_more_in_flight_than_there_is_room_for(way: str, kept: int) -> None:
    def outer() -> int:
        futures = [p.submit(square, i) for i in range(kept)]
        assert WAYS[way](p, 300) == [i * i for i in range(300)]
        return sum(f.result() for f in futures)

    with tri.Pool(1, kind="thread", slots=64) as p:
        assert p.submit(outer).result(LONG) == sum(i * i for i in range(kept))


def test_an_iterator_leaves_its_first_item_to_threads_that_are_free() -> None:
    told = threading.Event()

    def item(i: int) -> int:
        if i == 0:
            assert told.wait(LONG)
        return i

    def outer() -> list[int]:
        out = []
        for i in p.imap_unordered(item, range(4), chunk=1):
            told.set()
            out.append(i)
        return out

    with tri.Pool(3, kind="thread") as p:
        assert sorted(p.submit(outer).result(LONG)) == [0, 1, 2, 3]


def test_threads_are_free_though_they_come_late() -> None:
    told, go, first = threading.Event(), threading.Event(), threading.Lock()

    def item(i: int) -> int:
        if i == 0:
            assert told.wait(LONG)
        return i

    def start() -> None:
        if not first.acquire(blocking=False):
            assert go.wait(LONG)

    def outer() -> list[int]:
        out = []
        late = threading.Timer(0.3, go.set)
        late.start()
        for i in p.imap_unordered(item, range(4), chunk=1):
            told.set()
            out.append(i)
        late.join()
        return out

    with tri.Pool(3, kind="thread", initializer=start) as p:
        assert sorted(p.submit(outer).result(LONG)) == [0, 1, 2, 3]


def test_the_facades_pools_of_threads_can_do_it_too() -> None:
    with ThreadPoolExecutor(1) as e:
        assert e.submit(lambda: e.submit(square, 3).result()).result(LONG) == 9
        assert e.submit(lambda: list(e.map(square, range(4)))).result(LONG) == [0, 1, 4, 9]
        done = wait([e.submit(lambda: e.submit(square, 4).result())], LONG).done
        assert [f.result() for f in done] == [16]
    with ThreadPool(1) as p:
        assert p.apply(lambda: p.map(square, range(4))) == [0, 1, 4, 9]
        assert p.apply(lambda: p.apply(square, (5,))) == 25


def end_by_sigterm() -> int:
    child = subprocess.Popen(["sleep", "60"])
    child.terminate()
    return child.wait(LONG)


@pytest.mark.parametrize("kind", ["native", "Pool", "Executor"])
def test_what_a_task_starts_can_be_terminated(kind: str) -> None:
    if kind == "Executor":
        with ThreadPoolExecutor(1) as executor:
            assert executor.submit(end_by_sigterm).result() == -signal.SIGTERM
        return
    with tri.Pool(1, kind="thread") if kind == "native" else ThreadPool(1) as pool:
        assert pool.apply(end_by_sigterm) == -signal.SIGTERM
        assert pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, [])) == set()
