# SPDX-License-Identifier: BSD-3-Clause
"""The fault matrix, first part: workers that die, stop, are late or fail to start, and full pools.

Each row breaks one thing in the middle of other work and then asks for three things: the guilty
future has one precise exception, every other future its value, and the pool is whole again with
not a byte of its arena lost.

What tasks raise, take and give is in test_faults_values.py, what they do to their process is in
test_faults_process.py.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time

import pytest
import trireme as tri
from faultlib import (
    alive,
    die,
    failure,
    fd_count,
    healthy,
    live_bytes,
    marks,
    matrix,
    pid_in_task,
    pids_of,
    results,
    run_row,
    square,
    state_of,
    until,
    within,
)

DEATHS = {
    "kill": "was killed by SIGKILL",
    "exit 0": "exited with code 0",
    "exit 3": "exited with code 3",
    "segfault": "was killed by SIGSEGV",
    "abort": "was killed by SIGABRT",
    "stack": "was killed by SIGSEGV",
    "term": "was killed by SIGTERM",
}


# ---------------------------------------------------------------------------------------------
# A worker dies
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_task_that_ends_its_worker_costs_itself_only(start: str) -> None:
    ways = {
        "kill": (signal.SIGKILL, None),
        "exit 0": (None, 0),
        "exit 3": (None, 3),
        "segfault": (signal.SIGSEGV, None),
        "abort": (signal.SIGABRT, None),
        "stack": (signal.SIGSEGV, None),
        "term": (signal.SIGTERM, None),
    }
    with tri.Pool(2, start=start) as pool:
        live = live_bytes(pool, die)
        for deaths, (how, (sig, code)) in enumerate(ways.items()):
            pids_of(pool)
            before = [pool.submit(square, i) for i in range(5)]
            guilty = pool.submit(die, how)
            after = [pool.submit(square, i) for i in range(5)]
            begun = time.monotonic()
            exc = failure(lambda f=guilty: f.result(within(10)))
            assert time.monotonic() - begun < within(1.0), how
            assert type(exc) is tri.WorkerLost, (how, exc)
            assert (exc.signal, exc.exitcode) == (sig, code), (how, exc)
            assert f"pid {exc.pid}" in str(exc) and "faultlib.die" in str(exc), exc
            name = sig.name if sig else f"code {code}"
            assert name in str(exc), exc
            assert not exc.oom and exc.task == "faultlib.die(...)"
            assert not alive(exc.pid) and exc.pid not in pool.stats()["pids"]
            assert [f.result(within(5)) for f in before + after] == 2 * [0, 1, 4, 9, 16]
            healthy(pool, live)
            assert pool.stats()["deaths"] == deaths + 1


@matrix()
def test_task_that_ends_its_worker_in_every_kind_of_call(start: str) -> None:
    def bad(x: int) -> int:
        if x == 3:
            os._exit(9)
        return x * x

    def lost(call: object) -> None:
        exc = failure(call)
        assert type(exc) is tri.WorkerLost and exc.exitcode == 9, exc
        healthy(pool)

    with tri.Pool(2, start=start) as pool:
        lost(lambda: pool.map(bad, range(8), chunk=1))
        lost(lambda: pool.map(bad, range(8)))
        lost(lambda: pool.starmap(bad, [(i,) for i in range(8)]))
        lost(lambda: pool.apply(bad, (3,)))
        lost(lambda: pool.map_async(bad, range(8)).get(within(5)))
        lost(lambda: pool.apply_async(bad, (3,)).get(within(5)))
        lost(lambda: pool.submit(bad, 3).result(within(5)))
        futures = [pool.submit(bad, i) for i in range(8)]
        assert [f.result(within(5)) for i, f in enumerate(futures) if i != 3] == [
            0, 1, 4, 16, 25, 36, 49
        ]  # fmt: skip
        assert futures[3].exception().exitcode == 9


@matrix()
def test_iterators_give_one_value_or_exception_per_item(start: str) -> None:
    def bad(x: int) -> int:
        if x == 21:
            os._exit(9)
        if x % 10 == 5:
            raise ValueError(x)
        return x

    def drain(iterator: object) -> list[object]:
        return list(itertools.islice(results(iterator), 41))

    with tri.Pool(2, start=start) as pool:
        for chunk in (1, 4, None):
            got = drain(pool.imap(bad, range(40), chunk=chunk))
            assert len(got) == 40, (chunk, len(got))
            for i, value in enumerate(got):
                if i % 10 == 5 and type(value) is not tri.WorkerLost:
                    assert type(value) is ValueError and value.args == (i,), (i, value)
                elif type(value) is not tri.WorkerLost:
                    assert value == i
            assert type(got[21]) is tri.WorkerLost
            if chunk:
                first = 21 - 21 % chunk
                where = [i for i, v in enumerate(got) if type(v) is tri.WorkerLost]
                assert where == list(range(first, first + chunk)), where
            got = drain(pool.imap_unordered(bad, range(40), chunk=chunk))
            assert len(got) == 40
            values = [v for v in got if isinstance(v, int)]
            lost = [v for v in got if type(v) is tri.WorkerLost]
            odd = [v.args[0] for v in got if type(v) is ValueError]
            assert len(values) + len(lost) + len(odd) == 40 and lost
            assert len(set(values)) == len(values) and len(set(odd)) == len(odd)
            assert set(values) <= {i for i in range(40) if i % 10 != 5 and i != 21}
            assert set(odd) <= {5, 15, 25, 35}
            if chunk:
                assert len(lost) == chunk
        healthy(pool)


@matrix()
def test_idle_worker_killed_then_map(start: str) -> None:
    with tri.Pool(2, start=start) as pool:
        live = live_bytes(pool)
        for _ in range(5):
            for pid in pids_of(pool):
                os.kill(pid, signal.SIGKILL)
                assert pool.map(square, range(100)) == [x * x for x in range(100)]
            for pid in pids_of(pool):
                # The one killed last may still be listed: its death has not been read yet.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert pool.submit(square, 5).result(within(2)) == 25
        healthy(pool, live)
        assert pool.stats()["lost"] == 0


@matrix()
def test_all_workers_killed_at_once_mid_map(start: str) -> None:
    with tri.Pool(3, start=start) as pool:
        pool.submit(time.sleep, 0).result(within(5))
        live = live_bytes(pool)
        futures = [pool.submit(time.sleep, 60) for _ in range(3)]
        until(lambda: all(f.running() for f in futures))
        rest = [pool.submit(square, i) for i in range(50)]
        for pid in pool.stats()["pids"]:
            os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        assert all(type(f.exception(within(5))) is tri.WorkerLost for f in futures)
        assert [f.result(within(5)) for f in rest] == [i * i for i in range(50)]
        assert time.monotonic() - begun < within(1)
        del futures, rest
        healthy(pool, live)


@pytest.mark.parametrize("how", DEATHS)
def test_message_names_how(how: str) -> None:
    run_row(
        f"""
        with tri.Pool(1, start="fork") as pool:
            exc = pool.submit(die, {how!r}).exception(10)
            assert {DEATHS[how]!r} in str(exc) and f"worker pid {{exc.pid}}" in str(exc), exc
        """
    )


# ---------------------------------------------------------------------------------------------
# Stopped and slow workers
# ---------------------------------------------------------------------------------------------


@matrix()
def test_stopped_worker_that_goes_on_loses_nothing(start: str) -> None:
    with marks() as gate, tri.Pool(2, start=start) as pool:
        futures = [pool.submit(until, gate.lines, 20) for _ in range(2)]
        until(lambda: all(f.running() for f in futures))
        pids = pool.stats()["pids"]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(state_of(pid) == "T" for pid in pids))
        rest = [pool.submit(square, i) for i in range(20)]
        gate.add("open")
        assert type(failure(lambda: rest[0].result(0.3))) is TimeoutError
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert [f.result(within(5)) for f in rest] == [i * i for i in range(20)]
        assert [f.result(within(5)) for f in futures] == [["open"]] * 2
        assert sorted(pool.stats()["pids"]) == sorted(pids)
        assert pool.stats()["deaths"] == 0


@matrix()
def test_time_limit_kills_a_stopped_worker(start: str) -> None:
    def stop(now: bool = False) -> None:
        if now:
            os.kill(os.getpid(), signal.SIGSTOP)

    with tri.Pool(2, start=start) as pool:
        live = live_bytes(pool, stop)
        begun = time.monotonic()
        guilty = pool.submit(stop, True, timeout=0.3)
        rest = [pool.submit(square, i) for i in range(20)]
        assert [f.result(within(5)) for f in rest] == [i * i for i in range(20)]
        exc = failure(lambda: guilty.result(within(5)))
        took = time.monotonic() - begun
        assert type(exc) is tri.TaskTimeout and isinstance(exc, TimeoutError), exc
        assert "stop" in str(exc) and "pid" in str(exc) and "0.3" in str(exc), exc
        assert 0.3 <= took < within(1.3), took
        healthy(pool, live)
        assert pool.stats()["timed_out"] == 1 and pool.stats()["lost"] == 0


@matrix()
def test_many_time_limits_in_a_row_do_not_break_the_pool(start: str) -> None:
    with tri.Pool(2, start=start) as pool:
        futures = [pool.submit(time.sleep, 60, timeout=0.05) for _ in range(30)]
        good = [pool.submit(square, i) for i in range(30)]
        for future in futures:
            assert type(future.exception(within(20))) is tri.TaskTimeout
        assert [f.result(within(5)) for f in good] == [i * i for i in range(30)]
        healthy(pool)


@matrix()
def test_time_limit_is_for_each_item_of_a_chunk(start: str) -> None:
    def nap(x: float) -> float:
        time.sleep(x)
        return x

    with tri.Pool(2, start=start) as pool:
        x = within(0.2)  # a chunk of four takes longer than the limit, on any machine
        assert pool.map(nap, [x] * 8, chunk=4, timeout=2.5 * x) == [x] * 8
        exc = failure(lambda: pool.map(nap, [0.01, 0.01, 60, 0.01], chunk=4, timeout=0.4))
        assert type(exc) is tri.TaskTimeout, exc
        healthy(pool)


@matrix(noise=True)
def test_time_limit_ends_what_ignores_signals(start: str) -> None:
    def deaf() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        for number in range(1, 65):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)

    with tri.Pool(2, start=start) as pool:
        exc = failure(lambda: pool.submit(deaf, timeout=0.2).result(within(5)))
        assert type(exc) is tri.TaskTimeout, exc
        healthy(pool)


# ---------------------------------------------------------------------------------------------
# Initializers
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_initializer_that_raises_is_one_error(start: str) -> None:
    def init(text: str) -> None:
        raise LookupError(text)

    pool = tri.Pool(2, start=start, initializer=init, initargs=("no such table",))
    for call in (
        lambda: pool.submit(square, 1).result(within(5)),
        lambda: pool.map(square, range(10)),
        lambda: list(pool.imap(square, range(10))),
    ):
        exc = failure(call)
        assert type(exc) is LookupError and "no such table" in str(exc), repr(exc)
    begun = time.monotonic()
    pool.terminate()
    assert time.monotonic() - begun < within(2)
    assert pool.stats()["restarts"] <= 12, pool.stats()


@matrix("fork", "forkserver", "spawn")
def test_initializer_that_kills_its_worker_ends_in_one_error(start: str) -> None:
    def init() -> None:
        os._exit(13)

    pool = tri.Pool(2, start=start, initializer=init)
    exc = failure(lambda: pool.map(square, range(10)))
    assert isinstance(exc, tri.WorkerLost), repr(exc)
    assert "start" in str(exc) and "13" in str(exc), exc
    exc = failure(lambda: pool.submit(square, 1).result(within(5)))
    assert isinstance(exc, tri.WorkerLost), repr(exc)
    assert pool.stats()["restarts"] <= 12, pool.stats()
    pool.terminate()


@matrix()
def test_initializer_that_is_slow_or_exits(start: str) -> None:
    def slow() -> None:
        time.sleep(0.3)

    def leave() -> None:
        sys.exit(3)

    with tri.Pool(2, start=start, initializer=slow) as pool:
        healthy(pool)
    pool = tri.Pool(2, start=start, initializer=leave)
    exc = failure(lambda: pool.map(square, range(10)))
    assert isinstance(exc, tri.RemoteError) and "SystemExit" in str(exc), repr(exc)
    pool.terminate()


# ---------------------------------------------------------------------------------------------
# Back-pressure
# ---------------------------------------------------------------------------------------------


@matrix()
def test_submit_blocks_when_full_and_goes_on(start: str) -> None:
    with tri.Pool(2, start=start, slots=64) as pool:
        futures = [pool.submit(square, i) for i in range(2000)]
        assert [f.result(within(5)) for f in futures] == [i * i for i in range(2000)]
        blockers = [pool.submit(time.sleep, 60) for _ in range(2)]
        until(lambda: all(f.running() for f in blockers))
        fill = [pool.submit(square, i) for i in range(62)]
        killed = threading.Event()

        def kill() -> None:
            killed.set()
            for pid in pool.stats()["pids"]:
                os.kill(pid, signal.SIGKILL)

        threading.Timer(0.3, kill).start()
        more = [pool.submit(square, 0)]  # blocks until workers die
        assert killed.is_set(), "there was a slot more than it has"
        more += [pool.submit(square, i) for i in range(1, 62)]
        assert all(type(f.exception(within(5))) is tri.WorkerLost for f in blockers)
        assert [f.result(within(5)) for f in fill + more] == 2 * [i * i for i in range(62)]
        healthy(pool)


@matrix()
def test_submit_that_blocks_can_be_interrupted(start: str) -> None:
    class Stop(Exception):
        pass

    def handler(*_: object) -> None:
        raise Stop

    signal.signal(signal.SIGALRM, handler)
    with tri.Pool(1, start=start, slots=64) as pool:
        futures = [pool.submit(time.sleep, 60)]
        until(futures[0].running)
        futures += [pool.submit(square, i) for i in range(63)]
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert type(failure(lambda: pool.submit(square, 1))) is Stop
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert type(failure(lambda: pool.map(square, range(10)))) is Stop
        pool.terminate()
        assert all(isinstance(f.exception(within(2)), tri.WorkerLost) for f in futures)


@matrix(noise=True)
def test_much_output_while_the_owner_looks_away(start: str) -> None:
    def shout(n: int) -> int:
        for _ in range(n):
            print("x" * 1000)
        return n

    with tri.Pool(2, start=start) as pool:
        futures = [pool.submit(shout, 2000) for _ in range(4)]
        until(lambda: all(alive(pid) for pid in pool.stats()["pids"]))
        assert [f.result(within(10)) for f in futures] == [2000] * 4
        futures = [pool.submit(shout, 2000) for _ in range(4)]
        with contextlib.suppress(tri.WorkerLost):
            os.kill(pid_in_task(pool), signal.SIGKILL)
        [f.exception(within(10)) for f in futures]
        futures = [pool.submit(shout, 2000) for _ in range(4)]
        begun = time.monotonic()
        pool.terminate()
        assert time.monotonic() - begun < within(2)
        del futures
    assert fd_count() < 64
