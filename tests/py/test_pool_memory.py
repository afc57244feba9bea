# SPDX-License-Identifier: BSD-3-Clause
"""Memory of a pool that works for long: arena, owner and workers hold no more than at first.

Single operations, repeated until a lost object shows, are in test_leaks.py.
"""

from __future__ import annotations

import gc
import os
import resource
import tracemalloc
from typing import Any

import pytest
from conftest import live_bytes, open_pool, settle
from tasklib import square


def resident(_: int = 0) -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def test_arena_is_empty_when_nothing_is_held(processes: Any) -> None:
    processes.map(square, range(1000))
    processes.map(str.upper, ["x" * 5000] * 50)
    before = settle(processes)
    for _ in range(3):
        processes.map(square, range(5000))
        processes.map(str.upper, ["y" * 70_000] * 20)
        [f.result(20) for f in [processes.submit(str.upper, "z" * 10_000) for _ in range(100)]]
        for r in processes.imap(str.upper, ["w" * 9000] * 100):
            del r
        with pytest.raises(ZeroDivisionError):
            processes.map(lambda x: [1] * 10_000 if x else 1 / 0, range(100, -1, -1))
    settle(processes, before)


def test_memory_of_the_owner_is_flat_over_many_calls(workers: Any) -> None:
    def use(n: int) -> None:
        for i in range(n):
            workers.submit(square, i).result(20)
            if i % 50 == 0:
                workers.map(square, range(200))
                list(workers.imap(str, range(30)))
                workers.apply_async(square, (i,)).get(20)
                try:
                    workers.submit(int, "x").result(20)
                except ValueError:
                    pass

    use(1500)
    gc.collect()
    tracemalloc.start()
    use(500)
    gc.collect()
    first = tracemalloc.get_traced_memory()[0]
    use(4000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert grown < 40_000


def test_resident_memory_is_flat_over_a_hundred_thousand_calls(fast: Any) -> None:
    """What tracemalloc does not see: memory of the C part."""

    def use(n: int) -> None:
        for _ in range(n // 1000):
            for f in [fast.submit(square, i) for i in range(400)]:
                f.result(20)
            for _ in fast.imap(str, range(300), chunk=1):
                pass
            fast.map(square, range(300), chunk=1)

    use(20_000)
    before = resident()
    use(100_000)
    assert resident() - before < 2 << 20


def test_functions_made_anew_for_each_call_do_not_pile_up(fast: Any) -> None:
    def fresh(i: int) -> Any:
        return lambda x: x + i

    for i in range(600):
        assert fast.submit(fresh(i), 1).result(20) == 1 + i
    gc.collect()
    peak = live_bytes(fast)
    for i in range(1200):
        assert fast.submit(fresh(i), 1).result(20) == 1 + i
    assert live_bytes(fast) < peak + 400_000
    assert sum(type(o).__module__ == "trireme._core" for o in gc.get_objects()) < 600


def test_worker_memory_is_flat_over_many_functions(fast: Any) -> None:
    def largest() -> int:
        return max(fast.map(resident, range(20), chunk=1))

    def burn(n: int) -> None:
        for i in range(n):
            fast.submit(lambda x, i=i: x + i, 1).result(20)

    burn(400)
    before = largest()
    burn(1500)
    assert largest() - before < 6 << 20


def memory_files() -> dict[str, int]:
    """Bytes that the pools' memory takes of the machine's, by descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if "memfd:trireme" in os.readlink(f"/proc/self/fd/{name}"):
                found[name] = os.fstat(int(name)).st_blocks * 512
        except OSError:
            pass  # the one that lists them
    return found


def same(x: bytes) -> bytes:
    return x


@pytest.mark.parametrize("end", ["terminate", "close"])
def test_an_ended_pool_gives_back_what_nobody_holds(end: str) -> None:
    others = set(memory_files())
    with open_pool("forkserver") as pool:
        files = set(memory_files()) - others
        if not files:
            pytest.skip("no memfd here")
        for size in (100_000, 20_000):
            futures = [pool.submit(same, bytes(size)) for _ in range(500)]
            assert all(len(f.result(60)) == size for f in futures)
        held = pool.submit(bytearray, 1_000_000).result(60)
        held[:] = b"a" * len(held)
        # Less than a participant may keep for the next burst.
        assert sum(memory_files()[f] for f in files) > 20 << 20
        del futures
        if end == "close":
            pool.close()
            pool.join()
        else:
            pool.terminate()
        assert sum(memory_files()[f] for f in files) < 6 << 20
        assert held == b"a" * 1_000_000
