# SPDX-License-Identifier: BSD-3-Clause
"""Queues of trireme.multiprocessing: what agrees with the original is run against both.

Under the original's name nothing may be asked that the original hangs on or loses: killed writers
and readers, a process that puts much and ends, an object that cannot be pickled.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import queue
import select
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest
from conftest import original_keeps_forks_locks, until
from trireme import multiprocess
from trireme import multiprocessing as ours

OURS = "trireme.multiprocessing"
BOTH = pytest.mark.parametrize("door", ["multiprocessing", OURS])
STARTS = pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
KINDS = pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
PATIENCE = 30.0

VALUES = [
    None,
    True,
    0,
    -(2**70),
    1.5,
    "ä" * 300,
    b"\0" * 5000,
    b"x" * 3_000_000,
    (1, ("a", [2.0])),
    {"k": [1, 2], 3: None},
    {1, 2},
    Path("/x"),
    bytearray(b"abc"),
    list(range(100_000)),
    OSError(2, "gone"),
]


def door_to(name: str) -> Any:
    return importlib.import_module(name)


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (repr(a) == repr(b) if isinstance(a, Exception) else a == b)


# Targets of processes --------------------------------------------------------------------------


def put_all(q: Any, values: list[Any]) -> None:
    for value in values:
        q.put(value)


def echo(q: Any, back: Any) -> None:
    for value in iter(q.get, "end"):
        back.put(value)


def put_numbered(q: Any, who: int, n: int) -> None:
    for i in range(n):
        q.put((who, i))


def put_for_ever(q: Any, size: int) -> None:
    data = b"%" * size
    while True:
        q.put(data)


def get_for_ever(q: Any) -> None:
    while True:
        q.get()


def work(q: Any) -> None:
    for _ in iter(q.get, None):
        time.sleep(0.001)
        q.task_done()
    q.task_done()


def put_after(q: Any, event: Any) -> None:
    event.wait(PATIENCE)
    q.put("late")


def run(ctx: Any, target: Callable[..., Any], *args: Any) -> Any:
    process = ctx.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def ends(process: Any) -> None:
    process.join(PATIENCE)
    assert process.exitcode == 0


def wait_until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


# What is as in the original --------------------------------------------------------------------


@BOTH
@STARTS
@KINDS
def test_objects_come_back_equal_and_in_order(door: str, method: str, kind: str) -> None:
    ctx = door_to(door).get_context(method)
    there, back = getattr(ctx, kind)(), getattr(ctx, kind)()
    process = run(ctx, echo, there, back)
    for value in VALUES:
        there.put(value)
        assert same(back.get(), value)
    if kind != "SimpleQueue" or door == OURS:  # the original's blocks when its pipes are full
        put_all(there, VALUES)
        assert all(same(back.get(), value) for value in VALUES)
    there.put("end")
    ends(process)


@BOTH
def test_full_and_empty_are_told_at_once_or_in_time(door: str) -> None:
    q = door_to(door).Queue(2)
    assert q.empty() and not q.full() and q.qsize() == 0
    q.put(1)
    q.put(2, True, None)
    assert q.full() and q.qsize() == 2
    for arguments in ((False,), (False, 9.0), (True, 0.05), (True, -1)):
        with pytest.raises(queue.Full):
            q.put(3, *arguments)
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    wait_until(lambda: not q.empty())
    assert q.get(True, PATIENCE) == 1 and q.get(timeout=PATIENCE) == 2
    for arguments in ((False,), (False, 9.0), (True, 0.05), (True, -1)):
        with pytest.raises(queue.Empty):
            q.get(*arguments)
    with pytest.raises(queue.Empty):
        q.get_nowait()
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.1)
    assert time.monotonic() - start >= 0.1
    with pytest.raises(TypeError):
        q.get(timeout="x")
    q.close()
    q.join_thread()


@BOTH
def test_a_put_that_waits_for_room_gets_it(door: str) -> None:
    ctx = door_to(door).get_context("fork")
    q = ctx.Queue(1)
    q.put(0)
    process = run(ctx, put_all, q, [1, 2, 3])
    assert [q.get(timeout=PATIENCE) for _ in range(4)] == [0, 1, 2, 3]
    ends(process)


@BOTH
def test_closed_queues_refuse(door: str) -> None:
    module = door_to(door)
    for q in (module.Queue(), module.JoinableQueue()):
        with pytest.raises(AssertionError):
            q.join_thread()
        q.close()
        q.join_thread()
        q.cancel_join_thread()
        assert q.empty()
        with pytest.raises(ValueError, match="is closed"):
            q.put(1)
        with pytest.raises(ValueError, match="is closed"):
            q.get()
    q = module.Queue()
    q.put(1)
    q.close()
    q.join_thread()
    with pytest.raises(OSError, match="is closed"):
        q.empty()
    simple = module.SimpleQueue()
    simple.close()
    simple.close()
    assert simple._reader.closed and simple._writer.closed
    for call in (simple.empty, simple.get, lambda: simple.put(1)):
        with pytest.raises(OSError, match="is closed"):
            call()


@BOTH
def test_join_waits_for_every_task(door: str) -> None:
    ctx = door_to(door).get_context("fork")
    q = ctx.JoinableQueue()
    q.join()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()
    processes = [run(ctx, work, q) for _ in range(3)]
    for i in range(40):
        q.put(i)
    q.join()
    assert q.empty()
    for _ in processes:
        q.put(None)
    q.join()
    for process in processes:
        ends(process)
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


@BOTH
@KINDS
def test_only_a_process_that_starts_may_get_a_queue(door: str, kind: str) -> None:
    module = door_to(door)
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(getattr(module.get_context("spawn"), kind)())
    if door != OURS:
        original_keeps_forks_locks()
    ctx = module.get_context("spawn")
    with pytest.raises(RuntimeError, match="A SemLock created in a fork context"):
        run(ctx, echo, getattr(module.get_context("fork"), kind)(), None)


@BOTH
def test_a_queue_closed_before_a_fork_is_open_after_it(door: str) -> None:
    ctx = door_to(door).get_context("fork")
    q, back = ctx.Queue(), ctx.SimpleQueue()
    q.close()
    ends(run(ctx, lambda: back.put(q._closed)))
    assert back.get() is False


@BOTH
def test_generic_alias_and_names(door: str) -> None:
    queues = door_to(f"{door}.queues")
    assert set(queues.__all__) == {"Queue", "JoinableQueue", "SimpleQueue"}
    assert queues.Empty is queue.Empty and queues.Full is queue.Full
    if door == OURS:
        for name in queues.__all__:
            assert getattr(queues, name)[int].__args__ == (int,)
    q = queues.Queue(3, ctx=door_to(door).get_context())
    assert q._maxsize == 3


@BOTH
def test_connection_wait_takes_the_reader(door: str) -> None:
    ctx = door_to(door).get_context("fork")
    a, b = ctx.SimpleQueue(), ctx.Queue()
    ready = ctx.Event()
    assert connection.wait([a._reader, b._reader], 0) == []
    process = run(ctx, put_after, b, ready)
    ready.set()
    assert connection.wait([a._reader, b._reader], PATIENCE) == [b._reader]
    assert b._reader.poll() and b.get(timeout=PATIENCE) == "late"
    assert connection.wait([a._reader, b._reader], 0) == []
    ends(process)
    a._writer.send([1])
    a._writer.send_bytes(pickle.dumps("two"))
    assert a._reader.recv() == [1]
    assert pickle.loads(a._reader.recv_bytes()) == "two"


@BOTH
@STARTS
def test_each_writers_messages_keep_their_order(door: str, method: str) -> None:
    ctx = door_to(door).get_context(method)
    q = ctx.Queue()
    processes = [run(ctx, put_numbered, q, who, 500) for who in range(3)]
    seen: dict[int, int] = dict.fromkeys(range(3), -1)
    for _ in range(1500):
        who, i = q.get(timeout=PATIENCE)
        assert i == seen[who] + 1
        seen[who] = i
    assert seen == dict.fromkeys(range(3), 499) and q.empty()
    for process in processes:
        ends(process)


@BOTH
def test_arrays_arrive_equal_and_writable(door: str) -> None:
    numpy = pytest.importorskip("numpy")
    ctx = door_to(door).get_context("fork")
    there, back = ctx.Queue(), ctx.Queue()
    process = run(ctx, echo, there, back)
    readonly = numpy.arange(50_000.0)
    readonly.flags.writeable = False
    for array in (
        numpy.arange(10),
        numpy.arange(200_000.0),
        numpy.asfortranarray(numpy.arange(40_000.0).reshape(200, 200)),
        numpy.arange(100_000)[::2],
        numpy.zeros(0),
        readonly,
    ):
        there.put({"a": array, "b": [array, 1]})
        got = back.get(timeout=PATIENCE)
        assert got["a"] is got["b"][0] and got["b"][1] == 1
        assert got["a"].dtype == array.dtype and numpy.array_equal(got["a"], array)
        expected = pickle.loads(pickle.dumps(array)).flags.writeable
        assert got["a"].flags.writeable == expected
        if expected:
            got["a"][:1] = 1
    there.put("end")
    ends(process)


# What is better --------------------------------------------------------------------------------


@STARTS
def test_a_process_that_puts_much_ends_and_its_messages_stay(method: str) -> None:
    ctx = ours.get_context(method)
    q = ctx.Queue()
    ends(run(ctx, put_all, q, [b"x" * 1_000_000] * 20))
    assert q.qsize() == 20
    assert all(len(q.get_nowait()) == 1_000_000 for _ in range(20))


def test_what_does_not_pickle_raises_in_put_and_leaves_nothing() -> None:
    q = ours.Queue(1)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        q.put(lambda: None)
    assert q.empty() and q.qsize() == 0
    q.put_nowait(1)
    assert q.get(timeout=PATIENCE) == 1


def test_a_subclass_hears_of_what_does_not_pickle() -> None:
    told = []

    class Safe(door_to(f"{OURS}.queues").Queue):  # type: ignore[misc]
        @staticmethod
        def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
            told.append((e, obj))

    q = Safe(ctx=ours.get_context())
    q.put(threading.Lock())
    q.put(1)
    assert isinstance(told[0][0], TypeError) and q.get(timeout=PATIENCE) == 1


@pytest.mark.parametrize("size", [8, 1_000_000])
def test_killed_writers_damage_nothing(size: int) -> None:
    ctx = ours.get_context("fork")
    q = ctx.Queue()
    for i in range(15):
        process = run(ctx, put_for_ever, q, size)
        first = q.get(timeout=PATIENCE)
        time.sleep(i % 4 / 1000)  # so that each is killed somewhere else
        process.kill()
        process.join(PATIENCE)
        q.put("mark")
        for value in iter(lambda: q.get(timeout=PATIENCE), "mark"):
            assert value == first


@pytest.mark.parametrize("size", [8, 1_000_000])
def test_killed_readers_damage_nothing(size: int) -> None:
    ctx = ours.get_context("fork")
    q = ctx.Queue()
    for i in range(15):
        process = run(ctx, get_for_ever, q)
        for _ in range(8):
            q.put(b"%" * size)
        time.sleep(i % 4 / 1000)
        process.kill()
        process.join(PATIENCE)
        q.put("mark")
        for value in iter(lambda: q.get(timeout=PATIENCE), "mark"):
            assert value == b"%" * size


def test_a_reader_killed_while_it_waits_is_not_missed() -> None:
    ctx = ours.get_context("fork")
    q, back = ctx.Queue(), ctx.Queue()
    doomed = run(ctx, get_for_ever, q)
    heir = run(ctx, echo, q, back)
    time.sleep(0.2)  # both wait; nothing depends on it
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.join(PATIENCE)
    q.put("a")
    assert back.get(timeout=PATIENCE) == "a"
    q.put("end")
    ends(heir)


@pytest.mark.parametrize("call", ["get", "put", "join"])
def test_ctrl_c_ends_a_wait(call: str) -> None:
    q = ours.JoinableQueue(1)
    if call != "get":
        q.put(1)
    wait = {"get": q.get, "put": lambda: q.put(2), "join": q.join}[call]
    about_to = threading.Event()

    def interrupt() -> None:
        about_to.wait(PATIENCE)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        about_to.set()
        wait()
    assert time.monotonic() - start < PATIENCE
    thread.join()
    if call != "get":
        assert q.get(timeout=PATIENCE) == 1
    q.put(3)
    assert q.get(timeout=PATIENCE) == 3


def test_waiting_costs_no_time() -> None:
    q = ours.Queue()
    for i in range(50):  # quick ones first, after which a reader would like to spin
        q.put(i)
        q.get()
    before = time.process_time()
    with pytest.raises(queue.Empty):
        q.get(timeout=1.0)
    assert time.process_time() - before < 0.1


def memory_of(q: Any) -> int:
    fd, _ = q._box.fds()
    return os.fstat(fd).st_blocks * 512


def test_memory_comes_back_and_nothing_has_a_name() -> None:
    gc.collect()
    fds = len(os.listdir("/proc/self/fd"))
    named = Path("/proc/self/maps").read_text().count("/dev/shm")  # of other tests
    q = ours.Queue()
    for _ in range(64):
        q.put(b"x" * 1_000_000)
    assert memory_of(q) >= 64_000_000
    for _ in range(64):
        q.get()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.5)
    assert memory_of(q) < 10_000_000
    maps = Path("/proc/self/maps").read_text()
    assert "memfd:trireme" in maps and maps.count("/dev/shm") <= named
    q.close()
    del q
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= fds


def test_views_of_a_message_keep_its_memory() -> None:
    numpy = pytest.importorskip("numpy")
    q = ours.Queue()
    arrays = []
    for i in range(5):
        q.put([numpy.full(100_000, float(i)), numpy.full(100_000, -float(i))])
        arrays.append(q.get(timeout=PATIENCE)[1])
    del q
    gc.collect()
    assert [(a[0], a[-1], a.sum()) for a in arrays] == [(-i, -i, -i * 100_000) for i in range(5)]


def test_nonsense_in_shared_memory_is_an_error() -> None:
    q = ours.Queue()
    for data in (b"", b"\xff" * 40, b"garbage"):
        q._writer.send_bytes(data)
        with pytest.raises((EOFError, pickle.UnpicklingError)):
            q.get(timeout=PATIENCE)
    q.put(1)
    assert q.get(timeout=PATIENCE) == 1


def test_a_selector_sees_a_message_from_before_and_after() -> None:
    q = ours.Queue()
    q.put(1)
    fd = q._reader.fileno()
    assert select.select([fd], [], [], 0)[0]
    q.put(2)
    q.get()
    assert select.select([fd], [], [], 0)[0]
    q.get()
    assert not select.select([fd], [], [], 0)[0]


@STARTS
def test_queues_reach_the_pools_workers(method: str) -> None:
    ctx = ours.get_context(method)
    q, simple = ctx.Queue(), ctx.SimpleQueue()
    with ctx.Pool(2, initializer=put_both, initargs=(q, simple)) as pool:
        assert pool.map(abs, [-1, 2]) == [1, 2]
        assert {q.get(timeout=PATIENCE) for _ in range(2)} == {"q"}
        assert simple.get() == simple.get() == "s"


def put_both(q: Any, simple: Any) -> None:
    q.put("q")
    simple.put("s")


def test_the_originals_executor_runs_with_our_context() -> None:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2, mp_context=ours.get_context("fork")) as executor:
        assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


@STARTS
def test_multiprocess_sends_functions_by_value(method: str) -> None:
    ctx = multiprocess.get_context(method)
    there, back = ctx.Queue(), ctx.SimpleQueue()
    process = run(ctx, echo, there, back)
    offset = 3
    there.put(lambda x: x + offset)
    assert back.get()(4) == 7
    there.put("end")
    ends(process)


def test_who_holds_the_readers_lock_receives_what_it_has_polled() -> None:
    """The original's Pool ends so: it empties its queue under the lock, beside its workers."""
    queue = ours.SimpleQueue()
    queue.put(1)
    queue.put(2)
    taken: list[int] = []
    with queue._rlock:
        assert queue._reader.poll()
        other = threading.Thread(target=lambda: taken.extend(iter(queue.get, 3)), daemon=True)
        other.start()
        until(queue.empty)
        assert queue._reader.recv() == 1
        queue.put(3)
        other.join(20)
        assert taken == [2]
        assert not queue._reader.poll()
    queue.put(4)
    with queue._rlock:
        assert queue._reader.poll(5)
        assert queue.empty()  # it is kept for recv()
    assert queue.get() == 4  # what was polled and not received is everybody's again


def test_the_originals_pool_runs_with_our_context() -> None:
    from multiprocessing import pool

    with pool.Pool(2, context=ours.get_context("fork")) as p:
        assert p.map(abs, range(-5, 0)) == [5, 4, 3, 2, 1]
