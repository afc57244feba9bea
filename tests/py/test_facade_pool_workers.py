# SPDX-License-Identifier: BSD-3-Clause
"""What a worker of a pool of trireme.multiprocessing is like, and what reaches it.

Its name and its family, what comes by initargs, what a fork inherits, shared memory, managers: all
that must agree with the original is run against both.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from typing import Any

import pytest
import trireme as tri
from conftest import original_keeps_forks_locks
from facadelib import BOTH, ORIGINAL, OURS, STARTS, child_refused, module


def look(_: int) -> tuple[Any, ...]:
    me = multiprocessing.current_process()
    parent: Any = multiprocessing.parent_process()
    return (
        type(me).__name__,
        me.name.rstrip("0123456789"),
        me.daemon,
        me.pid == os.getpid(),
        me.is_alive(),
        parent.pid,
        parent.name,
        parent.is_alive(),
        multiprocessing.active_children(),
        multiprocessing.get_start_method(),
        bytes(me.authkey),
        len(me._identity),
    )


@BOTH
@STARTS
def test_a_worker_looks_like_multiprocessings(door: str, method: str) -> None:
    kind = {"fork": "Fork", "forkserver": "ForkServer", "spawn": "Spawn"}[method]
    with module(door).get_context(method).Pool(2) as p:
        for seen in p.map(look, range(4), 1):
            assert seen[:8] == (
                f"{kind}Process",
                f"{kind}PoolWorker-",
                True,
                True,
                True,
                os.getpid(),
                "MainProcess",
                True,
            )
            assert seen[8:] == (
                [],
                method,
                bytes(multiprocessing.current_process().authkey),
                1,
            )
        assert p.apply(child_refused) == "daemonic processes are not allowed to have children"
        assert sorted(w.pid for w in p._pool) == sorted(set(w.pid for w in p._pool))
        assert {w.name.rstrip("0123456789") for w in p._pool} == {f"{kind}PoolWorker-"}
        assert all(w.is_alive() and w.daemon for w in p._pool)


def test_names_number_the_workers_of_a_pool() -> None:
    ctx = module(OURS).get_context("fork")
    with ctx.Pool(3) as p:
        by_pid = {w.pid: w.name for w in p._pool}
        numbers = sorted(int(name.rpartition("-")[2]) for name in by_pid.values())
        assert numbers == list(range(numbers[0], numbers[0] + 3))
        pid, name = p.apply(own_name)
        assert by_pid[pid] == name


def own_name() -> tuple[int, str]:
    return os.getpid(), multiprocessing.current_process().name


things: Any = None


def take(*given: Any) -> None:
    global things
    things = given


def use(i: int) -> None:
    lock, value, array, queue, simple, event, writer = things
    assert event.wait(20)
    with lock:
        value.value += i
    array[i] = i * 0.5
    queue.put(i)
    simple.put(i)
    with lock:
        writer.send(i)


@BOTH
@STARTS
def test_shared_things_come_by_initargs(door: str, method: str) -> None:
    ctx = module(door).get_context(method)
    reader, writer = ctx.Pipe(duplex=False)
    given = (
        ctx.Lock(),
        ctx.Value("i", 0),
        ctx.Array("d", 10),
        ctx.Queue(),
        ctx.SimpleQueue(),
        ctx.Event(),
        writer,
    )
    _, value, array, queue, simple, event, _ = given
    # With replaced workers: one that is started later must find them, too.
    with ctx.Pool(2, take, given, maxtasksperchild=2) as p:
        result = p.map_async(use, range(10), 1)
        event.set()
        result.get(60)
        assert value.value == sum(range(10))
        assert list(array) == [i * 0.5 for i in range(10)]
        for get in (functools.partial(queue.get, timeout=20), simple.get, reader.recv):
            assert sorted(get() for _ in range(10)) == list(range(10))


@BOTH
def test_a_fork_inherits_the_globals_of_a_script(run_script: Any, door: str) -> None:
    out, err = run_script(
        f"""
        import {door} as mp
        mp.set_start_method("fork")
        lock, value, queue = mp.Lock(), mp.Value("i", 0), mp.Queue()
        plain = []
        def f(i):
            with lock:
                value.value += i
            queue.put(i)
            plain.append(i)
            return len(plain)
        with mp.Pool(1) as p:
            print(p.map(f, range(5)), p.apply(f, (5,)), list(p.imap(f, [6])))
            print(value.value, sorted(queue.get(timeout=20) for _ in range(7)), plain)
        """
    )
    assert out == "[1, 2, 3, 4, 5] 6 [7]\n21 [0, 1, 2, 3, 4, 5, 6] []\n"
    assert err == ""


def test_initargs_that_cannot_travel_are_refused_at_once() -> None:
    ctx = module(OURS).get_context("spawn")
    with pytest.raises(TypeError, match=r"Pipe\(duplex=False\)"):
        ctx.Pool(1, take, (ctx.Pipe()[0],))
    original_keeps_forks_locks()
    with pytest.raises(RuntimeError, match="fork context"):
        ctx.Pool(1, take, (module(ORIGINAL).get_context("fork").Lock(),))


def read_memory(name: str) -> tuple[int, str]:
    from multiprocessing.shared_memory import SharedMemory

    segment = SharedMemory(name)
    try:
        return segment.buf[0], tracker_pipe()
    finally:
        segment.close()


def tracker_pipe() -> str:
    from multiprocessing import resource_tracker

    return os.readlink(f"/proc/self/fd/{resource_tracker.getfd()}")


@BOTH
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_shared_memory_outlives_the_workers_that_opened_it(door: str, method: str) -> None:
    from multiprocessing.shared_memory import SharedMemory

    segment = SharedMemory(create=True, size=16)
    try:
        segment.buf[0] = 7
        p = module(door).get_context(method).Pool(1)
        # With a tracker of its own, a worker would remove at its end what others use.
        assert p.apply(read_memory, (segment.name,)) == (7, tracker_pipe())
        p.close()
        p.join()
        again = SharedMemory(segment.name)
        assert again.buf[0] == 7
        again.close()
    finally:
        segment.close()
        segment.unlink()


@BOTH
def test_a_managers_proxies_work_in_tasks(door: str) -> None:
    mp = module(door)
    with mp.Manager() as manager, mp.Pool(2) as p:
        shared = manager.dict()
        p.starmap(set_item, [(shared, i) for i in range(4)])
        assert dict(shared) == {i: i * i for i in range(4)}


def set_item(shared: Any, i: int) -> None:
    shared[i] = i * i


# --------------------------------------------------------------------------- the two extras


def hang_once(path: str) -> str:
    """Hang unless somebody has made the file; make it."""
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        time.sleep(600)
    return path


def die_once(path: str) -> str:
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        os._exit(3)
    return path


def slow_or_not(x: int) -> int:
    if x == 3:
        time.sleep(600)
    return x


def options_of(*args: Any, **kwds: Any) -> Any:
    return args, kwds


@STARTS
def test_a_time_limit_costs_its_own_item(method: str) -> None:
    with module(OURS).get_context(method).Pool(2, timeout=1.0) as p:
        with pytest.raises(TimeoutError, match="1"):
            p.apply(time.sleep, (600,))
        with pytest.raises(tri.TaskTimeout):
            p.map(slow_or_not, range(10), 5)
        for way in (p.imap, p.imap_unordered):
            results = way(slow_or_not, range(10), 5)
            got, late = [], 0
            while True:
                try:
                    got.append(next(results))
                except StopIteration:
                    break
                except tri.TaskTimeout:
                    late += 1
            assert sorted(got) == [0, 1, 2, 4, 5, 6, 7, 8, 9] and late == 1
        # A task's own arguments of these names are its own.
        assert p.apply(options_of, (1,), {"timeout": 2, "retries": 3}) == (
            (1,),
            {"timeout": 2, "retries": 3},
        )


@STARTS
def test_retries_run_an_item_again(method: str, tmp_path: Any) -> None:
    with module(OURS).get_context(method).Pool(2, retries=1) as p:
        paths = [str(tmp_path / f"{i}") for i in range(6)]
        assert p.map(die_once, paths, 3) == paths
        again = str(tmp_path / "again")
        assert p.apply(die_once, (again,)) == again
        with pytest.raises(tri.WorkerLost):
            p.apply(os._exit, (3,))
    with module(OURS).Pool(1, timeout=1.0, retries=1) as p, pytest.raises(tri.TaskTimeout):
        p.apply(hang_once, (str(tmp_path / "slow"),))


@pytest.mark.parametrize("door", [OURS, "trireme.multiprocess"])
def test_the_extras_are_checked(door: str) -> None:
    mp = module(door)
    with mp.Pool(1, timeout=20, retries=2) as p:
        assert p.apply(options_of, (1,)) == ((1,), {})
    for bad in ({"timeout": 0}, {"timeout": -1}, {"retries": -1}, {"retries": 1 << 16}):
        with pytest.raises(ValueError):
            mp.Pool(1, **bad)
    for bad in ({"timeout": "soon"}, {"retries": 1.5}, {"retries": True}):
        with pytest.raises(TypeError):
            mp.Pool(1, **bad)
    with pytest.raises(TypeError):
        mp.Pool(1, None, (), None, 1.0)
