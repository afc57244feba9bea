# SPDX-License-Identifier: BSD-3-Clause
"""share(): one copy in memory, read in place by every worker of every pool."""

from __future__ import annotations

import copy
import functools
import gc
import os
import resource
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import trireme as tri
from conftest import WAYS, open_pool, until


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rss_shmem() -> int:
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith("RssShmem"):
                return int(line.split()[1]) * 1024
    return 0


def test_a_shared_object_arrives_as_itself(pool: Any) -> None:
    table = tri.share({"a": [1, 2], "b": "text"})
    assert pool.submit(lambda t: t["a"], table).result(20) == [1, 2]
    assert pool.submit(lambda x, t: (x, t["b"]), 1, t=table).result(20) == (1, "text")
    assert pool.map(lambda i, t: t["a"][i], range(2), [table] * 2) == [1, 2]
    assert pool.starmap(lambda i, t: t["a"][i], [(0, table), (1, table)]) == [1, 2]
    assert pool.map(lambda t: t["b"], [table] * 3) == ["text"] * 3
    assert list(pool.imap(lambda t: t["b"], [table] * 3)) == ["text"] * 3
    assert pool.apply(len, (table,)) == 2
    assert table.value == {"a": [1, 2], "b": "text"}


def test_the_caller_sees_the_object_too(workers: Any) -> None:
    table = tri.share([5, 6, 7])
    assert workers.map(lambda t: t[1], [table] * 100, caller=True) == [6] * 100
    assert workers.starmap(lambda i, t: t[i], [(2, table)] * 100, caller=True) == [7] * 100


def test_arrays_are_read_in_place_and_read_only(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    big = tri.share(np.arange(4_000_000.0))

    def look(i: int, a: Any) -> tuple[float, bool, bool]:
        return float(a[i]), a.flags.writeable, a.flags.owndata

    assert processes.map(look, range(10), [big] * 10) == [
        (float(i), False, False) for i in range(10)
    ]
    with pytest.raises(ValueError, match="read-only"):
        big.value[0] = 1
    before = processes.stats()["arena_peak_bytes"]
    processes.map(look, range(200), [big] * 200, chunk=1)
    assert processes.stats()["arena_peak_bytes"] - before < 1 << 20


@dataclass
class Holder:
    table: Any


class Row(NamedTuple):
    table: Any


def test_in_tuples_lists_and_dicts_among_the_arguments_it_is_the_object(pool: Any) -> None:
    table = tri.share([1, 2, 3])
    nested = {"t": [(table, 1), {"deep": table}], "plain": [4]}

    def total(d: Any, *, more: Any = ()) -> int:
        return sum(d["t"][0][0]) + sum(d["t"][1]["deep"]) + d["plain"][0] + sum(map(sum, more))

    assert pool.submit(total, nested).result(20) == 16
    assert pool.submit(total, nested, more=[table, (5,)]).result(20) == 27
    assert pool.apply(total, (nested,), {"more": (table,)}) == 22
    assert pool.map(lambda pair: pair[0][pair[1]], [(table, i) for i in range(3)]) == [1, 2, 3]
    assert list(pool.imap(lambda d: d["t"][2], [{"t": table}] * 3)) == [3] * 3
    assert pool.starmap(lambda a, b: a[0] + b[0][1], [[table, [table]]] * 3) == [3] * 3
    assert pool.map(lambda a, b: a[0] + b[0][1], [table] * 3, [[table]] * 3) == [3] * 3
    # What was handed in is as it was.
    assert nested["t"][0][0] is table and nested["t"][1]["deep"] is table  # type: ignore[index]


def test_anywhere_else_it_is_the_handle(pool: Any) -> None:
    table = tri.share([1, 2, 3])

    def seen(x: Any) -> tuple[bool, Any]:
        return type(x) is tri.Shared, x.value[1] if type(x) is tri.Shared else x

    assert pool.submit(lambda h: seen(h.table), Holder(table)).result(20) == (True, 2)
    assert pool.submit(lambda r: seen(r.table), Row(table)).result(20) == (True, 2)
    assert pool.submit(lambda s: [*map(seen, s)], {table}).result(20) == [(True, 2)]
    assert pool.submit(lambda: seen(table)).result(20) == (True, 2)
    assert pool.submit(lambda x: seen(x), table).result(20) == (False, [1, 2, 3])


def test_what_a_partial_holds_are_arguments(pool: Any) -> None:
    table = tri.share([1, 2, 3])
    first = functools.partial(lambda t, i: t[i], table)
    assert pool.map(first, range(3)) == [1, 2, 3]
    assert pool.map(first, range(3), caller=True) == [1, 2, 3]
    assert list(pool.imap(first, range(3))) == [1, 2, 3]
    assert pool.submit(first, 2).result(20) == 3
    named = functools.partial(lambda i, *, t: t["in"][0][i], t={"in": [table]})
    assert pool.map(named, range(3)) == [1, 2, 3]
    assert pool.submit(named, 1).result(20) == 2
    assert first.args[0] is table and named.keywords["t"]["in"][0] is table


def test_a_handle_comes_back_as_itself(pool: Any) -> None:
    table = tri.share([1, 2, 3])
    assert pool.submit(lambda h: h.table, Holder(table)).result(20) is table
    assert pool.submit(lambda: (table, 1)).result(20) == (table, 1)
    assert copy.deepcopy(table) is table


def test_initargs_are_arguments(way: str) -> None:
    table = tri.share([1, 2, 3])

    def begin(a: Any, b: Any) -> None:
        os.environ["TRI_TEST_SHARED"] = repr((a, b))

    with open_pool(way, initializer=begin, initargs=(table, [table])) as pool:
        seen = pool.submit(lambda: os.environ["TRI_TEST_SHARED"]).result(20)
    assert seen == "([1, 2, 3], [[1, 2, 3]])"
    os.environ.pop("TRI_TEST_SHARED", None)


def test_starmap_over_what_is_no_tuple(pool: Any) -> None:
    table = tri.share([1, 2, 3])
    pair = tri.share((4, 5))
    assert pool.starmap(lambda t: t[0], [{table}, Row(table)]) == [1, 1]
    assert pool.starmap(lambda a, b: a + b, [pair, [4, 5]]) == [9, 9]


@pytest.mark.parametrize("kind", ["thread", "serial"])
def test_containers_without_one_are_passed_themselves(kind: str) -> None:
    table = tri.share([1])
    out: list[Any] = []
    whole = [table, out, (out,)]
    with open_pool(kind) as pool:
        pool.submit(lambda w: (w[1].append("x"), w[2][0].append("y")), whole).result(20)
        assert out == ["x", "y"]
        assert pool.submit(lambda w: w, [out]).result(20)[0] is out
        same = pool.submit(lambda a, b: a is b, *([[table]] * 2)).result(20)
        assert same, "one list became two"


@pytest.mark.parametrize("kind", ["fork", "thread", "serial"])
def test_containers_in_themselves_end(kind: str) -> None:
    table = tri.share([7])
    loop: list[Any] = [table]
    loop += [loop, [loop, (loop, table)], {"l": loop}]
    wide: Any = table
    for _ in range(50):
        wide = [wide, wide]
    with open_pool(kind) as pool:
        assert pool.submit(lambda x: x[0], loop).result(20) == [7]

        def leaf(x: Any) -> Any:
            for _ in range(50):
                x = x[1]
            return x

        assert pool.submit(leaf, wide).result(20) == [7]


def test_two_pools_share_one_object() -> None:
    table = tri.share(list(range(100)))
    for way in ("fork", "forkserver", "spawn", "thread"):
        with open_pool(way) as pool:
            assert pool.map(lambda i, t: t[i], range(100), [table] * 100) == list(range(100))


def test_the_worker_remembers_the_object(fast: Any) -> None:
    table = tri.share([1, 2, 3])
    first = {fast.submit(lambda t: (os.getpid(), id(t)), table).result(20) for _ in range(50)}
    assert len(first) <= 2


def test_memory_goes_back_with_the_handle() -> None:
    np = pytest.importorskip("numpy")
    gc.collect()
    start = rss_shmem()
    descriptors = len(os.listdir("/proc/self/fd"))
    with open_pool("forkserver") as pool:
        inside = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            big = tri.share(np.ones(2_000_000))
            assert big.nbytes >= 16_000_000
            assert pool.map(lambda t: float(t.sum()), [big] * 4) == [2e6] * 4
            del big
            gc.collect()
        assert len(os.listdir("/proc/self/fd")) == inside
        # A worker lets go when it meets the next shared object.
        small = tri.share(1)
        pool.map(lambda _, s: s, range(20), [small] * 20, chunk=1)

        def mapped(_: int) -> int:
            with open("/proc/self/maps") as f:
                return sum("trireme-share" in line for line in f)

        assert max(pool.map(mapped, range(20), chunk=1)) <= 1
    assert rss_shmem() - start < 16_000_000
    del small, pool
    gc.collect()
    until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 2)


def test_a_view_outlives_the_handle() -> None:
    np = pytest.importorskip("numpy")
    handle = tri.share(np.arange(100_000))
    view = handle.value[10:20]
    del handle
    gc.collect()
    assert view.tolist() == list(range(10, 20))


def test_a_handle_that_is_gone_is_a_clear_error(processes: Any) -> None:
    import pickle

    handle = tri.share([1])
    data = pickle.dumps(handle)
    del handle
    gc.collect()
    with pytest.raises(RuntimeError, match="keep the Shared alive"):
        processes.submit(pickle.loads, data).result(20)
    assert processes.submit(abs, -1).result(20) == 1


def test_what_cannot_be_pickled_cannot_be_shared() -> None:
    import threading

    with pytest.raises(TypeError, match="lock"):
        tri.share({"lock": threading.Lock()})


def test_a_shared_result_may_be_made_from_a_shared_argument(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    big = tri.share(np.arange(100_000))
    got = processes.submit(lambda a: a[::2], big).result(20)
    assert (got == np.arange(0, 100_000, 2)).all()


def test_repr_says_what_it_is() -> None:
    assert repr(tri.share([1])).startswith("<trireme.Shared list")


def test_a_limit_of_file_sizes_is_named() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        small = tri.share(b"x" * 100)
        with pytest.raises(OSError, match="80.. bytes.*ulimit -f.*raise it"):
            tri.share(bytes(8000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert small.value == b"x" * 100
