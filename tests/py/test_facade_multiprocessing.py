# SPDX-License-Identifier: BSD-3-Clause
"""trireme.multiprocessing: what must agree with the original is run against both.

Under the original's name nothing may be asked that the original hangs on: a worker's death, an
initializer that fails, an exit in a task.  Those tests are for ours alone.
"""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

ORIGINAL = "multiprocessing"
OURS = "trireme.multiprocessing"
METHODS = ("fork", "forkserver", "spawn")
SUBMODULES = (
    "pool queues managers shared_memory connection synchronize sharedctypes context process dummy "
    "dummy.connection reduction util spawn forkserver heap resource_sharer resource_tracker"
).split()

BOTH = pytest.mark.parametrize("door", [ORIGINAL, OURS])
STARTS = pytest.mark.parametrize("method", METHODS)


def module(name: str, sub: str = "") -> Any:
    return importlib.import_module(f"{name}.{sub}" if sub else name)


def square(x: int) -> int:
    return x * x


def add(x: int, y: int = 0, timeout: int = 0) -> int:
    return x + y + timeout


def fail(x: int) -> int:
    raise KeyError(x)


def fail_on_odd(x: int) -> int:
    if x % 2:
        raise ValueError(x)
    return x


def touch(path: str) -> None:
    with open(path, "w"):
        pass
    if path.endswith("0"):
        raise ValueError(path)


class TwoArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)


class Unpicklable(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Refuses:
    def __reduce__(self) -> Any:
        raise RuntimeError("cannot pickle")


def raise_unpicklable() -> None:
    raise Unpicklable("here")


def return_lock() -> Any:
    return threading.Lock()


def return_lambda() -> Any:
    return lambda: 42


@pytest.fixture(
    params=[f"{door} {way}" for door in (ORIGINAL, OURS) for way in ("fork", "spawn", "thread")],
    scope="module",
)
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One pool of two for the tests that leave it as it was."""
    door, way = request.param.split()
    found = module(door, "pool").ThreadPool(2) if way == "thread" else None
    p = found or module(door).get_context(way).Pool(2)
    p_way = way
    with p:
        p.way = p_way
        yield p
    p.join()


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
def test_every_submodule_has_the_names_of_the_originals(sub: str) -> None:
    ours, original = module(OURS, sub), module(ORIGINAL, sub)
    names = getattr(original, "__all__", [n for n in vars(original) if n[0] != "_"])
    for name in names:
        assert hasattr(ours, name), name
    if sub not in ("pool", "context", "dummy", "queues", "synchronize", "heap", "sharedctypes"):
        assert ours is original


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


# --------------------------------------------------------------------------------------- calls


def test_calls_and_maps(pool: Any) -> None:
    assert pool.apply(square, (5,)) == 25
    assert pool.apply(add, (1,), {"y": 2, "timeout": 3}) == 6
    assert pool.map(square, range(10)) == [x * x for x in range(10)]
    assert pool.map(square, iter(range(10)), chunksize=3) == [x * x for x in range(10)]
    assert pool.map(str.upper, "abc") == ["A", "B", "C"]
    assert pool.map(square, {3: 0, 4: 0}) == [9, 16]
    assert pool.map(square, []) == [] and list(pool.imap(square, [])) == []
    pairs = list(zip(range(9), range(9), strict=True))
    assert pool.starmap(add, pairs) == [x + y for x, y in pairs]
    assert pool.starmap_async(add, pairs, 2).get() == [x + y for x, y in pairs]
    assert pool.map_async(square, range(5)).get(timeout=20) == [0, 1, 4, 9, 16]
    assert list(pool.imap(square, iter(range(100)))) == [x * x for x in range(100)]
    assert list(pool.imap(square, range(100), 7)) == [x * x for x in range(100)]
    assert sorted(pool.imap_unordered(square, range(100))) == [x * x for x in range(100)]
    assert sorted(pool.imap_unordered(square, range(100), 7)) == [x * x for x in range(100)]


def test_a_map_over_an_empty_input_calls_no_callback(pool: Any) -> None:
    called: list[Any] = []
    result = pool.map_async(square, [], 1, called.append, called.append)
    assert result.get(20) == [] and result.ready() and result.successful()
    assert called == []


def test_chunk_sizes_are_checked(pool: Any) -> None:
    for method in (pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="Chunksize must be 1"):
            method(square, [1], 0)
        assert isinstance(method(square, [1], 2), type(x for x in ()))


def test_the_result_of_a_call_that_has_not_ended(pool: Any) -> None:
    result = pool.apply_async(time.sleep, (0.5,))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    assert result.wait(0.01) is None
    assert result.get() is None and result.successful()
    mapped = pool.map_async(time.sleep, [0.3, 0.3], 1)
    with pytest.raises(multiprocessing.TimeoutError):
        mapped.get(timeout=0.01)
    assert not mapped.ready()
    assert mapped.get() == [None, None]
    iterator = pool.imap(time.sleep, [0.3])
    with pytest.raises(multiprocessing.TimeoutError):
        iterator.next(timeout=0.01)
    assert iterator.next(20) is None
    with pytest.raises(StopIteration):
        iterator.next()
    unordered = pool.imap_unordered(time.sleep, [0.3])
    with pytest.raises(multiprocessing.TimeoutError):
        unordered.next(timeout=0.01)
    assert next(unordered) is None
    with pytest.raises(StopIteration):
        next(unordered)


def test_a_tasks_own_timeout_error_is_its_own(pool: Any) -> None:
    def get() -> Any:
        return pool.apply_async(raise_timeout).get(timeout=20)

    with pytest.raises(TimeoutError) as caught:
        get()
    assert type(caught.value) is TimeoutError


def raise_timeout() -> None:
    raise TimeoutError("mine")


def test_callbacks_come_before_get_returns(pool: Any) -> None:
    for _ in range(20):
        seen: list[Any] = []
        assert pool.apply_async(square, (3,), {}, seen.append).get(20) == 9
        assert seen == [9]
        result = pool.apply_async(fail, (1,), {}, None, seen.append)
        with pytest.raises(KeyError):
            result.get(20)
        assert type(seen[1]) is KeyError and not result.successful()
        pool.map_async(square, [1, 2], 1, seen.append, seen.append).wait(20)
        assert seen[2] == [1, 4]
        pool.map_async(fail_on_odd, [1, 2], 1, seen.append, seen.append).wait(20)
        assert type(seen[3]) is ValueError


def test_a_result_is_not_ready_before_its_callback_has_returned(pool: Any) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        begun.set()
        assert go.wait(20)

    result = pool.apply_async(square, (3,), {}, slow)
    assert begun.wait(20)
    assert not result.ready()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    go.set()
    assert result.get(20) == 9


def test_callbacks_may_wait_for_who_submits_and_run_one_by_one(pool: Any) -> None:
    lock = threading.Lock()
    threads: list[Any] = []

    def locked(_: object) -> None:
        with lock:
            threads.append(threading.current_thread())

    with lock:  # whoever submits holds what the callback wants
        results = [pool.apply_async(square, (i,), {}, locked) for i in range(5)]
        time.sleep(0.05)
        results.append(pool.apply_async(square, (5,), {}, locked))
        assert not threads
    for i, result in enumerate(results):
        assert result.get(20) == i * i
    assert len(threads) == 6 and len(set(threads)) == 1
    assert threading.current_thread() not in threads


def test_an_exception_carries_the_workers_traceback(pool: Any) -> None:
    with pytest.raises(KeyError) as caught:
        pool.apply(fail, (7,))
    assert caught.value.args == (7,)
    if pool.way == "thread":
        assert caught.value.__cause__ is None
        return
    cause: Any = caught.value.__cause__
    assert type(cause) is multiprocessing.pool.RemoteTraceback  # type: ignore[attr-defined]
    assert "raise KeyError(x)" in cause.tb and cause.tb.startswith('\n"""\nTraceback')
    for failing in (pool.map, pool.imap, pool.imap_unordered):
        with pytest.raises(KeyError) as caught:
            list(failing(fail, [7]))
        assert type(caught.value.__cause__) is type(cause)


def test_a_map_that_fails_runs_the_other_chunks(pool: Any, tmp_path: Any) -> None:
    paths = [str(tmp_path / str(i)) for i in range(20)]
    with pytest.raises(ValueError):
        pool.map(touch, paths, 1)
    assert len(os.listdir(tmp_path)) == 20


def test_an_iterator_goes_on_behind_a_failure(pool: Any) -> None:
    iterator = pool.imap(fail_on_odd, range(4))
    assert next(iterator) == 0
    with pytest.raises(ValueError):
        next(iterator)
    assert next(iterator) == 2
    with pytest.raises(ValueError):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


class Said(Exception):
    pass


def saying(total: int, when: int) -> Iterator[int]:
    for i in range(total):
        if i == when:
            raise Said
        yield i


def test_an_input_that_fails(pool: Any) -> None:
    with pytest.raises(Said) as caught:
        pool.map(square, saying(5, 2))
    assert caught.value.__cause__ is None
    iterator = pool.imap(square, saying(5, 2))
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(Said):
        next(iterator)
    # In chunks, what was gathered for the chunk that failed goes with it.
    iterator = pool.imap(square, saying(9, 3), 2)
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(Said):
        next(iterator)
    got = []
    with pytest.raises(Said):
        for value in pool.imap_unordered(square, saying(5, 2)):
            got.append(value)
    assert set(got) <= {0, 1}

    class Special:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            raise Said

    with pytest.raises(Said):
        pool.map_async(square, Special(), 1).get(20)


def test_what_cannot_be_called_fails_where_the_result_is_asked_for(pool: Any) -> None:
    result = pool.apply_async(square, 5)
    with pytest.raises(TypeError):
        result.get(20)
    result = pool.apply_async(5, (5,))
    with pytest.raises(TypeError):
        result.get(20)
    assert pool.apply(square, (2,)) == 4


def test_arguments_that_cannot_be_pickled(pool: Any) -> None:
    if pool.way == "thread":
        pytest.skip("threads pickle nothing")
    with pytest.raises(RuntimeError, match="cannot pickle"):
        pool.map(square, [Refuses()] * 3)
    with pytest.raises(TypeError):
        pool.apply(square, (threading.Lock(),))
    assert pool.apply(square, (2,)) == 4


def test_results_that_cannot_be_pickled(pool: Any) -> None:
    if pool.way == "thread":
        pytest.skip("threads pickle nothing")
    from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

    tasks = (return_lock, "lock"), (return_lambda, "lambda"), (raise_unpicklable, None)
    for task, text in tasks:
        seen: list[Any] = []
        result = pool.apply_async(task, error_callback=seen.append)
        with pytest.raises(MaybeEncodingError, match=text) as caught:
            result.get(20)
        assert isinstance(caught.value.exc, str) and (text or "") in caught.value.value
        assert seen == [caught.value]


def test_get_gives_the_same_object_each_time(pool: Any) -> None:
    result = pool.apply_async(fail, (1,))
    errors = []
    for _ in range(2):
        with pytest.raises(KeyError) as caught:
            result.get(20)
        errors.append(caught.value)
    assert errors[0] is errors[1]
    mapped = pool.map_async(square, [1, 2])
    assert mapped.get(20) is mapped.get(20)


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


# --------------------------------------------------------------------------------------- workers


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


def child_refused() -> str:
    try:
        multiprocessing.Process(target=square, args=(1,)).start()
    except AssertionError as exc:
        return str(exc)
    return ""


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
    with pytest.raises(RuntimeError, match="fork context"):
        ctx.Pool(1, take, (module(ORIGINAL).get_context("fork").Lock(),))
    with pytest.raises(TypeError, match=r"Pipe\(duplex=False\)"):
        ctx.Pool(1, take, (ctx.Pipe()[0],))


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
        assert isinstance(called[0], WorkerLost)


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
