# SPDX-License-Identifier: BSD-3-Clause
"""Nothing that is done often leaves anything behind: no object, no block of memory, no descriptor.

Each operation runs many times, and then again in rounds of as many.  What leaks grows in every
round.  What a cache keeps, or an allocator that has not yet settled, does not grow for ever: one
round that leaves nothing clears the operation.  An object lost in every call is found.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import functools
import gc
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trireme as tri
from conftest import live_bytes, open_pool, until

ROUNDS = 12
TIMES = 60


@pytest.fixture(scope="module", params=["forkserver", "thread", "serial"])
def shop(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One pool for all of a kind's rows: opening one is not what is measured.

    Nor is what it remembers: 256 functions, by their addresses, of which some come again.
    """
    with open_pool(request.param) as p:
        for i in range(1500):
            assert p.apply(lambda i=i: i) == i
        yield p


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def quiet(pool: Any) -> bool:
    """No thread runs that tells of ended futures."""
    return not any(t.name == "trireme-watch" for t in threading.enumerate())


def count(pool: Any) -> tuple[int, int, int]:
    until(lambda: quiet(pool))
    for _ in range(3):
        gc.collect()
    return len(gc.get_objects()), sys.getallocatedblocks(), open_files()


def holds_nothing(pool: Any, act: Callable[[], object], times: int = TIMES) -> None:
    """act(), called often, leaves no more objects, blocks and descriptors than before."""
    slack = times // 4 + 4  # the counts themselves are a few objects
    for _ in range(times):
        act()
    seen = [count(pool)]
    for _ in range(ROUNDS):
        for _ in range(times):
            act()
        seen.append(count(pool))
        objects, blocks, files = (b - a for a, b in zip(*seen[-2:], strict=True))
        if len(seen) > 2 and objects <= slack and blocks <= slack and files <= 0:
            return
    steps = [[b - a for a, b in zip(x, y, strict=True)] for x, y in itertools.pairwise(seen)]
    pytest.fail(f"objects, blocks of memory and descriptors more after each {times}: {steps}")


# ------------------------------------------------------------------ what the tasks do


class Thing:
    def __init__(self, x: int = 0) -> None:
        self.x = [x, str(x)]


class Unreadable:
    def __reduce__(self) -> Any:
        return refuse, ()


def refuse(*_: Any) -> Any:
    raise RuntimeError("refused")


def same(x: Any) -> Any:
    return x


def thing(x: int) -> Any:
    return Thing(x)


def odd(x: int) -> Any:
    if x % 2:
        raise ValueError(x)
    return {x: Thing(x)}


def raised(fn: Callable[..., Any], *args: Any) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        fn(*args)


def drain(results: Any) -> int:
    n = 0
    while True:
        try:
            next(results)
        except StopIteration:
            return n
        except Exception:
            pass
        n += 1


# ------------------------------------------------------------------ the operations

ACTS: dict[str, Callable[[Any], Callable[[], object]]] = {}


def act(fn: Callable[[Any], object]) -> Any:
    ACTS[fn.__name__] = lambda pool: lambda: fn(pool)
    return fn


@act
def submit_small(pool: Any) -> None:
    assert pool.submit(same, 12345678).result(20) == 12345678
    assert pool.submit(same, ("a", 1.5, (b"b" * 100, None))).result(20)


@act
def submit_pickled(pool: Any) -> None:
    assert pool.submit(same, {"k": [Thing(1)]}).result(20)["k"]
    assert pool.submit(same, x={"k": Thing(2)}).result(20)


@act
def submit_never_read(pool: Any) -> None:
    pool.submit(thing, 1)
    pool.submit(refuse)
    pool.submit(same, 1).result(20)


@act
def submit_that_fails(pool: Any) -> None:
    raised(pool.submit(odd, 1).result, 20)
    assert pool.submit(odd, 3).exception(20)
    raised(pool.submit(same, Unreadable()).result if pool.kind == "process" else refuse)
    raised(pool.submit(lambda: Unreadable()).result if pool.kind == "process" else refuse)
    raised(pool.submit(same, threading.Lock()).result if pool.kind == "process" else refuse)


@act
def calls_that_are_refused(pool: Any) -> None:
    raised(pool.submit, 5)
    raised(pool.map, same, 5)
    raised(pool.map, 5, [1])
    with pytest.raises(TypeError):
        pool.map(same, [1], bogus=1)
    with pytest.raises(ValueError):
        pool.submit(same, 1, timeout=-1)


@act
def maps(pool: Any) -> None:
    assert pool.map(same, range(50)) == [*range(50)]
    assert len(pool.map(thing, range(20))) == 20
    assert len(pool.map(lambda a, b: (a, b), [1.5, 2.5], ["a", "b"])) == 2
    assert pool.starmap(max, [(1, 2), (4, 3)]) == [2, 4]
    assert pool.map(thing, [], chunk=1) == []


@act
def maps_with_the_caller(pool: Any) -> None:
    assert pool.map(same, range(30), caller=True) == [*range(30)]
    assert len(pool.map(thing, [*range(30)], caller=True)) == 30
    with pytest.raises(ValueError):
        pool.map(odd, range(30), caller=True)


@act
def maps_that_fail(pool: Any) -> None:
    with pytest.raises(ValueError):
        pool.map(odd, range(10))
    with pytest.raises(ValueError):
        pool.map(odd, [0, 1], chunk=1)


@act
def iterators(pool: Any) -> None:
    assert list(pool.imap(same, range(20))) == [*range(20)]
    assert len([*pool.imap_unordered(thing, (i for i in range(20)), chunk=3)]) == 20
    assert drain(pool.imap(odd, range(20), chunk=4)) == 20
    assert drain(pool.imap_unordered(odd, range(20), chunk=4)) == 20


@act
def iterators_with_unreadable_results(pool: Any) -> None:
    fn = (lambda x: Unreadable() if x == 2 else Thing(x)) if pool.kind == "process" else odd
    assert drain(pool.imap(fn, range(8), chunk=4)) == 8


@act
def iterators_with_items_that_do_not_travel(pool: Any) -> None:
    assert drain(pool.imap(same, [1, threading.Lock(), Thing(2)], chunk=3)) == 3


@act
def iterators_dropped_in_the_middle(pool: Any) -> None:
    results = pool.imap(thing, iter(range(100)), chunk=2)
    next(results)
    del results
    results = pool.imap_unordered(odd, range(100))
    next(results, None) if pool.kind == "serial" else None
    del results
    pool.submit(same, 1).result(20)


@act
def iterators_whose_input_fails(pool: Any) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("input")

    results = pool.imap(same, items())
    assert next(results) == 1
    with pytest.raises(KeyError):
        next(results)


@act
def background_maps(pool: Any) -> None:
    called: list[Any] = []
    result = pool.map_async(thing, range(10), callback=called.append)
    assert len(result.get(20)) == 10
    failed = pool.starmap_async(odd, [(1,)], error_callback=called.append)
    with pytest.raises(ValueError):
        failed.get(20)
    pool.apply_async(same, (1,), callback=called.append).wait(20)
    pool.map_async(thing, range(10), callback=called.append)  # dropped
    until(lambda: len(called) == 4)


@act
def progress(pool: Any) -> None:
    seen: list[Any] = []
    pool.map(same, range(10), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)
    drain(pool.imap(odd, range(10), progress=lambda done, total: seen.append(done)))


@act
def shares(pool: Any) -> None:
    table = tri.share({"a": [Thing(1)], "b": b"x" * 20_000})
    assert pool.submit(len, table).result(20) == 2
    assert len(pool.map(lambda t: t["b"], [table] * 3)) == 3
    assert pool.submit(lambda d: len(d["t"][0]), {"t": [table]}).result(20) == 2
    assert pool.submit(same, {"h": {table}}).result(20) == {"h": {table}}


@act
def large_values(pool: Any) -> None:
    got = pool.submit(same, bytearray(200_000)).result(20)
    part = memoryview(got)[10:20]
    del got
    assert len(part) == 10
    assert len(pool.submit(same, {"k": b"y" * 100_000}).result(20)["k"]) == 100_000
    assert [len(b) for b in pool.imap(same, [bytearray(100_000)] * 3, chunk=3)] == [100_000] * 3


@act
def blocks_as_arrays(pool: Any) -> None:
    np = pytest.importorskip("numpy")
    got = pool.submit(same, np.arange(50_000)).result(20)
    view = got[5:10]
    del got
    assert view.tolist() == [5, 6, 7, 8, 9]
    shared = tri.share(np.arange(50_000))
    assert pool.submit(lambda a: int(a[7]), shared).result(20) == 7


@act
def cancelled(pool: Any) -> None:
    futures = [pool.submit(time.sleep, 0.0005) for _ in range(8)]
    for f in futures:
        f.cancel()
    for f in futures:
        try:
            f.result(20)
        except cf.CancelledError:
            pass


@act
def callbacks(pool: Any) -> None:
    told: list[Any] = []
    future = pool.submit(thing, 1)
    future.add_done_callback(lambda f: told.append((f is future, f.result())))
    pool.submit(refuse).add_done_callback(told.append)
    until(lambda: len(told) == 2)


@act
def watched_and_dropped(pool: Any) -> None:
    told: list[int] = []
    for i in range(3):
        pool.submit(same, Thing(i)).add_done_callback(lambda _, i=i: told.append(i))
    until(lambda: len(told) == 3)


@act
def waiting_in_the_library_s_ways(pool: Any) -> None:
    futures = [pool.submit(same, i) for i in range(3)]
    assert len(cf.wait(futures, 20).done) == 3
    assert sorted(f.result() for f in cf.as_completed(futures, 20)) == [0, 1, 2]

    async def main() -> int:
        return int(await pool.submit(same, 4))

    assert loop().run_until_complete(main()) == 4


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """One for all calls: asyncio.run() makes one each time, and then CPython's own caches (also
    with no pool anywhere) take several hundred calls to fill, a block or three in each.
    """
    return asyncio.new_event_loop()


@pytest.fixture(scope="module", autouse=True)
def _no_loop_is_left() -> Iterator[None]:
    yield
    if loop.cache_info().currsize:
        loop().close()
        loop.cache_clear()


@act
def functions_by_value(pool: Any) -> None:
    n = Thing(1)
    assert pool.submit(lambda: n.x[0]).result(20) == 1


@act
def time_limits_not_reached(pool: Any) -> None:
    limit = 20 if pool.kind == "process" else None  # others refuse it
    assert pool.submit(same, 1, timeout=limit).result(20) == 1
    with pytest.raises(TimeoutError):
        pool.submit(time.sleep, 0.002).result(0) if pool.kind != "serial" else refuse_in_time()


def refuse_in_time() -> None:
    raise TimeoutError


# Each call of these starts a thread or a loop, or waits.
SLOW = {"waiting_in_the_library_s_ways", "cancelled", "shares"}


@pytest.mark.parametrize("name", ACTS)
def test_it_leaves_nothing_behind(shop: Any, name: str) -> None:
    if shop.kind != "process" and name == "iterators_with_items_that_do_not_travel":
        pytest.skip("nothing travels")
    holds_nothing(shop, ACTS[name](shop), 20 if name in SLOW else TIMES)


def test_opening_and_ending_pools_leaves_nothing_behind() -> None:
    def cycle() -> None:
        for way in ("forkserver", "fork", "thread", "serial"):
            with open_pool(way) as pool:
                assert pool.map(same, [Thing(1), 2])[1] == 2
                pool.submit(thing, 1)  # never read
        pool = open_pool("fork", 1)
        lost = pool.submit(time.sleep, 60)
        pool.terminate()
        with pytest.raises(tri.WorkerLost):
            lost.result(20)

    holds_nothing(None, cycle, 8)


def test_deaths_leave_nothing_behind() -> None:
    with open_pool("fork") as pool:

        def die() -> None:
            with pytest.raises(tri.WorkerLost):
                pool.submit(os._exit, 3).result(20)
            with pytest.raises(tri.TaskTimeout):
                pool.submit(time.sleep, 60, timeout=0.01).result(20)

        holds_nothing(pool, die, 8)


def test_the_check_sees_one_object_lost_in_each_call() -> None:
    kept: list[Any] = []
    files: list[int] = []
    for lose in (
        lambda: kept.append([]),
        lambda: kept.append(object()),
        lambda: files.append(os.open("/dev/null", os.O_RDONLY)),
    ):
        with pytest.raises(pytest.fail.Exception, match="more after each"):
            holds_nothing(None, lose, 8)
    for fd in files:
        os.close(fd)


# ------------------------------------------------------------------ futures in cycles


def gone(make: Callable[[], Any]) -> None:
    """make() gives a weak reference to a future that only a cycle holds: it is collected."""
    ref = make()
    gc.collect()
    gc.collect()
    assert ref() is None, gc.get_referrers(ref())


def ended(future: Any) -> Any:
    until(future.done)
    return future


@pytest.fixture(params=["fork", "thread"])
def maker(request: pytest.FixtureRequest) -> Iterator[Any]:
    with open_pool(request.param) as pool:
        yield pool


@pytest.mark.parametrize("value", [7, "text", [1], None])
@pytest.mark.parametrize("when", ["before", "after"])
def test_future_that_is_its_own_attribute_is_collected(maker: Any, when: str, value: Any) -> None:
    def make() -> Any:
        future = maker.submit(same, value)
        if when == "before":
            future.me = future
        future.result(20)
        if when == "after":
            future.me = future
        return weakref.ref(future)

    gone(make)


def test_future_whose_result_holds_it_is_collected(maker: Any) -> None:
    for value in ([], {}, Thing()):

        def make(value: Any = value) -> Any:
            future = maker.submit(same, value)
            got = future.result(20)
            if isinstance(got, list):
                got.append(future)
            elif isinstance(got, dict):
                got["f"] = future
            else:
                got.f = future
            return weakref.ref(future)

        if maker.kind == "process":  # in a thread pool the result is the argument, which is ours
            gone(make)
    gone(lambda: in_a_fresh_list(maker))


def in_a_fresh_list(pool: Any) -> Any:
    future = pool.submit(lambda: [])
    future.result(20).append(future)
    return weakref.ref(future)


def test_future_that_its_exception_holds_is_collected(maker: Any) -> None:
    def make() -> Any:
        future = maker.submit(refuse)
        future.exception(20).future = future
        return weakref.ref(future)

    gone(make)

    def raise_it() -> Any:
        future = maker.submit(refuse)
        try:
            future.result(20)
        except RuntimeError as exc:
            kept = exc  # the traceback's frame holds the future
            assert kept.__traceback__
        return weakref.ref(future)

    gone(raise_it)


def test_future_that_its_callback_holds_is_collected(maker: Any) -> None:
    def make(end: Any) -> Any:
        told: list[Any] = []
        future = maker.submit(same, 7)
        if end == "before":
            future.result(20)
        future.add_done_callback(lambda f: told.append(future))
        until(lambda: told)
        return weakref.ref(future)

    for end in ("before", "after"):
        ref = make(end)
        until(lambda: quiet(maker))
        gc.collect()
        assert ref() is None


def test_future_that_its_argument_holds_is_collected(maker: Any) -> None:
    def make() -> Any:
        box: list[Any] = []
        future = maker.submit(len, box)
        future.result(20)
        box.append(future)
        return weakref.ref(future)

    gone(make)


def test_future_that_its_function_holds_is_collected() -> None:
    # Of a thread: elsewhere the pool keeps the function, by which it knows what it has sent.
    with open_pool("thread") as pool:

        def make(fails: bool) -> Any:
            cell: list[Any] = []

            def task() -> Any:
                if fails:
                    raise RuntimeError(len(cell))
                return len(cell)

            future = ended(pool.submit(task))
            future.exception(20)
            cell.append(future)
            return weakref.ref(future)

        gone(lambda: make(False))
        gone(lambda: make(True))


def test_future_never_read_in_a_cycle_is_collected(maker: Any) -> None:
    for fn, arg in ((thing, 1), (odd, 1), (same, 7)):

        def make(fn: Any = fn, arg: Any = arg) -> Any:
            future = ended(maker.submit(fn, arg))
            future.me = future
            return weakref.ref(future)

        gone(make)


def test_cancelled_future_in_a_cycle_is_collected() -> None:
    with open_pool("fork", 1) as pool:

        def make() -> Any:
            blocker = pool.submit(time.sleep, 0.05)
            future = pool.submit(same, 1)
            future.me = future
            assert future.cancel()
            blocker.result(20)
            return weakref.ref(future)

        gone(make)


def test_two_futures_that_hold_each_other_are_collected(maker: Any) -> None:
    def make() -> Any:
        a, b = maker.submit(same, 1), maker.submit(same, [2])
        b.result(20).append(a)
        a.result(20)
        a.other = b
        return weakref.ref(a)

    gone(make)


def test_iterator_in_a_cycle_is_collected(maker: Any) -> None:
    class Source(list):  # type: ignore[type-arg]
        pass

    def make() -> Any:
        source = Source(range(50))
        results = maker.imap(same, iter_of(source), chunk=1)
        source.results = results  # type: ignore[attr-defined]
        assert next(results) == 0
        return weakref.ref(source)

    def iter_of(source: Any) -> Iterator[Any]:
        yield from source

    ref = make()

    def freed() -> bool:
        maker.submit(same, 1).result(20)
        gc.collect()
        return ref() is None

    until(freed)


def test_job_whose_results_hold_it_is_collected(maker: Any) -> None:
    def make() -> Any:
        result = maker.map_async(lambda x: [x], range(4))
        values = result.get(20)
        assert values == [[0], [1], [2], [3]]
        mark = Thing()
        values[0].extend([result, mark])
        return weakref.ref(mark)

    gone(make)


class Large:
    def __init__(self) -> None:
        self.data = bytearray(16 << 20)

    def size(self, _: int) -> int:
        return len(self.data)


def private_bytes() -> int:
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def test_what_functions_have_captured_is_bounded_in_bytes() -> None:
    """128 MiB of it, where 256 functions were all that counted."""
    with open_pool("forkserver", 1) as pool:
        before = pool.submit(private_bytes).result(20)
        made = []
        for i in range(20):
            large = Large()
            assert pool.apply(large.size, (i,)) == 16 << 20
            made.append(weakref.ref(large))
            del large
        gc.collect()
        assert sum(ref() is not None for ref in made) <= 9
        assert live_bytes(pool) < 170 << 20
        assert pool.submit(private_bytes).result(20) - before < 300 << 20
        assert pool.apply(Large().size, (0,)) == 16 << 20
