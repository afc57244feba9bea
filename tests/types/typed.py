# SPDX-License-Identifier: BSD-3-Clause
"""What a type checker knows of the public API.  `make lint` has mypy --strict read this program.

It sees the installed package, as a user's would.  A call that is wrong on purpose has a comment
for mypy, which complains of that comment when it finds nothing wrong with the call.
"""

from __future__ import annotations

import asyncio
import multiprocessing.synchronize
from collections.abc import Iterator
from concurrent.futures import Executor, as_completed
from concurrent.futures import Future as StdFuture
from typing import assert_type

import trireme as tri
import trireme.futures
import trireme.multiprocess
import trireme.multiprocessing
from trireme.futures import ProcessPoolExecutor, ThreadPoolExecutor
from trireme.multiprocessing.pool import (
    ApplyResult,
    AsyncResult,
    IMapIterator,
    MapResult,
    ThreadPool,
)
from trireme.multiprocessing.pool import Pool as FacadePool


def text(x: int, sign: str = "") -> str:
    """A function of the user's."""
    return sign + str(x)


def length(table: list[int]) -> int:
    """One that takes what is shared."""
    return len(table)


class Bar:
    """A bar of the user's."""

    def update(self, n: float | None = 1) -> bool | None:
        """*n* more."""
        return n is None


def show(done: int, total: int) -> None:
    """A bar, as a function."""
    print(done, total)


# ---------------------------------------------------------------------------------------------
# trireme
# ---------------------------------------------------------------------------------------------


def maps(pool: tri.Pool) -> None:
    """The maps of a pool."""
    assert_type(pool.map(text, [1]), list[str])
    assert_type(pool.map(text, [1], ["+"], chunk=1, timeout=2.5, retries=1, priority=2), list[str])
    assert_type(pool.starmap(text, [(1, "+")], caller=True), list[str])
    pool.map(text, [1], progress={"desc": "texts"})
    pool.map(text, [1], progress=Bar())
    results = pool.imap(text, [1], chunk=1)
    assert_type(results.next(1.0), str)
    assert_type(next(results), str)
    plain: Iterator[str] = pool.imap_unordered(text, [1], progress=show)
    assert_type(list(plain), list[str])
    assert_type(pool.map_async(text, [1], callback=lambda r: print(r[0].upper())).get(), list[str])
    assert_type(pool.starmap_async(text, [(1,)], priority=1).get(2), list[str])

    pool.map(text, [1], chunk="x")  # type: ignore[arg-type]
    pool.map(text, [1], chunks=1)  # type: ignore[call-arg]
    pool.map(text, 1)  # type: ignore[arg-type]
    pool.map(text, [1], progress=3)  # type: ignore[arg-type]
    pool.map_async(text, [1], callback=length)  # type: ignore


def calls(pool: tri.Pool) -> None:
    """Single calls."""
    future = pool.submit(text, 1, sign="+", timeout=1.5, retries=1, priority=-1)
    assert_type(future, tri.Future[str])
    assert_type(future.result(), str)
    assert_type(future.result(timeout=1), str)
    std: StdFuture[str] = future
    assert_type([f.result() for f in as_completed([std])], list[str])
    future.add_done_callback(lambda f: print(f.result().upper()))
    assert_type(pool.apply(text, (1,), {"sign": "+"}, retries=1), str)
    assert_type(pool.apply_async(text, (1,), callback=lambda r: print(r.upper())).get(1), str)

    pool.submit(text, 1, timeout="x")  # type: ignore[arg-type]
    pool.submit(1, text)  # type: ignore[arg-type]
    pool.apply(text, (1,), retry=1)  # type: ignore[call-arg]
    pool.apply_async(text, (1,), callback=length)  # type: ignore


async def awaited(pool: tri.Pool) -> None:
    """Futures in asyncio."""
    assert_type(await pool.submit(text, 1), str)
    assert_type(await asyncio.wrap_future(pool.submit(text, 1)), str)


def default_pool() -> None:
    """The functions that have the default pool behind them."""
    assert_type(tri.map(text, [1]), list[str])
    assert_type(tri.map(text, [1], chunk=1, progress=True, caller=True), list[str])
    assert_type(tri.starmap(text, [(1,)], timeout=1), list[str])
    assert_type(tri.submit(text, 1, retries=1), tri.Future[str])
    assert_type(tri.default_pool(), tri.Pool)

    tri.map(text, [1], chunk="x")  # type: ignore[arg-type]
    tri.starmap(text, [(1,)], chunks=1)  # type: ignore[call-arg]
    tri.submit(text, 1, priority="high")  # type: ignore[arg-type]
    tri.mapp(text, [1])  # type: ignore[attr-defined]


def shared(pool: tri.Pool) -> None:
    """A task gets the object in the place of the handle."""
    table = tri.share([1, 2])
    assert_type(table, tri.Shared[list[int]])
    assert_type(table.value, list[int])
    assert_type(pool.submit(length, table).result(), int)
    assert_type(pool.map(length, [table]), list[int])


def opened() -> None:
    """Pools, of any kind."""
    with tri.Pool(2, kind="serial", initializer=text, initargs=(1,)) as pool:
        assert_type(pool, tri.Pool)
    tri.Pool(wrokers=2)  # type: ignore[call-arg]


# ---------------------------------------------------------------------------------------------
# The standard library's names
# ---------------------------------------------------------------------------------------------


def executors() -> None:
    """trireme.futures."""
    with ProcessPoolExecutor(2, on_crash="isolate", timeout=1, retries=1) as processes:
        assert_type(processes, ProcessPoolExecutor)
        assert_type(processes.submit(text, 1), StdFuture[str])
        assert_type(processes.submit(text, 1, sign="+").result(), str)
        assert_type(processes.map(text, [1], timeout=1, chunksize=2), Iterator[str])
    with ThreadPoolExecutor(2) as threads:
        assert_type(threads.submit(text, 1).result(), str)
        assert_type(list(threads.map(text, [1])), list[str])
    executor: Executor = processes
    assert_type(executor.submit(text, 1).result(), str)

    ProcessPoolExecutor(2, on_crash="ignore")  # type: ignore[arg-type]
    processes.map(text, [1], chunksize="x")  # type: ignore[arg-type]
    trireme.futures.ProcesPoolExecutor(2)  # type: ignore[attr-defined]


def facade() -> None:
    """trireme.multiprocessing."""
    with trireme.multiprocessing.Pool(2, timeout=1.5, retries=1) as pool:
        assert_type(pool, FacadePool)
        assert_type(pool.map(text, [1]), list[str])
        assert_type(pool.starmap(text, [(1,)], 1), list[str])
        assert_type(pool.apply(text, (1,), {"sign": "+"}), str)
        assert_type(pool.apply_async(text, (1,)), ApplyResult[str])
        result: AsyncResult[str] = pool.apply_async(text, (1,), callback=lambda r: print(r.upper()))
        assert_type(result.get(1), str)
        assert_type(pool.map_async(text, [1]), MapResult[str])
        assert_type(pool.starmap_async(text, [(1,)]).get(), list[str])
        assert_type(pool.imap(text, [1]), IMapIterator[str])
        assert_type(pool.imap_unordered(text, [1]).next(1), str)
    assert_type(trireme.multiprocessing.get_context("spawn").Pool(2, retries=1), FacadePool)
    assert_type(trireme.multiprocessing.get_context().Pool(2, timeout=1), FacadePool)
    assert_type(trireme.multiprocess.Pool(2, timeout=1).apply(text, (1,)), str)
    with ThreadPool(2) as threads:
        assert_type(threads, ThreadPool)
        assert_type(threads.map(text, [1]), list[str])
    lock: multiprocessing.synchronize.Lock = trireme.multiprocessing.Lock()
    trireme.multiprocessing.Process(target=text, args=(lock,))

    trireme.multiprocessing.Pool(2, retry=1)  # type: ignore[call-arg]
    pool.map(text, [1], chunksize="x")  # type: ignore[arg-type]
    pool.map(text, 1)  # type: ignore[arg-type]
