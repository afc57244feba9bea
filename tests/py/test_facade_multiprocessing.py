# SPDX-License-Identifier: BSD-3-Clause
"""trireme.multiprocessing: its names, the life of its pools, and what the original gets wrong.

What must agree with the original is run against both; see facadelib.py for what may not be.  The
calls are in test_facade_pool_calls.py, what a worker is like is in test_facade_pool_workers.py.
"""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from facadelib import (
    BOTH,
    METHODS,
    ORIGINAL,
    OURS,
    STARTS,
    child_refused,
    fail,
    module,
    return_lambda,
    touch,
)
from tasklib import square

SUBMODULES = (
    "pool queues managers shared_memory connection synchronize sharedctypes context process dummy "
    "dummy.connection reduction util spawn forkserver heap resource_sharer resource_tracker "
    "popen_fork popen_forkserver popen_spawn_posix"
).split()


# --------------------------------------------------------------------------------------- surface


def test_every_name_of_the_original_is_here() -> None:
    ours, original = module(OURS), module(ORIGINAL)
    assert sorted(ours.__all__) == sorted(original.__all__)
    for name in original.__all__:
        assert hasattr(ours, name), name
    assert ours.Process is original.Process
    assert ours.TimeoutError is original.TimeoutError
    assert ours.SUBDEBUG == original.SUBDEBUG and ours.SUBWARNING == original.SUBWARNING
    assert hasattr(ours, "reducer") and hasattr(ours, "context")


@pytest.mark.parametrize("sub", SUBMODULES)
@pytest.mark.parametrize("door", [OURS, "trireme.multiprocess"])
def test_every_submodule_has_the_names_of_the_originals(door: str, sub: str) -> None:
    ours, original = module(door, sub), module(ORIGINAL, sub)
    names = getattr(original, "__all__", [n for n in vars(original) if n[0] != "_"])
    for name in names:
        assert hasattr(ours, name), name
    if sub not in ("pool", "context", "dummy", "queues", "synchronize", "heap", "sharedctypes"):
        assert ours is original
    elif sub not in ("pool", "context", "queues"):
        assert ours is module(OURS, sub)


def test_submodules_of_multiprocess_are_imported_by_name(run_script: Any) -> None:
    """By a program that has touched nothing of it before."""
    out, _ = run_script(
        """
        from trireme.multiprocess.managers import BaseManager
        import trireme.multiprocess.shared_memory as shm
        import trireme.multiprocess.dummy.connection
        from trireme.multiprocess import synchronize
        import trireme.multiprocess as mp
        import multiprocessing.managers
        print(BaseManager is multiprocessing.managers.BaseManager, mp.shared_memory is shm)
        print(mp.dummy.connection.Pipe.__module__, type(mp.Lock()) is synchronize.Lock)
        try:
            mp.nothing
        except AttributeError as exc:
            print(exc)
        """
    )
    assert out.splitlines() == [
        "True True",
        "multiprocessing.dummy.connection True",
        "module 'trireme.multiprocess' has no attribute 'nothing'",
    ]


def test_what_the_originals_pool_module_has_is_found_behind_ours(run_script: Any) -> None:
    out, _ = run_script(
        """
        import sys
        from trireme.multiprocessing import pool
        print(hasattr(pool, "nothing"), "multiprocessing.pool" in sys.modules)
        print(pool.mapstar.__module__, pool.RUN, pool.Pool.__module__, pool.queue.__name__)
        """
    )
    assert out.splitlines() == [
        "False False",
        "multiprocessing.pool RUN trireme.multiprocessing.pool queue",
    ]


def test_pools_are_ours_and_the_rest_is_the_originals() -> None:
    ours, original = module(OURS), module(ORIGINAL)
    pool = module(OURS, "pool")
    for method in METHODS:
        ctx = ours.get_context(method)
        assert isinstance(ctx, type(original.get_context(method)))
        assert ctx.get_start_method() == method
        assert ctx.Process is original.get_context(method).Process
        assert ctx.get_context() is ctx and ctx.get_context("spawn").get_start_method() == "spawn"
        with ctx.Pool(1) as p:
            assert type(p) is pool.Pool
    with module(OURS, "dummy").Pool(1) as p:
        assert type(p) is pool.ThreadPool
    assert pool.AsyncResult is pool.ApplyResult
    assert issubclass(pool.MapResult, pool.ApplyResult)
    with pytest.raises(ValueError, match="cannot find context"):
        ours.get_context("no such")


@BOTH
def test_the_start_method_is_the_processes(run_script: Any, door: str) -> None:
    out, err = run_script(
        f"""
        import {door} as mp, multiprocessing as original
        def f(_):
            return mp.get_start_method(), mp.current_process().name.partition("PoolWorker")[0]
        if __name__ == "__main__":
            print(mp.get_start_method(allow_none=True))
            mp.set_start_method("spawn")
            print(original.get_start_method())
            try:
                mp.set_start_method("fork")
            except RuntimeError as exc:
                print(exc)
            with mp.Pool(1) as p:
                print(*p.map(f, [0]))
            mp.set_start_method("fork", force=True)
            with mp.Pool(1) as p:
                print(*p.map(f, [0]))
        """
    )
    assert out.split("\n")[:5] == [
        "None",
        "spawn",
        "context has already been set",
        "('spawn', 'Spawn')",
        "('fork', 'Fork')",
    ]
    assert err == ""


# --------------------------------------------------------------------------------------- a life


@BOTH
def test_a_pools_arguments_are_checked(door: str) -> None:
    mp = module(door)
    for bad in (0, -1):
        with pytest.raises(ValueError, match="Number of processes must be at least 1"):
            mp.Pool(bad)
    for bad in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="maxtasksperchild must be a positive int or None"):
            mp.Pool(1, maxtasksperchild=bad)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        mp.Pool(1, initializer=5)
    with pytest.raises(TypeError):
        mp.Pool("2")


@BOTH
@pytest.mark.parametrize("kind", ["Pool", "ThreadPool"])
def test_the_order_of_ending(door: str, kind: str) -> None:
    p = getattr(module(door, "pool"), kind)(1)
    assert "state=RUN pool_size=1" in repr(p)
    assert len(p._pool) == 1
    with pytest.raises(ValueError, match="Pool is still running"):
        p.join()
    with pytest.raises(NotImplementedError):
        pickle.dumps(p)
    result = p.map_async(time.sleep, [0.1] * 3, 1)
    p.close()
    assert "state=CLOSE" in repr(p)
    for call in (p.apply, p.apply_async, p.map, p.starmap, p.map_async, p.imap, p.imap_unordered):
        with pytest.raises(ValueError, match="Pool not running"):
            call(square, [1])
    with pytest.raises(ValueError, match="Pool not running"), p:
        pass
    p.close()
    p.join()
    p.join()
    assert result.get(1) == [None] * 3
    p.terminate()
    p.join()


@BOTH
def test_the_block_terminates(door: str) -> None:
    with module(door).Pool(1) as p:
        p.apply_async(time.sleep, (60,))
        start = time.monotonic()
    assert time.monotonic() - start < 20
    with pytest.raises(ValueError):
        p.map(square, [1])
    p.join()


@BOTH
@pytest.mark.parametrize("kind", ["Pool", "ThreadPool"])
def test_an_unclosed_pool_warns(door: str, kind: str) -> None:
    p = getattr(module(door, "pool"), kind)(1)
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del p
        gc.collect()
    p = getattr(module(door, "pool"), kind)(1)
    p.terminate()
    p.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del p
        gc.collect()


@BOTH
@pytest.mark.parametrize("way", ["imap", "imap_unordered"])
@pytest.mark.parametrize("items", ["list", "generator"])
def test_an_iterators_work_is_done_though_nobody_looks(
    door: str, way: str, items: str, tmp_path: Any
) -> None:
    paths = [str(tmp_path / f"{i}x") for i in range(50)]
    closed = threading.Event()

    def generate() -> Iterator[str]:
        assert closed.wait(20)
        yield from paths

    p = module(door).Pool(2)
    results = getattr(p, way)(touch, paths if items == "list" else generate())
    p.close()
    closed.set()
    p.join()
    assert len(os.listdir(tmp_path)) == 50
    assert list(results) == [None] * 50


@BOTH
def test_an_endless_input_is_not_waited_for(door: str) -> None:
    numbers = itertools.count()
    stop = threading.Event()

    def endless() -> Iterator[int]:
        while not stop.is_set():
            yield next(numbers)
            time.sleep(0.001)

    with module(door).Pool(1) as p:
        results = p.imap(square, endless())
        assert [next(results) for _ in range(3)] == [0, 1, 4]
        stop.set()


@BOTH
@STARTS
def test_workers_are_replaced_after_their_tasks(door: str, method: str) -> None:
    p = module(door).get_context(method).Pool(1, maxtasksperchild=2)
    pids = [p.apply(os.getpid) for _ in range(6)]
    p.close()
    p.join()
    assert len(set(pids)) == 3


# ------------------------------------------------------------- where the original hangs or loses


def die(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@STARTS
def test_a_death_costs_its_task_and_the_pool_heals(method: str) -> None:
    from trireme import WorkerLost

    with module(OURS).get_context(method).Pool(2) as p:
        results = [p.apply_async(die, (i,)) for i in range(6)]
        for i, result in enumerate(results):
            if i == 3:
                with pytest.raises(WorkerLost, match="SIGKILL"):
                    result.get(60)
            else:
                assert result.get(60) == i
        for iterator in (p.imap(die, range(6)), p.imap_unordered(die, range(6))):
            got, lost = [], 0
            while True:
                try:
                    got.append(next(iterator))
                except StopIteration:
                    break
                except WorkerLost:
                    lost += 1
            assert (sorted(got), lost) == ([0, 1, 2, 4, 5], 1)
        with pytest.raises(WorkerLost, match=r"die\(...\)"):
            p.map(die, range(6), 2)
        assert p.map(square, range(9)) == [x * x for x in range(9)]
        assert len(p._pool) == 2


@pytest.mark.parametrize("kind", ["fork", "forkserver", "spawn", "thread"])
def test_an_initializer_that_fails_is_told(kind: str) -> None:
    if kind == "thread":
        p = module(OURS, "pool").ThreadPool(2, fail, (8,))
    else:
        p = module(OURS).get_context(kind).Pool(2, fail, (8,))
    with p:
        for call in (p.map, lambda f, a: p.apply_async(f, (a,)).get(30)):
            with pytest.raises(KeyError, match="8"):
                call(square, range(3))
        with pytest.raises(KeyError, match="8"):
            next(p.imap(square, [1]))


class TwoArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)


def leave() -> None:
    raise SystemExit(3)


def raise_two() -> None:
    raise TwoArguments(1, 2)


def test_exits_and_strange_exceptions_end_their_task() -> None:
    from trireme import RemoteError

    with module(OURS).Pool(1) as p:
        with pytest.raises(RemoteError, match="SystemExit"):
            p.apply_async(leave).get(30)
        with pytest.raises(TwoArguments):
            p.apply_async(raise_two).get(30)
        assert p.apply(square, (2,)) == 4


def test_terminate_ends_what_it_drops() -> None:
    from trireme import WorkerLost

    for p in module(OURS).Pool(1), module(OURS, "pool").ThreadPool(1):
        result = p.map_async(time.sleep, [0.2] * 50, 1)
        called: list[Any] = []
        told = p.apply_async(square, (1,), {}, called.append, called.append)
        p.terminate()
        p.join()
        with pytest.raises(WorkerLost):
            result.get(20)
        with pytest.raises(WorkerLost):
            told.get(20)
        assert [type(x) for x in called] == [WorkerLost]


def test_a_chunk_size_that_would_lose_the_items_is_refused() -> None:
    with module(OURS).Pool(1) as p:
        for size in (0, -1):
            with pytest.raises(ValueError, match="Chunksize must be 1"):
                p.map(square, [1, 2], size)


def test_a_callback_that_fails_does_not_hold_up_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(_: object) -> None:
        raise RuntimeError("bad callback")

    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    with module(OURS).Pool(1) as p:
        assert p.apply_async(square, (2,), {}, bad).get(20) == 4
        seen: list[Any] = []
        assert p.apply_async(square, (3,), {}, seen.append).get(20) == 9
        assert seen == [9]
        p.close()
        p.join()
    assert [str(args.exc_value) for args in told] == ["bad callback"]


def test_submitting_many_tasks_does_not_block() -> None:
    with module(OURS).Pool(1) as p:
        start = time.monotonic()
        results = p.map_async(time.sleep, [60] * 10_000, 1)
        assert time.monotonic() - start < 50
        assert not results.ready()


def test_a_fork_of_the_owner_is_told() -> None:
    with module(OURS).Pool(1) as p:
        pid = os.fork()
        if pid == 0:
            try:
                p.apply_async(square, (1,))
            except RuntimeError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert p.apply(square, (2,)) == 4


def test_a_context_of_ones_own_decides_what_workers_are() -> None:
    ours = module(OURS)

    class Free(ours.context.ForkContext.Process):  # type: ignore[name-defined,misc]
        @property
        def daemon(self) -> bool:
            return False

        @daemon.setter
        def daemon(self, value: bool) -> None:
            pass

    class Context(type(ours.get_context("fork"))):  # type: ignore[misc]
        Process = Free

    with module(OURS, "pool").Pool(1, context=Context()) as p:
        assert p.apply(child_refused) == ""


def nested(n: int) -> list[int]:
    with module(OURS).Pool(1) as p:
        return p.map(square, range(n))  # type: ignore[no-any-return]


@STARTS
def test_a_task_may_open_a_pool(method: str) -> None:
    with module(OURS).get_context(method).Pool(1) as p:
        assert p.map(nested, [3]) == [[0, 1, 4]]


# ----------------------------------------------------------------------------- trireme.multiprocess


def test_multiprocess_sends_results_by_value() -> None:
    mp = module("trireme.multiprocess")
    assert sorted(mp.__all__) == sorted(module(OURS).__all__)
    assert module("trireme.multiprocess", "pool").ThreadPool is module(OURS, "pool").ThreadPool
    assert mp.queues is not module(ORIGINAL, "queues")
    assert mp.connection is module(ORIGINAL, "connection")
    for method in ("fork", "spawn"):
        ctx = mp.get_context(method)
        assert ctx.get_context() is ctx and mp.get_context(method) is ctx
        with ctx.Pool(1) as p:
            assert p.apply(return_lambda)() == 42
            assert p.map(lambda x: x + 1, [1]) == [2]
    with mp.Pool(1) as p:
        assert p.apply(return_lambda)() == 42
