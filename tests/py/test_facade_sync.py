# SPDX-License-Identifier: BSD-3-Clause
"""Locks and shared values of trireme.multiprocessing.

What must agree with the original is run against both.  Nothing that the original hangs on is asked
of it: a killed holder, a killed waiter.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from conftest import ends_with, original_keeps_forks_locks

ORIGINAL = "multiprocessing"
OURS = "trireme.multiprocessing"
BOTH = pytest.mark.parametrize("door", [ORIGINAL, OURS])
STARTS = pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
PATIENCE = 60.0  # far more than anything here takes; only a hang comes near


def context(door: str, method: str = "fork") -> Any:
    return importlib.import_module(door).get_context(method)


def ours(method: str = "fork") -> Any:
    return context(OURS, method)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def until(true: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def ended(process: Any, code: int = 0) -> None:
    process.join(PATIENCE)
    assert process.exitcode == code


# ------------------------------------------------------------------------------- one process


@BOTH
def test_a_lock_is_taken_once_and_given_back_once(door: str) -> None:
    lock = context(door).Lock()
    assert repr(lock) == "<Lock(owner=None)>"
    assert lock.acquire() is True
    assert repr(lock) == "<Lock(owner=MainProcess)>"
    assert lock.acquire(False) is False
    assert lock.acquire(block=False, timeout=5) is False
    assert lock.acquire(True, 0.01) is False
    assert lock.acquire(timeout=-1) is False
    assert lock.release() is None
    with pytest.raises(ValueError):
        lock.release()
    with lock as entered:
        assert entered is True
        if hasattr(lock, "locked"):
            assert lock.locked()
    with pytest.raises(TypeError):
        lock.acquire(True, None, 1)
    with pytest.raises(TypeError):
        lock.acquire(blocking=False)


@BOTH
def test_another_thread_may_release_a_lock_but_not_a_recursive_one(door: str) -> None:
    ctx = context(door)
    lock, rlock = ctx.Lock(), ctx.RLock()
    failures: list[BaseException] = []
    seen: list[str] = []

    def other() -> None:
        seen.extend((repr(lock), repr(rlock)))
        lock.release()
        try:
            rlock.release()
        except BaseException as error:
            failures.append(error)
        assert rlock.acquire(False) is False

    lock.acquire()
    rlock.acquire()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join(PATIENCE)
    assert lock.acquire(False)
    assert [type(f) for f in failures] == [AssertionError]
    assert seen == ["<Lock(owner=SomeOtherThread)>", "<RLock(SomeOtherThread, nonzero)>"]


@BOTH
def test_a_recursive_lock_counts(door: str) -> None:
    lock = context(door).RLock()
    assert lock.acquire() and lock.acquire() and lock.acquire()
    assert repr(lock) == "<RLock(MainProcess, 3)>"
    assert lock._semlock._count() == 3 and lock._semlock._is_mine()
    for _ in range(3):
        lock.release()
    with pytest.raises(AssertionError):
        lock.release()
    assert repr(lock) == "<RLock(None, 0)>"


@BOTH
def test_semaphores_count_and_the_bounded_one_has_a_limit(door: str) -> None:
    ctx = context(door)
    free, bounded = ctx.Semaphore(2), ctx.BoundedSemaphore(1)
    free.release()
    assert free.get_value() == 3 and repr(free) == "<Semaphore(value=3)>"
    assert repr(bounded) == "<BoundedSemaphore(value=1, maxvalue=1)>"
    with pytest.raises(ValueError):
        bounded.release()
    with bounded:
        assert bounded.get_value() == 0 and not bounded.acquire(timeout=0.01)
    for _ in range(3):
        assert free.acquire(False)
    assert free.acquire(False) is False
    with pytest.raises(OSError):
        ctx.Semaphore(-1)


@BOTH
def test_an_event_is_a_flag(door: str) -> None:
    event = context(door).Event()
    assert event.wait(0.01) is False and event.wait(0) is False and not event.is_set()
    assert "unset" in repr(event)
    event.set()
    event.set()
    assert event.wait() is True and event.wait(-1) is True and event.is_set()
    event.clear()
    assert not event.is_set()


@BOTH
def test_a_condition_asks_for_its_lock(door: str) -> None:
    ctx = context(door)
    for condition in (ctx.Condition(), ctx.Condition(ctx.Lock()), ctx.Condition(lock=ctx.RLock())):
        for call in (condition.wait, condition.notify, condition.notify_all):
            with pytest.raises(AssertionError):
                call()
        with condition:
            assert condition.wait(0.01) is False
            condition.notify(5)
            assert condition.wait_for(lambda: 7) == 7
            assert condition.wait_for(lambda: 0, timeout=0.01) == 0
        assert repr(condition).startswith("<Condition(<") and repr(condition).endswith(", 0)>")


@BOTH
def test_pickling_is_for_spawning_only(door: str) -> None:
    ctx = context(door, "spawn")
    made = (
        ctx.Lock(), ctx.RLock(), ctx.Semaphore(), ctx.BoundedSemaphore(), ctx.Event(),
        ctx.Condition(), ctx.Value("i"), ctx.Array("i", 3), ctx.RawValue("i"),
    )  # fmt: skip
    for one in made:
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            pickle.dumps(one)
        # Multiprocessing's own pickler refuses, too.
        with pytest.raises(RuntimeError):
            importlib.import_module("multiprocessing.reduction").ForkingPickler.dumps(one)


@BOTH
def test_a_lock_made_for_forks_is_not_sent_to_a_spawned_process(door: str) -> None:
    if door != OURS:
        original_keeps_forks_locks()
    for make in ("Lock", "Event", "Condition"):
        thing = getattr(context(door, "fork"), make)()
        with pytest.raises(RuntimeError, match="fork context"):
            context(door, "spawn").Process(target=print, args=(thing,)).start()


def test_our_classes_are_the_originals_too() -> None:
    original = importlib.import_module("multiprocessing.synchronize")
    ctx = ours()
    for name, args in (
        ("Lock", ()), ("RLock", ()), ("Semaphore", ()), ("BoundedSemaphore", (3,)),
        ("Event", ()), ("Condition", ()), ("Barrier", (1,)),
    ):  # fmt: skip
        made = getattr(ctx, name)(*args)
        assert isinstance(made, getattr(original, name))
        assert type(made).__module__ == "trireme.multiprocessing.synchronize"
        assert type(made).__name__ == name


# ------------------------------------------------------------------------------- processes


def add(lock: Any, value: Any, times: int) -> None:
    for _ in range(times):
        with lock:
            value.value += 1


@BOTH
@STARTS
def test_processes_exclude_each_other(door: str, method: str) -> None:
    ctx = context(door, method)
    for lock in (ctx.Lock(), ctx.RLock(), ctx.Semaphore(1), ctx.Condition()):
        value = ctx.Value("i", 0, lock=False)
        workers = [ctx.Process(target=add, args=(lock, value, 300)) for _ in range(2)]
        for worker in workers:
            worker.start()
        add(lock, value, 300)
        for worker in workers:
            ended(worker)
        assert value.value == 900


def release_here(lock: Any) -> None:
    lock.release()


def fail_to_release(rlock: Any, result: Any) -> None:
    try:
        rlock.release()
    except AssertionError:
        result.value = 1


@BOTH
@STARTS
def test_another_process_may_release_a_lock_but_not_a_recursive_one(door: str, method: str) -> None:
    ctx = context(door, method)
    lock, rlock, result = ctx.Lock(), ctx.RLock(), ctx.Value("i", 0)
    lock.acquire()
    process = ctx.Process(target=release_here, args=(lock,))
    process.start()
    assert lock.acquire(timeout=PATIENCE)
    ended(process)
    rlock.acquire()
    process = ctx.Process(target=fail_to_release, args=(rlock, result))
    process.start()
    ended(process)
    assert result.value == 1
    rlock.release()


def sleep_in_condition(condition: Any, woken: Any) -> None:
    with condition:
        if condition.wait(PATIENCE):
            woken.value += 1


@BOTH
@STARTS
def test_notify_wakes_exactly_as_many(door: str, method: str) -> None:
    ctx = context(door, method)
    condition, woken = ctx.Condition(), ctx.Value("i", 0, lock=False)
    workers = [ctx.Process(target=sleep_in_condition, args=(condition, woken)) for _ in range(3)]
    for worker in workers:
        worker.start()
    until(lambda: condition._sleeping_count.get_value() == 3)
    with condition:
        condition.notify(2)
    until(lambda: woken.value == 2)
    time.sleep(0.05)  # a third, were it woken, would have the time to say so
    assert woken.value == 2
    with condition:
        condition.notify_all()
    for worker in workers:
        ended(worker)
    assert woken.value == 3


def meet(barrier: Any, value: Any) -> None:
    place = barrier.wait(PATIENCE)
    with value.get_lock():
        value.value += 1 << (4 * place)


@BOTH
@STARTS
def test_a_barrier_lets_all_go_at_once(door: str, method: str) -> None:
    ctx = context(door, method)
    barrier, value = ctx.Barrier(3), ctx.Value("i", 0)
    workers = [ctx.Process(target=meet, args=(barrier, value)) for _ in range(2)]
    for worker in workers:
        worker.start()
    meet(barrier, value)
    for worker in workers:
        ended(worker)
    assert value.value == 0x111 and barrier.n_waiting == 0 and not barrier.broken
    barrier.abort()
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0.01)


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_double), ("n", ctypes.c_int)]


def change(number: Any, array: Any, text: Any, point: Any, raw: Any, plain: Any) -> None:
    with number.get_lock():
        number.value *= 2
    for i in range(len(array)):
        array[i] += 1
    text.value = b"bye"
    point.x, point.n = point.x * 2, 9
    raw.value = 2.5
    plain[1] = 77


@BOTH
@STARTS
def test_values_and_arrays_are_shared(door: str, method: str) -> None:
    ctx = context(door, method)
    number, array = ctx.Value("q", 21), ctx.Array("d", [1.0, 2.0])
    text, point = ctx.Array("c", 8), ctx.Value(Point, 1.5, 2, lock=ctx.Lock())
    raw, plain = ctx.RawValue(ctypes.c_double, 1.0), ctx.Array("i", 3, lock=False)
    process = ctx.Process(target=change, args=(number, array, text, point, raw, plain))
    process.start()
    ended(process)
    assert number.value == 42 and array[:] == [2.0, 3.0] and text.value == b"bye"
    assert (point.x, point.n, raw.value, plain[:]) == (3.0, 9, 2.5, [0, 77, 0])
    with pytest.raises(AttributeError):
        ctx.Value("i", lock=5)
    for make in ctx.Value, ctx.RawValue, ctx.Array, ctx.RawArray:
        for given in 0, []:
            with pytest.raises(TypeError) as bad:
                make("x", given)
            assert door == "multiprocessing" or "bad typecode 'x'" in str(bad.value)
    copied = importlib.import_module(f"{door}.sharedctypes").copy(raw)
    copied.value = 4.0
    assert raw.value == 2.5


initial: dict[str, Any] = {}


def initialize(lock: Any, event: Any, value: Any) -> None:
    initial.update(lock=lock, event=event, value=value)


def use_initial(_: int) -> bool:
    with initial["lock"]:
        initial["value"].value += 1
    return bool(initial["event"].is_set())


@STARTS
def test_pools_take_them_as_initargs(method: str) -> None:
    ctx = ours(method)
    lock, event, value = ctx.Lock(), ctx.Event(), ctx.Value("i", 0)
    event.set()
    with ctx.Pool(2, initialize, (lock, event, value)) as pool:
        assert pool.map(use_initial, range(50), chunksize=1) == [True] * 50
    assert value.value == 50


def pass_on(ctx: Any, lock: Any, more: Any, event: Any) -> None:
    process = ctx.Process(target=second, args=(lock, more, event))
    process.start()
    process.join(PATIENCE)
    sys.exit(process.exitcode)


def second(lock: Any, more: Any, event: Any) -> None:
    event.set()
    assert lock.acquire(timeout=PATIENCE)
    more.release()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_child_can_pass_them_on(method: str) -> None:
    ctx = ours(method)
    lock, more, event = ctx.Lock(), ctx.Semaphore(0), ctx.Event()
    lock.acquire()
    process = ctx.Process(target=pass_on, args=(ctx, lock, more, event))
    process.start()
    assert event.wait(PATIENCE)
    lock.release()
    assert more.acquire(timeout=PATIENCE)
    ended(process)


# ------------------------------------------------------------------------------- deaths


def hold(lock: Any, ready: Any) -> None:
    lock.acquire()
    ready.set()
    signal.pause()


@STARTS
@pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition"])
def test_a_killed_holders_lock_is_taken_over(method: str, kind: str) -> None:
    ctx = ours(method)
    lock, ready = getattr(ctx, kind)(), ctx.Event()
    process = ctx.Process(target=hold, args=(lock, ready))
    process.start()
    assert ready.wait(PATIENCE)
    assert lock.acquire(timeout=0.1) is False  # it lives
    os.kill(process.pid, signal.SIGKILL)
    # Nobody reaps it yet: a zombie's lock is free as well.
    assert lock.acquire(timeout=PATIENCE) is True
    lock.release()
    ended(process, -signal.SIGKILL)


@STARTS
def test_a_killed_waiter_swallows_no_notification(method: str) -> None:
    ctx = ours(method)
    condition, woken = ctx.Condition(), ctx.Value("i", 0, lock=False)
    workers = []
    for n in range(3):
        workers.append(ctx.Process(target=sleep_in_condition, args=(condition, woken)))
        workers[-1].start()
        until(lambda n=n: condition._sleeping_count.get_value() == n + 1)
    for victim in workers[:2]:  # they would have been the first
        os.kill(victim.pid, signal.SIGKILL)
        ended(victim, -signal.SIGKILL)
    assert repr(condition).endswith(", 1)>")
    with condition:
        condition.notify(1)
    ended(workers[2])
    assert woken.value == 1
    with condition:
        condition.notify_all()


def wait_for_event(event: Any) -> None:
    sys.exit(0 if event.wait(PATIENCE) else 1)


@STARTS
def test_a_set_that_is_cleared_at_once_wakes_all_the_same(method: str) -> None:
    ctx = ours(method)
    event = ctx.Event()
    workers = [ctx.Process(target=wait_for_event, args=(event,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        until(lambda pid=worker.pid: asleep_in_futex(pid) or worker.exitcode is not None)
    event.set()
    event.clear()
    for worker in workers:
        ended(worker)


def asleep_in_futex(pid: int) -> bool:
    """Does its main thread sleep in futex()?  (Where /proc tells system calls.)"""
    try:
        with open(f"/proc/{pid}/syscall") as file:
            return file.read().split()[0] == "202"
    except OSError:
        pytest.skip("/proc/PID/syscall cannot be read here")


INTERRUPTED = """
import os, signal, sys, threading, time
import trireme.multiprocessing as mp

lock, condition, event, semaphore = mp.Lock(), mp.Condition(), mp.Event(), mp.Semaphore(0)
lock.acquire()
condition.acquire()
waits = dict(
    lock=lock.acquire, timed=lambda: lock.acquire(timeout=50), condition=condition.wait,
    event=event.wait, semaphore=semaphore.acquire, enter=lock.__enter__,
)

def interrupt(about_to):
    about_to.wait(30)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

for name, wait in waits.items():
    about_to = threading.Event()
    thread = threading.Thread(target=interrupt, args=(about_to,))
    thread.start()
    try:
        about_to.set()
        wait()
    except KeyboardInterrupt:
        print(name, flush=True)
    thread.join()
assert condition._lock._semlock._is_mine()  # taken again before the exception went on
"""


def test_ctrl_c_ends_every_wait(tmp_path: Any) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.split() == "lock timed condition event semaphore enter".split(), done.stderr
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------- resources


def test_thousands_of_locks_need_few_descriptors() -> None:
    ctx = ours()
    before = open_files()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 40, limits[1]))
    try:
        locks = [ctx.Lock() for _ in range(5000)]
        locks += [ctx.Event() for _ in range(1000)]
        conditions = [ctx.Condition() for _ in range(200)]
        assert open_files() - before <= 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    locks[0].acquire()
    assert not locks[0].acquire(False)
    assert all(lock.acquire(False) for lock in locks[1:5000])  # no two are the same
    del locks, conditions
    gc.collect()
    assert open_files() - before <= 1


def take_all(locks: Any, taken: Any) -> None:
    taken.value = sum(lock.acquire(False) for lock in locks)
    os._exit(0)


@STARTS
def test_many_locks_travel_together(method: str) -> None:
    ctx = ours(method)
    locks, taken = [ctx.Lock() for _ in range(2500)], ctx.Value("i", 0)
    locks[7].acquire()
    process = ctx.Process(target=take_all, args=(locks, taken))
    process.start()
    ended(process)
    assert taken.value == 2499


def replace(lock: Any, ready: Any, go: Any, result: Any) -> None:
    ready.set()
    go.wait(PATIENCE)
    result.value = 1 + lock.acquire(False)


@STARTS
def test_a_slot_that_another_process_may_hold_is_not_used_again(method: str) -> None:
    ctx = ours(method)
    lock, ready, go, result = ctx.Lock(), ctx.Event(), ctx.Event(), ctx.Value("i", 0)
    keep = ctx.Lock()  # keeps the page
    at = lock._semlock.handle
    process = ctx.Process(target=replace, args=(lock, ready, go, result))
    process.start()
    assert ready.wait(PATIENCE)
    process._args = ()  # some versions keep them
    del lock
    gc.collect()
    others = [ctx.Lock() for _ in range(2000)]
    for other in others:
        assert other._semlock.handle != at
        other.acquire()
    go.set()
    ended(process)
    assert result.value == 2  # its lock was free: none of ours was that one
    keep.acquire()


def test_a_slot_that_nobody_else_knows_is_used_again() -> None:
    ctx = ours()
    keep = ctx.Lock()
    lock = ctx.Lock()
    at = lock._semlock.handle
    lock.acquire()
    del lock
    again = [ctx.Lock() for _ in range(1100)]
    found = [lock for lock in again if lock._semlock.handle == at]
    assert len(found) == 1 and found[0].acquire(False)  # and it is free
    assert keep.acquire(False)


def test_nothing_is_left_and_nothing_has_a_name() -> None:
    script = (
        "import os, signal, trireme.multiprocessing as mp\n"
        "before = set(os.listdir('/dev/shm')) if os.path.isdir('/dev/shm') else set()\n"
        "for method in ('fork', 'spawn', 'forkserver'):\n"
        "    ctx = mp.get_context(method)\n"
        "    kept = [ctx.Lock(), ctx.RLock(), ctx.Semaphore(), ctx.Event(), ctx.Condition(),\n"
        "            ctx.Barrier(2), ctx.Value('i'), ctx.Array('d', 100000)]\n"
        "    mine = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')\n"
        "            if os.path.lexists(f'/proc/self/fd/{fd}')]\n"
        "    named = [m for m in mine if m.startswith(('/dev/shm', '/tmp'))]\n"
        "    assert not named, named\n"
        "    with open('/proc/self/maps') as maps:\n"
        "        assert not [line for line in maps if '/sem.' in line or '/dev/shm' in line]\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ends_with(script, -signal.SIGKILL)
