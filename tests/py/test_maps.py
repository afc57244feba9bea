# SPDX-License-Identifier: BSD-3-Clause
"""map, starmap, imap and imap_unordered: values in order, errors where they belong, lazy input."""

from __future__ import annotations

import collections
import datetime
import itertools
import os
import threading
import time
from typing import Any

import pytest
import trireme as tri
from conftest import open_pool, settle, until
from tasklib import add, fails_at_3, square

# -------------------------------------------------------------- values


@pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
def test_map_gives_results_in_order_whatever_the_chunk(pool: Any, chunk: int | None) -> None:
    assert pool.map(square, range(100), chunk=chunk) == [x * x for x in range(100)]


@pytest.mark.parametrize(
    "items",
    [
        [1, 2, 3],
        (1, 2, 3),
        range(3),
        range(10, 0, -3),
        {1: "a", 2: "b"},
        iter([4, 5]),
        range(10**18, 10**18 + 3),
        range(10**20, 10**20 + 30),
        [0.5, "text", None, b"bytes", (1, (2, 3)), True, 10**30],
        "letters",
        [{1, 2}, {"key": [1]}],
    ],
    ids=repr,
)
def test_map_takes_any_iterable_and_any_item(fast: Any, items: Any) -> None:
    expected = list(items)
    again = iter(expected) if iter(items) is items else items
    assert fast.map(repr, again) == [repr(x) for x in expected]


def test_map_of_nothing_is_an_empty_list(pool: Any) -> None:
    assert pool.map(square, []) == []
    assert pool.map(add, [], [1, 2]) == []
    assert pool.starmap(add, []) == []
    assert list(pool.imap(square, [])) == []
    assert list(pool.imap_unordered(square, iter(()))) == []
    assert pool.map_async(square, []).get(10) == []


def test_map_of_a_generator_consumes_it(pool: Any) -> None:
    assert pool.map(square, (x for x in range(50))) == [x * x for x in range(50)]


def test_several_iterables_go_in_step_and_end_with_the_shortest(pool: Any) -> None:
    assert pool.map(add, [1, 2, 3], (10, 20)) == [11, 22]
    assert pool.map(add, itertools.count(), range(4)) == [0, 2, 4, 6]
    assert list(pool.imap(add, itertools.count(), [5, 6])) == [5, 7]
    assert sorted(pool.imap_unordered(add, range(3), range(3))) == [0, 2, 4]


def test_starmap_spreads_each_item(pool: Any) -> None:
    assert pool.starmap(add, [(1, 2), [3, 4], iter((5, 6))][: 2 if pool.way != "serial" else 3])
    assert pool.starmap(pow, [(2, 3), (3, 4, 5)]) == [8, 81 % 5]
    assert pool.starmap(add, ((i, i) for i in range(100))) == [2 * i for i in range(100)]


def test_imap_gives_results_in_order(pool: Any) -> None:
    assert list(pool.imap(square, range(300))) == [x * x for x in range(300)]
    assert list(pool.imap(square, range(300), chunk=9)) == [x * x for x in range(300)]


def test_imap_unordered_gives_every_result_once(pool: Any) -> None:
    got = list(pool.imap_unordered(square, range(300)))
    assert sorted(got) == [x * x for x in range(300)]


def test_a_million_items_come_back_whole(fast: Any) -> None:
    n = 1_000_000
    assert fast.map(square, range(n)) == [x * x for x in range(n)]


def test_caller_works_too_and_results_are_the_same(workers: Any) -> None:
    assert workers.map(square, range(10_000), caller=True) == [x * x for x in range(10_000)]
    assert workers.starmap(add, [(i, 1) for i in range(500)], caller=True) == list(range(1, 501))

    def where(_: int) -> tuple[int, int]:
        time.sleep(0.001)
        return os.getpid(), threading.get_ident()

    seen = set(workers.map(where, range(200), caller=True))
    assert (os.getpid(), threading.get_ident()) in seen
    assert len(seen) >= 2


def test_caller_error_ends_the_map_and_the_pool_goes_on(workers: Any) -> None:
    with pytest.raises(ValueError, match="three"):
        workers.map(fails_at_3, range(100), caller=True)
    assert workers.map(square, range(10)) == [x * x for x in range(10)]


def test_work_is_spread_over_all_workers(processes: Any) -> None:
    def slow(x: int) -> int:
        end = time.perf_counter() + 0.005
        while time.perf_counter() < end:
            pass
        return os.getpid()

    pids = set(processes.map(slow, range(60)))
    assert len(pids) == 2
    assert os.getpid() not in pids


# -------------------------------------------------------------- errors


def test_first_failure_is_raised_with_its_own_type(pool: Any) -> None:
    with pytest.raises(ValueError, match="three"):
        pool.map(fails_at_3, range(10))
    with pytest.raises(ValueError, match="three"):
        pool.starmap(fails_at_3, [(i,) for i in range(10)])
    assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def test_failure_cancels_what_has_not_started(fast: Any, tmp_path: Any) -> None:
    log = str(tmp_path / "log")

    def task(x: int) -> None:
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, b"x")
        os.close(fd)
        if x == 0:
            raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        fast.map(task, range(20_000), chunk=1)
    fast.submit(square, 1).result(20)
    assert os.path.getsize(log) < 10_000


def test_imap_goes_on_behind_an_item_that_fails(workers: Any) -> None:
    for chunk in (1, 4, None):
        results = workers.imap(fails_at_3, range(8), chunk=chunk)
        got: list[Any] = []
        while True:
            try:
                got.append(next(results))
            except StopIteration:
                break
            except ValueError as exc:
                got.append(str(exc))
        assert got == [0, 1, 2, "three", 4, 5, 6, 7]


def test_imap_unordered_reports_each_failure_once(workers: Any) -> None:
    results = workers.imap_unordered(fails_at_3, [3, 1, 3, 2, 3], chunk=2)
    good, bad = [], 0
    while True:
        try:
            good.append(next(results))
        except StopIteration:
            break
        except ValueError:
            bad += 1
    assert sorted(good) == [1, 2]
    assert bad == 3


class Sour:
    """Travels, but fails in one of the ways in which an object can when it is unpickled."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.twin = [how]

    def __reduce__(self) -> Any:
        ways: dict[str, Any] = {
            "call": (sour, ("call", RuntimeError)),
            "exit": (sour, ("exit", SystemExit)),
            "state": (Plain, (), {"sour": "state"}),
            "key": (dict, (), None, None, iter([([], 1)])),
            "deep": (Plain, (), {"a": [{"b": (Sour("call"), "tail")}], "c": "tail"}),
        }
        return ways[self.how]


class Plain:
    def __init__(self) -> None:
        self.tag = "plain"

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "sour" in state:
            raise RuntimeError("sour " + state["sour"])
        self.__dict__.update(state)


class Picky:
    def __new__(cls, one: int = 0) -> Any:
        return object.__new__(cls)

    def __getnewargs__(self) -> Any:
        return 1, 2


def sour(how: str, kind: type[BaseException]) -> Any:
    raise kind("sour " + how)


def take_all(results: Any) -> list[Any]:
    """What an iterator gives, exceptions among it."""
    got: list[Any] = []
    while True:
        try:
            got.append(next(results))
        except StopIteration:
            return got
        except Exception as exc:
            got.append(exc)


@pytest.mark.parametrize("how", ["call", "exit", "state", "new", "key", "deep"])
@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_result_that_does_not_unpickle_fails_alone(fast: Any, method: str, how: str) -> None:
    def task(x: int) -> Any:
        if x in (0, 3, 7):
            return Picky() if how == "new" else Sour(how)
        if x == 5:
            raise KeyError(x)
        plain = Plain()
        plain.__dict__.update(x=x, tail=["tail", {x: (x,)}, {x}, collections.deque([x])])
        plain.me = plain  # type: ignore[attr-defined]
        plain.a = plain.c = frozenset([x, datetime.date(2000, 1, x)])  # type: ignore[attr-defined]
        return plain

    for chunk in (4, 10):
        got = take_all(getattr(fast, method)(task, range(10), chunk=chunk))
        if method == "imap":
            assert [isinstance(g, Exception) for g in got] == [x in (0, 3, 5, 7) for x in range(10)]
            assert type(got[5]) is KeyError
        bad = [g for g in got if isinstance(g, Exception)]
        good = sorted((g for g in got if not isinstance(g, Exception)), key=lambda g: g.x)
        assert len(bad) == 4 and len(got) == 10
        assert [type(b) for b in bad].count(KeyError) == 1
        if how == "exit":
            assert [type(b) for b in bad].count(tri.RemoteError) == 3
        for x, g in zip((1, 2, 4, 6, 8, 9), good, strict=True):
            day = frozenset([x, datetime.date(2000, 1, x)])
            assert type(g) is Plain and g.me is g and g.tag == "plain" and g.x == x
            assert g.tail == ["tail", {x: (x,)}, {x}, collections.deque([x])]
            assert g.a == day and g.c is g.a


def test_arrays_beside_a_result_that_does_not_unpickle_arrive(processes: Any) -> None:
    np = pytest.importorskip("numpy")

    def task(x: int) -> Any:
        return Sour("call") if x == 1 else np.full(50_000, x)

    start = settle(processes)
    for n in (2, 4):
        got = take_all(processes.imap(task, range(n), chunk=n))
        assert isinstance(got[1], RuntimeError)
        for x in {*range(n)} - {1}:
            assert got[x].flags.writeable and (got[x] == x).all() and len(got[x]) == 50_000
    del got
    settle(processes, start)


def test_what_two_results_have_in_common_fails_both_and_no_other(fast: Any) -> None:
    common: list[Any] = []  # empty here; filled in the worker, where one chunk runs

    def task(x: int) -> Any:
        if not common:
            common.append(Sour("call"))
        return [x, common] if x in (1, 2) else [x]

    got = take_all(fast.imap(task, range(5), chunk=5))
    assert [isinstance(g, RuntimeError) for g in got] == [False, True, True, False, False]
    assert [got[0], got[3], got[4]] == [[0], [3], [4]]


def test_imap_item_that_kills_its_worker_fails_alone(processes: Any) -> None:
    def task(x: int) -> int:
        if x == 2:
            os._exit(3)
        return x

    results = processes.imap(task, range(5), chunk=1)
    assert next(results) == 0
    assert next(results) == 1
    with pytest.raises(tri.WorkerLost):
        next(results)
    assert list(results) == [3, 4]


def test_input_that_raises_is_told_after_what_came_before_it(workers: Any) -> None:
    def source() -> Any:
        yield 1
        yield 2
        raise RuntimeError("no more input")

    results = workers.imap(square, source(), chunk=1)
    assert next(results) == 1
    assert next(results) == 4
    with pytest.raises(RuntimeError, match="no more input"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    with pytest.raises(RuntimeError, match="no more input"):
        workers.map(square, source())
    assert workers.map(square, [3]) == [9]


def test_input_that_raises_in_the_middle_of_a_chunk_is_told(workers: Any) -> None:
    def source() -> Any:
        yield from range(5)
        raise RuntimeError("no more input")

    for method in (workers.imap, workers.imap_unordered):
        results = method(square, source(), chunk=4)
        got = []
        with pytest.raises(RuntimeError, match="no more input"):
            for r in results:
                got.append(r)
        assert sorted(got) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("method", ["map", "starmap", "imap", "imap_unordered", "map_async"])
def test_what_is_not_iterable_gets_a_helpful_message(pool: Any, method: str) -> None:
    with pytest.raises(TypeError, match=r"not int \(5\); did you mean range\(5\)\?"):
        getattr(pool, method)(square, 5)
    with pytest.raises(TypeError, match="not NoneType"):
        getattr(pool, method)(square, None)


def test_no_iterable_at_all_is_a_type_error(pool: Any) -> None:
    for method in (pool.map, pool.imap, pool.imap_unordered, pool.map_async):
        with pytest.raises(TypeError, match="at least one iterable"):
            method(square)


def test_what_is_not_callable_is_a_type_error(workers: Any) -> None:
    with pytest.raises(TypeError, match="callable"):
        workers.map(5, [1])
    with pytest.raises(TypeError, match="callable"):
        workers.submit("name")
    with pytest.raises(TypeError, match="callable"):
        workers.imap(None, [1])


def test_starmap_item_that_cannot_be_spread_fails(workers: Any) -> None:
    with pytest.raises(TypeError):
        workers.starmap(square, [1, 2])
    assert workers.map(square, [2]) == [4]


# -------------------------------------------------------------- laziness


def test_imap_of_an_endless_generator_runs_bounded_ahead(workers: Any) -> None:
    pulled = 0

    def source() -> Any:
        nonlocal pulled
        for i in itertools.count():
            pulled += 1
            yield i

    results = workers.imap(square, source(), chunk=1)
    assert [next(results) for _ in range(50)] == [x * x for x in range(50)]
    assert 50 <= pulled < 50 + 30
    del results
    assert workers.map(square, [4]) == [16]


def test_imap_look_ahead_is_bounded_with_measured_chunks(fast: Any) -> None:
    pulled = 0

    def source() -> Any:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    def nap(x: int) -> int:
        time.sleep(0.001)
        return x

    results = fast.imap(nap, source())
    for i in range(1, 101):
        assert next(results) == i
    assert pulled < 100 + 60


def test_serial_imap_is_lazy() -> None:
    with open_pool("serial") as pool:
        results = pool.imap(square, itertools.count())
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]


def test_imap_results_stream_while_input_goes_on(fast: Any) -> None:
    """The first result is out while the source still waits for a sign that it was."""
    first_seen = threading.Event()

    def source() -> Any:
        yield 0
        yield 1
        yield from itertools.islice(itertools.count(2), 100)
        assert first_seen.is_set(), "input was pulled to its end before a result came out"
        yield 102

    results = fast.imap(square, source(), chunk=1)
    assert next(results) == 0
    first_seen.set()
    assert len(list(results)) == 102


@pytest.mark.parametrize("way", ["imap", "imap_unordered"])
def test_slow_input_is_not_gathered_before_results_are_given(pool: Any, way: str) -> None:
    """It takes 10 ms an item, the tasks next to nothing: chunks by their time would be hundreds."""
    pulled = 0

    def source() -> Any:
        nonlocal pulled
        for x in range(150):
            time.sleep(0.01)
            pulled += 1
            yield x

    results = getattr(pool, way)(square, source())
    assert pulled <= 1
    ahead = []
    for given, _ in enumerate(results, 1):
        ahead.append(pulled - given)
    assert len(ahead) == 150 and max(ahead) < 30


def test_next_takes_its_timeout_by_name(pool: Any) -> None:
    results = pool.imap(square, [3])
    assert results.next(timeout=20) == 9
    if pool.kind != "serial":
        for args, kwargs in (((1, 2), {}), ((), {"wait": 1}), ((1,), {"timeout": 1})):
            with pytest.raises(TypeError, match="timeout="):
                results.next(*args, **kwargs)
    with pytest.raises(StopIteration):
        results.next(timeout=20)


def test_imap_unordered_gives_the_quick_before_the_slow(workers: Any, tmp_path: Any) -> None:
    gate = tmp_path / "open"

    def task(x: int) -> int:
        until(lambda: x != 0 or gate.exists(), 30)
        return x

    results = workers.imap_unordered(task, [0, 1, 2, 3], chunk=1)
    assert sorted(results.next(30) for _ in range(3)) == [1, 2, 3]
    gate.touch()
    assert list(results) == [0]


def test_next_with_a_time_limit_raises_and_can_be_repeated(workers: Any) -> None:
    def task(x: int) -> int:
        time.sleep(0.2)
        return x

    results = workers.imap(task, [7], chunk=1)
    with pytest.raises(TimeoutError):
        results.next(0.01)
    assert results.next(20) == 7
    with pytest.raises(StopIteration):
        results.next(1)


def test_dropped_iterator_cancels_what_has_not_started(fast: Any, tmp_path: Any) -> None:
    log = str(tmp_path / "log")

    def task(x: int) -> None:
        with open(log, "a") as f:
            f.write("x")
        time.sleep(0.01)

    results = fast.imap(task, range(100), chunk=1)
    next(results)
    del results
    fast.submit(square, 1).result(20)
    time.sleep(0)
    assert os.path.getsize(log) < 30
