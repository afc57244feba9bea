# SPDX-License-Identifier: BSD-3-Clause
"""The fault matrix, second part: many deaths, retries, and what they must not cost.

Tasks leave a line in a file when they start (O_APPEND, one write each), so how often each was
started is known whoever was killed when.  Random tests print their seed and take it back from
TRI_SEED.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import random
import signal
import subprocess
import threading
import time

import trireme as tri
from faultlib import (
    alive,
    children_of,
    die,
    failure,
    fd_count,
    healthy,
    live_bytes,
    marks,
    matrix,
    own_processes,
    pid_in_task,
    pids_of,
    results,
    square,
    the_warden,
    until,
    within,
    zombies,
)

# ---------------------------------------------------------------------------------------------
# How often a task is started
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_without_retries_nothing_starts_twice(start: str) -> None:
    with marks() as started, tri.Pool(2, start=start) as pool:

        def task(how: str) -> None:
            started.add("x")
            die(how)

        for how in ("kill", "exit 0", "segfault"):
            exc = failure(lambda h=how: pool.submit(task, h).result(within(5)))
            assert type(exc) is tri.WorkerLost and len(exc.deaths) == 1, exc
        healthy(pool)
        assert len(started.lines()) == 3


@matrix("fork", "forkserver", "spawn")
def test_retries_are_bounded_and_the_message_tells_of_all_deaths(start: str) -> None:
    with marks() as started, tri.Pool(2, start=start) as pool:

        def poison() -> None:
            started.add(os.getpid())
            os._exit(40 + len(started.lines()))

        for retries in (1, 2, 4, 7):
            os.truncate(started.path, 0)
            rest = [pool.submit(square, i) for i in range(20)]
            exc = failure(lambda k=retries: pool.submit(poison, retries=k).result(within(10)))
            assert type(exc) is tri.WorkerLost, exc
            pids = [int(p) for p in started.lines()]
            assert len(pids) == retries + 1 == len(exc.deaths), (pids, exc.deaths)
            for i, pid in enumerate(pids):
                if i < 4 or i == retries:
                    line = f"pid {pid}: exited with code {41 + i}"
                    assert exc.deaths[i] == line and line in str(exc), (line, exc)
            assert exc.pid == pids[-1] and exc.exitcode == 41 + retries
            assert [f.result(within(5)) for f in rest] == [i * i for i in range(20)]
        healthy(pool)
        assert pool.stats()["retried"] == 14


@matrix()
def test_a_retry_that_works_is_a_result(start: str) -> None:
    with marks() as started, tri.Pool(2, start=start) as pool:

        def third_time(x: int) -> int:
            started.add(x)
            if started.lines().count(str(x)) < 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return x

        assert pool.submit(third_time, 1, retries=2).result(within(10)) == 1
        assert pool.map(third_time, [2, 3, 4], retries=2) == [2, 3, 4]
        assert list(pool.imap(third_time, [5, 6], retries=2)) == [5, 6]
        assert sorted(started.lines()) == sorted("123456" * 3)
        healthy(pool)
        assert pool.stats()["lost"] == 0


@matrix("fork", "forkserver", "spawn", limit=40.0)
def test_storm_of_kills_starts_nothing_twice_and_loses_nothing(start: str) -> None:
    seed = int(os.environ.get("TRI_SEED", random.randrange(10**6)))
    print("TRI_SEED", seed)
    rng = random.Random(seed)
    with marks() as started, tri.Pool(2, start=start, max_restarts=10_000) as pool:

        def task(x: int) -> int:
            started.add(x)
            time.sleep(0.0002 * (x % 7))
            return x * x

        def several(x: int) -> int:
            return task(x)

        live = live_bytes(pool, functools.partial(int, 0))
        pool.submit(task, -1).result(within(5))
        pool.map(several, [-2, -3])
        live = live_bytes(pool)
        stop = threading.Event()
        kills = 0

        def killer() -> None:
            nonlocal kills
            slow = 0.3 if start == "spawn" else 0.06  # a spawned worker takes its time to start
            while not stop.wait(rng.uniform(0.001, slow)):
                pids = pool.stats()["pids"]
                if pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(pids), signal.SIGKILL)
                        kills += 1

        thread = threading.Thread(target=killer, daemon=True)
        thread.start()
        n = 0
        lost = 0
        begun = time.monotonic()
        while time.monotonic() - begun < 2.5:
            futures = {n + i: pool.submit(task, n + i) for i in range(rng.randrange(1, 60))}
            n += len(futures)
            for x, future in futures.items():
                try:
                    assert future.result(within(10)) == x * x
                except tri.WorkerLost as exc:
                    assert exc.signal == signal.SIGKILL and not alive(exc.pid)
                    lost += 1
            size = rng.randrange(1, 60)
            count = 0
            items = range(n, n + size)
            for value in results(pool.imap(several, items, chunk=rng.randrange(1, 9))):
                if isinstance(value, tri.WorkerLost):
                    lost += 1
                else:
                    assert value == (n + count) ** 2
                count += 1
            assert count == size
            n += size
        stop.set()
        thread.join()
        lines = started.lines()
        assert len(lines) == len(set(lines)), "a task was started twice"
        assert n - lost <= len(lines) <= n + 3
        assert kills > 5 and lost > 0, (kills, lost)
        del futures, future
        gc.collect()
        healthy(pool, live)
        stats = pool.stats()
        assert stats["deaths"] == stats["restarts"], stats


@matrix()
def test_storm_with_retries_gives_every_value(start: str) -> None:
    seed = int(os.environ.get("TRI_SEED", random.randrange(10**6)))
    print("TRI_SEED", seed)
    rng = random.Random(seed)

    def task(x: int) -> int:
        time.sleep(0.0005)
        return x * x

    with tri.Pool(2, start=start) as pool:
        stop = threading.Event()

        def killer() -> None:
            while not stop.wait(rng.uniform(0.005, 0.03)):
                for pid in pool.stats()["pids"][:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=killer)
        thread.start()
        try:
            for _ in range(4):
                n = 400
                assert pool.map(task, range(n), retries=50) == [x * x for x in range(n)]
        finally:
            stop.set()
            thread.join()
        healthy(pool)
        assert pool.stats()["retried"] > 0


# ---------------------------------------------------------------------------------------------
# Restarts
# ---------------------------------------------------------------------------------------------


@matrix(limit=40.0)
def test_five_hundred_restarts_leave_nothing(start: str) -> None:
    with tri.Pool(2, start=start) as pool:
        live = live_bytes(pool, die, os.getpid)
        warden = the_warden()
        for _ in range(10):
            failure(lambda: pool.submit(die, "kill").result(within(5)))
        healthy(pool, live)
        before = fd_count(), fd_count(warden), len(own_processes())
        for _ in range(500):
            exc = pool.submit(die, "kill").exception(within(5))
            assert type(exc) is tri.WorkerLost, exc
        del exc
        gc.collect()
        healthy(pool, live)
        until(lambda: len(own_processes()) <= before[2], 2.0, "no process more than before")
        assert (fd_count(), fd_count(warden)) == before[:2]
        assert not zombies() and not children_of(os.getpid())
        stats = pool.stats()
        assert stats["deaths"] == stats["restarts"] == 510 == stats["lost"], stats


@matrix("fork", "forkserver", "spawn")
def test_workers_are_replaced_after_so_many_tasks(start: str) -> None:
    with tri.Pool(2, start=start, max_tasks_per_worker=5) as pool:
        futures = [pool.submit(os.getpid) for _ in range(60)]
        pids = [f.result(within(10)) for f in futures]
        assert max(pids.count(p) for p in pids) <= 5
        healthy(pool)
        assert pool.stats()["deaths"] == 0


@matrix()
def test_the_whole_pool_again_within_a_second(start: str) -> None:
    with tri.Pool(4, start=start) as pool:
        for _ in range(5):
            pids = pids_of(pool)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            begun = time.monotonic()
            until(lambda old=pids: set(pool.stats()["pids"]).isdisjoint(old), 2.0, "new workers")
            until(lambda: pool.stats()["workers_alive"] == 4 == len(pool.stats()["pids"]), 2.0)
            assert time.monotonic() - begun < within(1)


# ---------------------------------------------------------------------------------------------
# The user's own children
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_the_users_children_are_his_own(start: str) -> None:
    with tri.Pool(2, start=start) as pool:
        healthy(pool)
        failure(lambda: os.waitpid(-1, os.WNOHANG))  # no child of ours can be waited for
        exc = failure(lambda: os.waitpid(-1, os.WNOHANG))
        assert type(exc) is ChildProcessError, "the pool's processes are children of the user's"
        mine = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
        for _ in range(20):
            failure(lambda: pool.submit(die, "kill").result(within(5)))
        assert all(p.poll() is None for p in mine)
        mine[0].kill()
        pid, status = os.wait()
        assert (pid, os.waitstatus_to_exitcode(status)) == (mine[0].pid, -signal.SIGKILL)
        for p in mine[1:]:
            p.terminate()
            assert p.wait(within(5)) == -signal.SIGTERM
        assert subprocess.run(["true"]).returncode == 0
        healthy(pool)
    mine[0].returncode = -signal.SIGKILL
    assert not [p for p in children_of(os.getpid())]


@matrix()
def test_the_users_signal_handlers_are_his_own(start: str) -> None:
    numbers = [signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1,
               signal.SIGALRM]  # fmt: skip
    before = [signal.getsignal(n) for n in numbers]
    seen = []
    with tri.Pool(2, start=start) as pool:
        signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
        failure(lambda: pool.submit(die, "kill").result(within(5)))
        healthy(pool)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        assert [signal.getsignal(n) for n in numbers] == before
        assert not seen, "deaths of workers are not the user's SIGCHLD"


@matrix()
def test_a_handler_that_reaps_everything_harms_nobody(start: str) -> None:
    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    signal.signal(signal.SIGCHLD, reap)
    for _ in range(3):
        with tri.Pool(2, start=start) as pool:
            failure(lambda: pool.submit(die, "kill").result(within(5)))
            healthy(pool)


@matrix()
def test_children_of_a_killed_worker_die_with_it(start: str) -> None:
    def parent(depth: int) -> int:
        command = ["sh", "-c", "sleep 600 & sleep 600"] if depth else ["sleep", "600"]
        child = subprocess.Popen(command)
        return child.pid

    def detached() -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    with tri.Pool(1, start=start) as pool:
        for task, args in ((parent, (0,)), (parent, (1,)), (detached, ())):
            others = set(own_processes())
            child = pool.submit(task, *args).result(within(5))
            assert alive(child)
            os.kill(pid_in_task(pool), signal.SIGKILL)
            until(lambda c=child: not alive(c), 1.0, "the child is gone")
            healthy(pool)
            until(lambda o=others: len(own_processes()) <= len(o), 1.0, "its children too")
    child = None
    with tri.Pool(1, start=start) as pool:
        child = pool.submit(detached).result(within(5))
    until(lambda: not alive(child), 2.0, "the child of a worker that left")


# ---------------------------------------------------------------------------------------------
# Ending
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn", noise=True)
def test_terminate_ends_within_two_seconds_whatever_tasks_do(start: str) -> None:
    def deaf() -> None:
        for number in range(1, 65):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            time.sleep(1)

    def in_c() -> None:
        import ctypes

        ctypes.PyDLL(None).sleep(600)  # holds the GIL

    def stopped() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def burning() -> None:
        while True:
            pass

    def talking() -> None:
        while True:
            print("x" * 10000)

    for task in (deaf, in_c, stopped, burning, talking):
        pool = tri.Pool(2, start=start)
        futures = [pool.submit(task) for _ in range(2)]
        queued = [pool.submit(square, i) for i in range(10)]
        until(lambda f=futures: all(x.running() for x in f))
        begun = time.monotonic()
        pool.terminate()
        took = time.monotonic() - begun
        assert took < within(2), (task.__name__, took)
        for future in futures + queued:
            assert isinstance(future.exception(within(1)), tri.WorkerLost), task
            assert "terminated" in str(future.exception()), future.exception()


@matrix("fork", "forkserver", "spawn")
def test_close_and_join_finish_what_was_submitted(start: str) -> None:
    pool = tri.Pool(2, start=start)
    futures = [pool.submit(time.sleep, 0.05) for _ in range(10)]
    bad = pool.submit(die, "kill")
    pool.close()
    assert type(failure(lambda: pool.submit(square, 1))) is ValueError
    pool.join()
    assert [f.result(0) for f in futures] == [None] * 10
    assert type(bad.exception(0)) is tri.WorkerLost
    if start == "fork":
        until(lambda: not own_processes(), 1.0, "the pool's own warden has left")
    pool.join()
    pool.terminate()


@matrix()
def test_worker_killed_while_the_pool_closes(start: str) -> None:
    for _ in range(10):
        pool = tri.Pool(3, start=start)
        pids = pids_of(pool)
        pool.close()
        os.kill(pids[0], signal.SIGKILL)
        pool.join()


@matrix()
def test_dropped_pool_takes_its_workers_along(start: str) -> None:
    pool = tri.Pool(2, start=start)
    future = pool.submit(time.sleep, 0.2)
    until(future.running)
    pids = until(lambda: len(pool.stats()["pids"]) == 2 and pool.stats()["pids"])
    del pool
    gc.collect()
    assert all(alive(p) for p in pids), "the future still needs its pool"
    assert future.result(within(5)) is None
    until(lambda: not any(alive(p) for p in pids), 2.0, "workers of a dropped pool are gone")


# ---------------------------------------------------------------------------------------------
# The kernel's OOM killer
# ---------------------------------------------------------------------------------------------


def _memory_cgroup() -> str | None:
    """A folder in which a memory cgroup can be made, version 1 or 2."""
    with open("/proc/self/cgroup") as file:
        lines = file.read().split()
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if controllers == "memory":
            for place in (f"/sys/fs/cgroup/memory{path}", "/sys/fs/cgroup/memory"):
                limit = f"{place}/memory.limit_in_bytes"
                if os.access(limit, os.R_OK) and os.access(place, os.W_OK):
                    return place
        if number == "0" and os.access("/sys/fs/cgroup/cgroup.subtree_control", os.W_OK):
            with open("/sys/fs/cgroup/cgroup.controllers") as file:
                if "memory" in file.read().split():
                    return "/sys/fs/cgroup"
    return None


def test_worker_killed_for_memory_is_reported_as_such() -> None:
    import pytest
    from faultlib import run_row

    place = _memory_cgroup()
    group = f"{place}/tri-test-{os.getpid()}"
    try:
        if place is None:
            raise OSError("no memory cgroup can be made here")
        os.mkdir(group)
    except OSError as exc:
        pytest.skip(f"no memory cgroup: {exc}")
    v1 = os.path.exists(f"{group}/memory.limit_in_bytes")
    try:
        try:
            with open(f"{group}/memory.{'limit_in_bytes' if v1 else 'max'}", "w") as file:
                file.write(str(150 << 20))
            for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
                with contextlib.suppress(OSError), open(f"{group}/{name}", "w") as file:
                    file.write(str(150 << 20) if v1 else "0")
        except OSError as exc:
            pytest.skip(f"no memory cgroup: {exc}")
        run_row(
            f"""
            with open("{group}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
            def eat():
                with open("/proc/self/oom_score_adj", "w") as file:
                    file.write("1000")
                return len(bytearray(os.urandom(1 << 20) * 400))
            for start in ("fork", "forkserver"):
                with tri.Pool(2, start=start) as pool:
                    rest = [pool.submit(square, i) for i in range(20)]
                    exc = failure(lambda: pool.submit(eat).result(within(15)))
                    assert type(exc) is tri.WorkerLost, repr(exc)
                    assert exc.oom and exc.signal == signal.SIGKILL, exc
                    assert "OOM killer did it" in str(exc), exc
                    assert [f.result(within(5)) for f in rest] == [i * i for i in range(20)]
                    healthy(pool)
                    exc = failure(lambda: pool.submit(die, "kill").result(within(5)))
                    assert not exc.oom, exc
            """,
            limit=40.0,
        )
    finally:
        until(lambda: not open(f"{group}/cgroup.procs").read().split(), 3.0, "the cgroup is empty")
        os.rmdir(group)


# ---------------------------------------------------------------------------------------------
# Soak
# ---------------------------------------------------------------------------------------------


def test_soak_leaves_everything_as_it_was() -> None:
    from faultlib import run_row

    seconds = float(os.environ.get("TRI_SOAK_SECONDS", "20"))
    run_row(_soak, seconds, limit=seconds + 40)


def _soak(seconds: float) -> None:
    """Random faults every 50 ms; then the process is as it was before."""
    seed = int(os.environ.get("TRI_SEED", random.randrange(10**6)))
    print("TRI_SEED", seed)
    rng = random.Random(seed)

    def look(pool: object) -> dict[str, int]:
        gc.collect()
        # Failed futures and the frames that asked them are cycles, so up to a hundred results of
        # 100 KB wait for the collector: what the C library then keeps is no leak.
        ctypes.CDLL(None).malloc_trim(0)
        healthy(pool)
        until(lambda: not zombies(), 2.0, "no zombies")
        warden = the_warden()
        with open("/proc/self/maps") as file:
            maps = len(file.readlines())
        with open("/proc/self/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
        return {
            "fds": fd_count(),
            "warden's fds": fd_count(warden),
            "maps": maps,
            "threads": threading.active_count(),
            "processes": len(own_processes()),
            "arena": live_bytes(pool),
            "rss": 4096 * (resident - shared),  # what it has looked at of the arena is shared
        }

    def task(x: int) -> int:
        return x * x

    def data(n: int) -> bytes:
        return b"x" * n

    def fail(x: int) -> None:
        raise ValueError(x)

    with tri.Pool(2, start="forkserver") as pool:
        faults = {
            "kill": lambda pid: os.kill(pid, signal.SIGKILL),
            "segv": lambda pid: os.kill(pid, signal.SIGSEGV),
            "stop": lambda pid: os.kill(pid, signal.SIGSTOP),
            "cont": lambda pid: os.kill(pid, signal.SIGCONT),
            "none": lambda pid: None,
        }

        def round_of_work(n: int) -> int:
            done = 0
            work = [pool.submit(task, i, timeout=1.0) for i in range(n)]
            work += [pool.submit(data, rng.choice([10, 1000, 100_000])) for _ in range(5)]
            work += [pool.submit(fail, i) for i in range(5)]
            work += [pool.submit(die, rng.choice(["", "exit 0", "kill"])) for _ in range(2)]
            for future in work:
                try:
                    future.result(within(20))
                except (tri.WorkerLost, tri.TaskTimeout, ValueError):
                    pass
                done += 1
            with contextlib.suppress(tri.WorkerLost):
                assert pool.map(task, range(200)) == [x * x for x in range(200)]
            return done + 200

        for _ in range(20):
            round_of_work(50)
        before = look(pool)
        stop = threading.Event()

        def trouble() -> None:
            while not stop.wait(0.05):
                pids = pool.stats()["pids"]
                with contextlib.suppress(ProcessLookupError, IndexError):
                    faults[rng.choice(list(faults))](rng.choice(pids))
                for pid in pids:  # nobody stays stopped for ever
                    if rng.random() < 0.5:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGCONT)
            for pid in pool.stats()["pids"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        thread = threading.Thread(target=trouble)
        thread.start()
        end = time.monotonic() + seconds
        tasks = 0
        while time.monotonic() < end:
            tasks += round_of_work(50)
        stop.set()
        thread.join()
        after = look(pool)
        print(tasks, "tasks", pool.stats()["deaths"], "deaths", before, after)
        assert pool.stats()["deaths"] > seconds
        drift = after.pop("rss") - before.pop("rss")
        assert drift < 2e6, f"{drift} bytes more after {tasks} tasks"
        assert abs(after.pop("maps") - before.pop("maps")) <= 8
        assert after == before
