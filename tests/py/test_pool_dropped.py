# SPDX-License-Identifier: BSD-3-Clause
"""Pools that nobody closes: dropped with tasks in flight, they finish those and leave nothing."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from conftest import PROCESSES, open_pool, pids_of, until
from faultlib import alive
from tasklib import nap, square, wait_for


def half_way(pool: Any) -> None:
    for x in pool.imap(nap, [0.01] * 1000):
        if x:
            break


def half_way_unordered(pool: Any) -> None:
    next(pool.imap_unordered(nap, [0.01] * 1000))


def loop_that_raises(pool: Any) -> None:
    with pytest.raises(KeyError):
        for x in pool.imap(nap, [0.01] * 1000):
            raise KeyError(x)


def calls(pool: Any) -> None:
    for _ in range(5):
        pool.submit(nap, 0.05)


def background_map(pool: Any) -> None:
    pool.map_async(nap, [0.01] * 20)


def background_map_with_callback(pool: Any) -> None:
    pool.map_async(nap, [0.01] * 20, callback=lambda _: None)


def map_that_fails(pool: Any) -> None:
    with pytest.raises(TypeError):
        pool.map(nap, [0.05, "x", 0.05, 0.05, 0.05, 0.05], chunk=1)


def given_up(pool: Any) -> None:
    with pytest.raises(TimeoutError):
        pool.submit(nap, 0.3).result(0.02)


def callback(pool: Any) -> None:
    pool.submit(nap, 0.1).add_done_callback(lambda _: None)


USES = [
    half_way,
    half_way_unordered,
    loop_that_raises,
    calls,
    background_map,
    background_map_with_callback,
    map_that_fails,
    given_up,
    callback,
]


def watchers() -> int:
    return sum(t.name == "trireme-watch" for t in threading.enumerate())


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("way", ["fork", "forkserver", "thread"])
def test_nothing_is_left_of_a_pool_dropped_in_use(way: str, use: Any) -> None:
    with open_pool(way):  # the warden, if there is to be one
        pass
    gc.collect()
    until(lambda: watchers() == 0)
    before = len(os.listdir("/proc/self/fd"))
    pool = open_pool(way)
    pids = [] if way == "thread" else pids_of(pool)
    gone = weakref.ref(pool)
    use(pool)
    del pool
    until(lambda: gone() is None)
    until(lambda: not any(alive(pid) for pid in pids))
    until(lambda: watchers() == 0)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("way", ["fork", "forkserver", "thread"])
def test_results_that_are_held_still_come(way: str) -> None:
    pool = open_pool(way)
    futures = [pool.submit(nap, 0.05) for _ in range(6)]  # most of them have not started
    mapped = pool.map_async(square, range(100))
    gone = weakref.ref(pool)
    del pool
    assert [f.result(20) for f in futures] == [0.05] * 6
    assert mapped.get(20) == [x * x for x in range(100)]
    del futures, mapped
    until(lambda: gone() is None)


@pytest.mark.parametrize("way", ["fork", "thread"])
def test_an_iterator_alone_holds_its_pool(way: str) -> None:
    results = open_pool(way).imap(square, range(500))
    gc.collect()
    assert list(results) == [x * x for x in range(500)]


def test_calls_that_nobody_waits_for_are_made(tmp_path: Path) -> None:
    pool = open_pool("fork")
    pids = pids_of(pool)
    for i in range(20):
        pool.submit((tmp_path / str(i)).touch)
    pool.map_async(Path.touch, [tmp_path / f"m{i}" for i in range(20)])
    del pool
    until(lambda: len(os.listdir(tmp_path)) == 40)
    until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_what_an_iterator_has_not_started_goes_with_it(
    fast: Any, method: str, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    busy = [fast.submit(wait_for, str(go)) for _ in range(2)]
    until(lambda: all(f.running() for f in busy))
    results = getattr(fast, method)(Path.touch, (tmp_path / str(i) for i in range(50)))
    del results
    go.touch()
    assert [f.result(20) for f in busy] == [None, None]
    assert fast.map(square, range(10)) == [x * x for x in range(10)]
    assert os.listdir(tmp_path) == ["go"]
    assert fast.stats()["cancelled"] > 0


def test_a_pool_in_a_cycle_ends_when_it_is_collected() -> None:
    class Owner:
        pass

    owner: Any = Owner()
    owner.itself = owner
    owner.pool = open_pool("fork")
    owner.future = owner.pool.submit(nap, 0.2)
    gone, pids = weakref.ref(owner.pool), pids_of(owner.pool)
    del owner
    gc.collect()
    until(lambda: not any(alive(pid) for pid in pids))
    until(lambda: gone() is None)


@pytest.mark.parametrize("way", PROCESSES)
def test_the_program_ends_while_a_dropped_pool_works(start_script: Any, way: str) -> None:
    source = f"""
        import time, trireme as tri
        def use():
            pool = tri.Pool(2, start={way!r})
            futures = [pool.submit(time.sleep, 60) for _ in range(5)]
            while sum(f.running() for f in futures) < 2: time.sleep(0.002)
            return futures[4]
        last = use()
        print("ready", flush=True)
    """
    with start_script(source) as script:
        assert script.line() == "ready"
        code, out, err = script.end(20)
        assert (code, out, err) == (0, "", "")
        until(lambda: not script.group())


def test_a_fork_that_drops_the_pool_may_keep_its_futures(run_script: Any) -> None:
    out, err = run_script("""
        import gc, os, time, trireme as tri
        pool = tri.Pool(2, start="fork")
        future = pool.submit(time.sleep, 0.5)
        mapped = pool.map_async(time.sleep, [0.1] * 5)
        results = pool.imap(time.sleep, [0.1] * 5)
        pid = os.fork()
        if pid == 0:
            del pool, results
            gc.collect()
            for ask in (future.result, mapped.get):
                try:
                    ask(5)
                except RuntimeError:
                    print("refused", flush=True)
            del future, mapped
            gc.collect()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        future.result(20), mapped.get(20), list(results)
        print("done")
    """)
    assert out.split() == ["refused", "refused", "done"]
    assert err == ""


def test_a_fork_does_not_stop_what_ends_a_dropped_pool() -> None:
    pool = open_pool("forkserver")
    pids = pids_of(pool)
    pool.submit(nap, 0.5)
    del pool
    until(lambda: watchers() == 1)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert any(alive(p) for p in pids)
    until(lambda: not any(alive(p) for p in pids))


def test_a_dropped_pool_takes_no_more_work() -> None:
    pool = open_pool("forkserver")
    ref = weakref.ref(pool)
    pool.submit(nap, 0.3)
    del pool
    found = ref()
    assert found is not None
    with pytest.raises(ValueError, match="closed"):
        found.submit(square, 1)


def test_a_pool_without_tasks_needs_no_thread_to_end(monkeypatch: Any) -> None:
    from trireme import _attend

    started: list[Any] = []
    monkeypatch.setattr(_attend, "start_new_thread", lambda *a: started.append(a))
    pool = open_pool("forkserver")
    assert pool.map(square, range(10)) == [x * x for x in range(10)]
    ref = weakref.ref(pool)
    del pool
    assert ref() is None
    assert started == []


@pytest.mark.parametrize("way", ["fork", "forkserver"])
def test_so_does_a_pool_of_multiprocessings(way: str) -> None:
    import trireme.multiprocessing as mp

    pool = mp.get_context(way).Pool(2)
    pids = [pool.apply(os.getpid)]
    result = pool.apply_async(time.sleep, (0.2,))
    with pytest.warns(ResourceWarning):
        del pool
    del result
    until(lambda: not any(alive(pid) for pid in pids))
