# SPDX-License-Identifier: BSD-3-Clause
"""share(): one copy in memory, read in place by every worker of every pool."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
import trireme as tri
from conftest import open_pool, until


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


def test_inside_other_arguments_and_closures(processes: Any) -> None:
    table = tri.share([1, 2, 3])
    assert processes.submit(lambda d: sum(d["t"]), {"t": table}).result(20) == 6
    assert processes.submit(lambda: sum(table)).result(20) == 6


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
