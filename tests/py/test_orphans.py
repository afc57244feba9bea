# SPDX-License-Identifier: BSD-3-Clause
"""The fault matrix, third part: the owner or its warden dies, forks, or comes to its end.

Whatever happens to the owner, a second later nothing of its pools is left: no process, and nothing
with a name.  Whatever happens to the warden, the owner hears of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import trireme as tri
from faultlib import (
    STARTS,
    Run,
    alive,
    die,
    failure,
    healthy,
    marks,
    matrix,
    name_of,
    own_processes,
    pids_of,
    run_row,
    square,
    start_row,
    tagged,
    the_warden,
    until,
    wardens,
    within,
)


def _names() -> set[str]:
    """Everything with a name that a pool could have left."""
    found = set()
    for place in ("/dev/shm", "/dev/mqueue", "/tmp"):
        with contextlib.suppress(OSError):
            found |= {f"{place}/{n}" for n in os.listdir(place) if "trireme" in n.lower()}
    with open("/proc/net/unix") as file:
        found |= {w for line in file for w in line.split()[7:] if "trireme" in w.lower()}
    return found


def _started(run: Run, line: str = "go") -> None:
    """Wait until the row says so."""
    assert run.process.stdout is not None
    got = run.process.stdout.readline().strip()
    assert got == line, f"{got!r}\n{run.process.stderr.read() if run.process.stderr else ''}"


def _owner(start: str, state: str) -> None:
    """An owner in one of its states; says "go" when it is in it."""
    import ctypes
    import gc

    def setuid() -> None:
        os.setresuid(65534, 65534, 65534)

    if state == "starting":
        print("go", flush=True)
        while True:
            tri.Pool(2, start=start).terminate()
    if state == "closing":
        print("go", flush=True)
        while True:
            with tri.Pool(2, start=start) as pool:
                pool.submit(square, 3)
    pool = tri.Pool(2, start=start)
    healthy(pool)
    if state in ("busy", "group"):
        futures = [pool.submit(time.sleep, 600) for _ in range(6)]
        until(lambda: sum(f.running() for f in futures) == 2)
    elif state == "stubborn":
        futures = [pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, signal.valid_signals())]
        futures += [pool.submit(ctypes.PyDLL(None).sleep, 600)] if start == "fork" else []
        futures += [pool.submit(time.sleep, 600) for _ in range(4)]
    elif state == "stopped":
        futures = [pool.submit(os.kill, pid, signal.SIGSTOP) for pid in pool.stats()["pids"]]
    elif state == "other uid":
        futures = [pool.submit(setuid) for _ in range(4)]
        futures += [pool.submit(time.sleep, 600) for _ in range(4)]
        until(lambda: sum(f.running() for f in futures[4:]) == 2)
    elif state == "children":
        futures = [pool.submit(subprocess.run, ["sleep", "600"]) for _ in range(2)]
        until(lambda: sum(name_of(p) == "sleep" for p in own_processes()) == 2)
    elif state == "nested":

        def nest() -> None:
            with tri.Pool(2, start=start) as inner:
                inner.map(time.sleep, [600, 600])

        futures = [pool.submit(nest) for _ in range(2)]
        until(lambda: len(own_processes()) >= 8, 20.0)
    else:
        gc.collect()
        futures = []
    print("go", flush=True)
    threading.Event().wait()
    del futures


STATES = ("idle", "busy", "stubborn", "stopped", "other uid", "children", "nested", "starting",
          "closing")  # fmt: skip


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("state", STATES)
def test_owner_killed_leaves_nothing(start: str, state: str) -> None:
    if state == "other uid" and os.geteuid():
        pytest.skip("only root can become somebody else")
    names = _names()
    for moment in range(3 if state in ("starting", "closing") else 1):
        run = start_row(_owner, start, state, limit=30.0)
        try:
            _started(run)
            if state in ("starting", "closing"):
                # Different moments of a life of some milliseconds: after so many processes.
                want = 2 + moment
                until(lambda r=run, w=want: len(tagged(r.tag)) >= w)
            os.kill(run.process.pid, signal.SIGKILL)
            run.process.wait()
            left = [f"{p} {name_of(p)}" for p in run.leftovers(1.0)]
            assert not left, left
        finally:
            run.end_all()
            run.finish()
    assert _names() <= names


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("state", ["idle", "busy", "nested"])
def test_group_killed_leaves_nothing(start: str, state: str) -> None:
    """As when a container or a batch job is stopped."""
    names = _names()
    run = start_row(_owner, start, state, limit=30.0)
    try:
        _started(run)
        os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()
        assert not run.leftovers(1.0)
    finally:
        run.end_all()
        run.finish()
    assert _names() <= names


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("state", ["idle", "busy", "stubborn"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_owner_terminated_leaves_nothing(start: str, state: str, sent: int) -> None:
    run = start_row(_owner, start, state, limit=30.0)
    try:
        _started(run)
        os.kill(run.process.pid, sent)
        run.finish()
        assert run.code == -sent
        assert not run.leftovers(1.0)
        assert not run.err, run.err
    finally:
        run.end_all()


@pytest.mark.parametrize("start", [*STARTS, "spawn"])
@pytest.mark.parametrize("call", ["result", "map", "imap", "join", "sleep"])
def test_interrupt_of_the_group_is_one_keyboard_interrupt(start: str, call: str) -> None:
    def row(start: str, call: str) -> None:
        pool = tri.Pool(2, start=start)
        healthy(pool)
        try:
            print("go", flush=True)
            if call == "result":
                [pool.submit(time.sleep, 600) for _ in range(4)][0].result()
            elif call == "map":
                pool.map(time.sleep, [600] * 4)
            elif call == "imap":
                list(pool.imap(time.sleep, [600] * 4))
            elif call == "join":
                keep = [pool.submit(time.sleep, 600) for _ in range(4)]
                pool.close()
                pool.join()
                del keep
            else:
                keep = [pool.submit(time.sleep, 600) for _ in range(4)]
                time.sleep(600)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            pool.terminate()
            return
        raise AssertionError("not interrupted")

    run = start_row(row, start, call, limit=30.0)
    try:
        _started(run)
        until(lambda: _sleeping(run.process.pid))
        os.killpg(run.process.pid, signal.SIGINT)
        begun = time.monotonic()
        run.finish()
        assert time.monotonic() - begun < within(2)
        assert run.code == 0 and run.out == "interrupted\n", run.describe()
        assert not run.err, run.err
        assert not run.leftovers(1.0)
    finally:
        run.end_all()


def _sleeping(pid: int) -> bool:
    """Does the process wait in the kernel?"""
    with open(f"/proc/{pid}/wchan") as file:
        return "futex" in file.read() or "poll" in file.read() or _state(pid) == "S"


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@matrix("fork", "forkserver", "spawn")
def test_interrupt_without_a_handler_ends_the_program(start: str) -> None:
    code = f"""
import time, trireme as tri
pool = tri.Pool(2, start={start!r})
futures = [pool.submit(time.sleep, 600) for _ in range(4)]
print("go", flush=True)
futures[0].result()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert child.stdout.readline() == "go\n"
    until(lambda: open(f"/proc/{child.pid}/stat").read().rpartition(")")[2].split()[0] == "S")
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=within(5))
    assert child.returncode == -signal.SIGINT
    assert err.count("KeyboardInterrupt") == 1 and len(err.splitlines()) <= 15, err
    assert "trireme-worker" not in err and "Process" not in err, err


# ---------------------------------------------------------------------------------------------
# The end of a script
# ---------------------------------------------------------------------------------------------

ENDINGS = {
    "running task": "keep = pool.submit(time.sleep, 600)",
    "queued tasks": "keep = [pool.submit(time.sleep, 600) for _ in range(9)]",
    "nothing": "pass",
    "done": "healthy(pool)",
    "closed": "pool.close()",
    "iterator": "keep = pool.imap(time.sleep, iter([600] * 9)); keep.next",
    "async": "keep = pool.map_async(time.sleep, [600] * 9, callback=print)",
    "callback": "keep = pool.submit(time.sleep, 600); keep.add_done_callback(repr)",
    "default pool": "tri.map(square, range(10)); keep = tri.submit(time.sleep, 600)",
    "global pool, shared": "x = tri.share(b'x' * 10**6); keep = pool.submit(len, x).result()",
    "deaf": "keep = pool.submit(signal.pthread_sigmask, 0, signal.valid_signals()); "
    "keep2 = [pool.submit(time.sleep, 600) for _ in range(4)]",
}


@pytest.mark.parametrize("start", [*STARTS, "spawn"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_end_of_script(start: str, ending: str) -> None:
    begun = time.monotonic()
    run = run_row(f"pool = tri.Pool(2, start={start!r})\n{ENDINGS[ending]}\n")
    assert time.monotonic() - begun < within(4)
    assert not run.out, run.describe()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("how, code", [("sys.exit(7)", 7), ("os._exit(8)", 8), ("1 / 0", 1)])
def test_exit_code_is_the_scripts_own(start: str, how: str, code: int) -> None:
    run = start_row(
        f"""
        pool = tri.Pool(2, start={start!r})
        keep = [pool.submit(time.sleep, 600) for _ in range(4)]
        {how}
        """
    )
    try:
        run.finish()
        assert run.code == code, run.describe()
        assert not run.leftovers(1.0)
        assert not run.err or (how == "1 / 0" and run.err.count("\n") <= 6), run.err
    finally:
        run.end_all()


@matrix()
def test_end_of_a_script_in_which_threads_use_the_pool(start: str) -> None:
    pool = tri.Pool(2, start=start)

    def loop() -> None:
        with contextlib.suppress(BaseException):
            while True:
                pool.map(square, range(100))

    for _ in range(3):
        threading.Thread(target=loop, daemon=True).start()
    # Not healthy(): with maps under way there is no moment at which every slot must be free.
    assert pool.map(square, range(100)) == [x * x for x in range(100)]


# ---------------------------------------------------------------------------------------------
# The warden
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_warden_killed_is_noticed_within_a_second(start: str) -> None:
    def kill_warden() -> list[int]:
        pids = pool.stats()["pids"]
        for pid in wardens():
            os.kill(pid, signal.SIGKILL)
        return pids

    for state in ("busy", "queued", "map", "idle"):
        pool = tri.Pool(2, start=start)
        pids_of(pool)
        begun = time.monotonic()
        if state == "map":
            threading.Timer(0.2, kill_warden).start()
            exc = failure(lambda: pool.map(time.sleep, [600] * 9))
            begun += 0.2
        elif state == "idle":
            pids = kill_warden()
            until(lambda p=pids: not any(alive(x) for x in p), 1.0, "workers are gone")
            exc = failure(lambda: pool.submit(square, 3).result(within(5)))
        else:
            n = 9 if state == "queued" else 2
            futures = [pool.submit(time.sleep, 600) for _ in range(n)]
            until(lambda f=futures: sum(x.running() for x in f) == 2)
            begun = time.monotonic()
            kill_warden()
            exc = futures[-1].exception(within(5))
            assert all(isinstance(f.exception(within(1)), tri.WorkerLost) for f in futures)
        assert time.monotonic() - begun < within(1.2), (state, time.monotonic() - begun)
        assert isinstance(exc, tri.WorkerLost), (state, exc)
        assert "warden died" in str(exc) or "SIGKILL" in str(exc), (state, exc)
        exc = failure(lambda: pool.submit(square, 3).result(within(5)))
        assert isinstance(exc, tri.WorkerLost) and "warden died" in str(exc), exc
        begun = time.monotonic()
        pool.terminate()
        assert time.monotonic() - begun < within(2)
        with tri.Pool(2, start=start) as pool:  # the next one works
            healthy(pool)


@matrix("forkserver", "spawn")
def test_pools_that_share_a_warden_do_not_disturb_each_other(start: str) -> None:
    pools = [tri.Pool(2, start=start) for _ in range(3)]
    futures = [pools[0].submit(time.sleep, 600) for _ in range(2)]
    until(lambda: all(f.running() for f in futures))
    assert the_warden()
    for _ in range(20):
        failure(lambda: pools[1].submit(die, "kill").result(within(5)))
    pools[2].terminate()
    failure(lambda: tri.Pool(1, start=start, initializer=os._exit, initargs=(3,)).map(square, [1]))
    healthy(pools[1])
    assert all(f.running() for f in futures)
    pools[0].terminate()
    healthy(pools[1])
    pools[1].close()
    pools[1].join()


# ---------------------------------------------------------------------------------------------
# Forks of the owner, pickles of the pool, pools in tasks
# ---------------------------------------------------------------------------------------------


@matrix()
def test_inherited_pool_raises_at_once_in_a_forked_child(start: str) -> None:
    import faulthandler

    with tri.Pool(2, start=start) as pool:
        future = pool.submit(time.sleep, 0.3)
        done = pool.submit(square, 4)
        done.result(within(5))
        faulthandler.cancel_dump_traceback_later()  # its thread would make fork() warn
        lazy = pool.imap(square, iter(range(100)))
        next(lazy)
        array = pool.submit(bytes, 300_000).result(within(5))
        pid = os.fork()
        if pid == 0:
            code = 0
            try:
                for name, call in {
                    "submit": lambda: pool.submit(square, 1),
                    "map": lambda: pool.map(square, range(5)),
                    "imap": lambda: list(pool.imap(square, range(5))),
                    "map_async": lambda: pool.map_async(square, range(5)),
                    "apply": lambda: pool.apply(square, (1,)),
                    "result": lambda: future.result(5),
                    "next": lambda: list(lazy),
                    "join": lambda: pool.join(),
                }.items():
                    begun = time.monotonic()
                    exc = failure(call)
                    assert type(exc) is RuntimeError and "fork" in str(exc), (name, repr(exc))
                    assert time.monotonic() - begun < within(0.01), name
                assert done.result() == 16 and len(array) == 300_000
                pool.close()
                pool.terminate()
                repr(pool)
                with tri.Pool(1, start=start) as own:
                    healthy(own)
                assert tri.map(square, range(10)) == [x * x for x in range(10)]
                del pool, lazy, array
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert future.result(within(5)) is None
        assert list(lazy) == [x * x for x in range(1, 100)]
        healthy(pool)


@matrix()
def test_forked_child_that_ends_normally_harms_nobody(start: str) -> None:
    import faulthandler

    faulthandler.cancel_dump_traceback_later()  # its thread would be missed in the child
    pool = tri.Pool(2, start=start)
    keep = pool.submit(time.sleep, 0.3)
    pid = os.fork()
    if pid == 0:
        sys.exit(3)  # with atexit functions and all
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert keep.result(within(5)) is None
    healthy(pool)
    pool.terminate()


@matrix("fork", "forkserver", "spawn")
def test_pickling_a_pool_names_the_cause(start: str) -> None:
    import pickle

    with tri.Pool(1, start=start) as pool:
        for call in (
            lambda: pickle.dumps(pool),
            lambda: pool.submit(repr, pool).result(within(5)),
            lambda: pool.map(repr, [pool]),
            lambda: pool.submit(lambda: pool).result(within(5)),
        ):
            exc = failure(call)
            assert isinstance(exc, (TypeError, pickle.PicklingError)), repr(exc)
            assert "Pool" in str(exc) and "belongs to the process that opened it" in str(exc), exc
        healthy(pool)


@matrix("fork", "forkserver", limit=40.0)
def test_nested_pools_work_and_die_with_their_worker(start: str) -> None:
    def inner(n: int) -> list[int]:
        with tri.Pool(2, start=start) as pool:
            return pool.map(square, range(n))

    def default(n: int) -> list[int]:
        return tri.map(square, range(n))

    def hold(path: str) -> None:
        pool = tri.Pool(2, start=start)
        futures = [pool.submit(time.sleep, 600) for _ in range(2)]
        until(lambda: all(f.running() for f in futures))
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        threading.Event().wait()

    with tri.Pool(2, start=start) as pool:
        pids_of(pool)
        assert pool.map(inner, [5, 6, 7], chunk=1) == [[x * x for x in range(n)] for n in (5, 6, 7)]
        assert pool.submit(default, 9).result(within(10)) == [x * x for x in range(9)]
        pool_pids = pids_of(pool)
        # Default pools of the workers stay for their next tasks.
        for pid in pool_pids:
            os.kill(pid, signal.SIGKILL)
        healthy(pool)
        before = 3  # the warden and two workers
        until(lambda: len(own_processes()) == before, 2.0, "those pools are gone")
        with marks() as told:
            future = pool.submit(hold, told.path)
            pid = int(until(lambda: told.lines(), 20.0)[0])
            assert len(own_processes()) >= before + 3
            os.kill(pid, signal.SIGKILL)
            assert type(future.exception(within(5))) is tri.WorkerLost
            until(lambda: len(own_processes()) <= before, 2.0, "the nested pool is gone")
        healthy(pool)


@matrix("fork", "forkserver", limit=40.0)
def test_nested_pools_open_while_other_workers_die(start: str) -> None:
    def inner(n: int) -> int:
        with tri.Pool(1, start=start) as pool:
            return pool.submit(square, n).result(20)

    with tri.Pool(2, start=start) as pool:
        for i in range(5):
            future = pool.submit(inner, i)
            for _ in range(4):
                failure(lambda: pool.submit(die, "kill").result(within(5)))
            assert future.result(within(20)) == i * i
        healthy(pool)
