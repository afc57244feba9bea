# SPDX-License-Identifier: BSD-3-Clause
"""The fault matrix, first part: faults inside a task, its arguments and its result.

Each row breaks one thing in the middle of other work and then asks for three things: the guilty
future has one precise exception, every other future its value, and the pool is whole again with
not a byte of its arena lost.
"""

from __future__ import annotations

import contextlib
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
    matrix,
    own_processes,
    pid_in_task,
    pids_of,
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
        out = []
        while True:
            try:
                out.append(next(iterator))
            except StopIteration:
                return out
            except Exception as exc:
                out.append(exc)
            assert len(out) <= 40

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
            assert len({v for v in got if isinstance(v, int)}) <= 35
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
        live = live_bytes(pool, lambda: time.sleep(0))
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
        healthy(pool, live + 256)  # time.sleep is a function more


# ---------------------------------------------------------------------------------------------
# A task raises what it should not
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_exits_and_interrupts_are_results(start: str) -> None:
    def leave(code: object) -> None:
        sys.exit(code)

    def interrupt() -> None:
        raise KeyboardInterrupt("in a task")

    class Odd(BaseException):
        pass

    def odd() -> None:
        raise Odd("base")

    def generator() -> None:
        raise GeneratorExit

    with tri.Pool(2, start=start) as pool:
        pids = pids_of(pool)
        for call, name in (
            (lambda: pool.submit(leave, 3).result(5), "SystemExit"),
            (lambda: pool.map(leave, [0, 1]), "SystemExit"),
            (lambda: pool.submit(interrupt).result(5), "KeyboardInterrupt"),
            (lambda: pool.submit(odd).result(5), "Odd"),
            (lambda: pool.submit(generator).result(5), "GeneratorExit"),
        ):
            exc = failure(call)
            assert type(exc) is tri.RemoteError, (name, exc)
            assert name in str(exc), exc
            assert name in str(exc.__cause__), exc.__cause__
        assert isinstance(exc.original, GeneratorExit)
        healthy(pool)
        assert pids_of(pool) == pids, "a worker was lost"


@matrix()
def test_exceptions_that_travel_badly(start: str) -> None:
    class TwoArguments(Exception):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(f"{code}: {text}")
            self.code = code

    class HoldsLock(Exception):
        def __init__(self) -> None:
            super().__init__("holds one")
            self.lock = threading.Lock()

    class Cyclic(Exception):
        pass

    class NoText(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    class ExitsAtPickle(Exception):
        def __reduce__(self) -> object:
            raise SystemExit(5)

    class ExitsAtUnpickle(Exception):
        def __reduce__(self) -> object:
            return sys.exit, (5,)

    class WrongAtUnpickle(Exception):
        def __reduce__(self) -> object:
            return int, ("7",)

    def two() -> None:
        raise TwoArguments(7, "seven")

    def lock() -> None:
        raise HoldsLock

    def cyclic() -> None:
        exc = Cyclic("round")
        exc.me = exc  # type: ignore[attr-defined]
        raise exc from exc

    def deep() -> None:
        exc = None
        for i in range(2000):
            new = ValueError(i)
            new.__cause__ = exc
            exc = new
        raise exc

    def huge() -> None:
        raise ValueError("x" * 5_000_000)

    def raise_it(kind: type[BaseException]) -> None:
        raise kind

    with tri.Pool(2, start=start) as pool:
        pids = pids_of(pool)
        exc = failure(lambda: pool.submit(two).result(5))
        assert type(exc).__name__ == "TwoArguments" and str(exc) == "7: seven", repr(exc)
        assert exc.code == 7
        assert "raise TwoArguments" in str(exc.__cause__) or "in two" in str(exc.__cause__)
        for task, name in ((lock, "HoldsLock"), (cyclic, "Cyclic"), (deep, "ValueError")):
            exc = failure(lambda t=task: pool.submit(t).result(within(5)))
            assert isinstance(exc, (tri.RemoteError, Exception)), exc
            assert name in (type(exc).__name__, getattr(exc, "type_name", "").split(".")[-1]), exc
        exc = failure(lambda: pool.submit(huge).result(within(5)))
        assert type(exc) is ValueError
        for kind in (NoText, ExitsAtPickle, ExitsAtUnpickle, WrongAtUnpickle):
            exc = failure(lambda k=kind: pool.submit(raise_it, k).result(within(5)))
            assert isinstance(exc, Exception), exc
            assert kind.__name__ in repr(exc) + type(exc).__name__, repr(exc)
        healthy(pool)
        assert pids_of(pool) == pids, "a worker was lost"


# ---------------------------------------------------------------------------------------------
# Pickling
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_what_cannot_be_pickled_fails_alone(start: str) -> None:
    class RaisesAtPickle:
        def __reduce__(self) -> object:
            raise ZeroDivisionError("at pickle")

    class ExitsAtPickle:
        def __reduce__(self) -> object:
            raise SystemExit(4)

    def lock_result() -> object:
        return {"deep": [1, threading.Lock()]}

    def generator_result() -> object:
        return (i for i in range(3))

    def raises_result() -> object:
        return RaisesAtPickle()

    def exits_result() -> object:
        return ExitsAtPickle()

    with tri.Pool(2, start=start) as pool:
        pids = pids_of(pool)
        good = [pool.submit(square, i) for i in range(10)]
        for bad in ({"deep": [1, threading.Lock()]}, (i for i in range(3)), RaisesAtPickle()):
            exc = failure(lambda b=bad: pool.submit(len, b).result(5))
            assert isinstance(exc, Exception), exc
            assert not isinstance(exc, tri.WorkerLost)
            failure(lambda b=bad: pool.map(len, [1, b, 2]))
            failure(lambda b=bad: list(pool.imap(len, [[1], b, [2]])))
        exc = failure(lambda: pool.submit(len, {"deep": [1, threading.Lock()]}).result(5))
        assert "['deep'][1]" in str(exc), exc
        for task in (lock_result, generator_result, raises_result, exits_result):
            exc = failure(lambda t=task: pool.submit(t).result(5))
            assert isinstance(exc, Exception), (task.__name__, exc)
            assert not isinstance(exc, tri.WorkerLost), exc
        assert [f.result(5) for f in good] == [i * i for i in range(10)]
        healthy(pool)
        assert pids_of(pool) == pids, "a worker was lost"


@matrix("fork", "forkserver", "spawn")
def test_arguments_that_fail_at_unpickling(start: str) -> None:
    def boom() -> None:
        raise ZeroDivisionError("at unpickle")

    class Reduces:
        def __init__(self, *how: object) -> None:
            self.how = how

        def __reduce__(self) -> object:
            return self.how[0], tuple(self.how[1:])

    with tri.Pool(2, start=start) as pool:
        good = [pool.submit(square, i) for i in range(10)]
        exc = failure(lambda: pool.submit(repr, Reduces(boom)).result(5))
        assert type(exc) is ZeroDivisionError and "at unpickle" in str(exc), exc
        exc = failure(lambda: pool.map(repr, [1, Reduces(boom), 2], chunk=1))
        assert type(exc) is ZeroDivisionError, exc
        exc = failure(lambda: pool.submit(repr, Reduces(sys.exit, 4)).result(5))
        assert type(exc) is tri.RemoteError and "SystemExit" in str(exc), exc
        assert pool.stats()["deaths"] == 0
        exc = failure(lambda: pool.submit(repr, Reduces(os._exit, 7)).result(5))
        assert type(exc) is tri.WorkerLost and exc.exitcode == 7, exc
        exc = failure(lambda: pool.map(repr, [1, Reduces(os._exit, 8), 2], chunk=1))
        assert type(exc) is tri.WorkerLost and exc.exitcode == 8, exc
        assert [f.result(5) for f in good] == [i * i for i in range(10)]
        healthy(pool)


@matrix()
def test_functions_that_fail_at_unpickling(start: str) -> None:
    class Task:
        def __init__(self, how: object, *args: object) -> None:
            self.how = how
            self.args = args

        def __call__(self, x: int) -> int:
            return x

        def __reduce__(self) -> object:
            return self.how, self.args

    def boom() -> None:
        raise ZeroDivisionError("function at unpickle")

    with tri.Pool(2, start=start) as pool:
        for _ in range(2):
            exc = failure(lambda: pool.submit(Task(boom), 1).result(5))
            assert type(exc) is ZeroDivisionError, exc
        exc = failure(lambda: pool.map(Task(os._exit, 6), range(4)))
        assert type(exc) is tri.WorkerLost and exc.exitcode == 6, exc
        healthy(pool)


@matrix("fork", "forkserver", "spawn")
def test_results_that_fail_at_unpickling_in_the_owner(start: str) -> None:
    owner = os.getpid()

    def only_here(how: str) -> object:
        if os.getpid() != owner:
            return "made in a worker"
        if how == "exit":
            raise SystemExit(5)
        raise ZeroDivisionError("in the owner")

    class Bad:
        def __init__(self, how: str) -> None:
            self.how = how

        def __reduce__(self) -> object:
            return only_here, (self.how,)

    def make(how: str) -> object:
        return Bad(how) if how else 11

    with tri.Pool(2, start=start) as pool:
        good = [pool.submit(square, i) for i in range(10)]
        for how in ("raise", "exit"):
            bad = pool.submit(make, how)
            later = pool.submit(make, "")
            assert later.result(5) == 11, "somebody else's bad result is not mine"
            exc = failure(lambda f=bad: f.result(5))
            assert isinstance(exc, Exception), f"{exc!r} would end the program"
            assert ("ZeroDivisionError" if how == "raise" else "SystemExit") in repr(exc), repr(exc)
            exc = failure(lambda h=how: pool.map(make, ["", h, ""]))
            assert isinstance(exc, Exception), exc
            exc = failure(lambda h=how: list(pool.imap(make, ["", h, ""])))
            assert isinstance(exc, Exception), exc
            exc = failure(lambda h=how: pool.map_async(make, ["", h, ""]).get(5))
            assert isinstance(exc, Exception), exc
        assert [f.result(5) for f in good] == [i * i for i in range(10)]
        healthy(pool)
        assert pool.stats()["deaths"] == 0


@matrix()
def test_bad_items_of_an_iterator_do_not_take_their_neighbours(start: str) -> None:
    def boom() -> None:
        raise ZeroDivisionError("at unpickle")

    class Bad:
        def __reduce__(self) -> object:
            return boom, ()

    def task(x: object) -> object:
        return threading.Lock() if x == 5 else (x,)

    def drain(iterator: object) -> list[object]:
        out = []
        while True:
            try:
                out.append(next(iterator))
            except StopIteration:
                return out
            except Exception as exc:
                out.append(exc)
            assert len(out) <= 12

    with tri.Pool(2, start=start) as pool:
        for chunk in (1, 4, None):
            got = drain(pool.imap(task, range(12), chunk=chunk))
            assert len(got) == 12
            assert isinstance(got[5], TypeError), got[5]
            assert [g for i, g in enumerate(got) if i != 5] == [(i,) for i in range(12) if i != 5]
        items = [0, 1, Bad(), 3, 4, 6, 7, 8]
        got = drain(pool.imap(task, items, chunk=1))
        assert type(got[2]) is ZeroDivisionError
        others = [g for i, g in enumerate(got) if i != 2]
        assert others == [(0,), (1,), (3,), (4,), (6,), (7,), (8,)]
        got = drain(pool.imap(task, items, chunk=4))
        assert len(got) == 8 and all(type(g) is ZeroDivisionError for g in got[:4]), got
        assert got[4:] == [(4,), (6,), (7,), (8,)]


# ---------------------------------------------------------------------------------------------
# Stopped and slow workers
# ---------------------------------------------------------------------------------------------


@matrix()
def test_stopped_worker_that_goes_on_loses_nothing(start: str) -> None:
    with tri.Pool(2, start=start) as pool:
        futures = [pool.submit(time.sleep, 0.2) for _ in range(2)]
        until(lambda: all(f.running() for f in futures))
        pids = pool.stats()["pids"]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(state_of(pid) == "T" for pid in pids))
        rest = [pool.submit(square, i) for i in range(20)]
        assert failure(lambda: rest[0].result(0.3)) is not None
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert [f.result(within(5)) for f in rest] == [i * i for i in range(20)]
        assert [f.result(within(5)) for f in futures] == [None, None]
        assert sorted(pool.stats()["pids"]) == sorted(pids)
        assert pool.stats()["deaths"] == 0


@matrix()
def test_time_limit_kills_a_stopped_worker(start: str) -> None:
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    with tri.Pool(2, start=start) as pool:
        live = live_bytes(pool, stop_not := lambda: None)
        begun = time.monotonic()
        guilty = pool.submit(stop, timeout=0.3)
        rest = [pool.submit(square, i) for i in range(20)]
        assert [f.result(within(5)) for f in rest] == [i * i for i in range(20)]
        exc = failure(lambda: guilty.result(within(5)))
        took = time.monotonic() - begun
        assert type(exc) is tri.TaskTimeout and isinstance(exc, TimeoutError), exc
        assert "stop" in str(exc) and "pid" in str(exc) and "0.3" in str(exc), exc
        assert 0.3 <= took < within(1.3), took
        del stop_not
        healthy(pool)
        assert pool.stats()["timed_out"] == 1 and pool.stats()["lost"] == 0
        assert live > 0


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
        assert pool.map(nap, [0.2] * 8, chunk=4, timeout=within(0.5)) == [0.2] * 8
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
# Tasks that change their process
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_next_task_after_all_descriptors_were_closed(start: str) -> None:
    def close_all() -> int:
        os.closerange(3, 1024)
        return os.getpid()

    def open_in_their_place() -> int:
        fds = [os.open("/dev/null", os.O_RDWR) for _ in range(200)]
        return len(fds)

    def speak() -> bytes:
        print("still heard")
        return bytes(200_000)

    with tri.Pool(1, start=start) as pool:
        live = live_bytes(pool, close_all, open_in_their_place, speak)
        for _ in range(3):
            pool.submit(close_all).result(within(5))
            assert pool.submit(open_in_their_place).result(within(5)) == 200
            assert len(pool.submit(speak).result(within(5))) == 200_000
            assert pool.submit(os.read, os.open("/dev/zero", os.O_RDONLY), 0) is not None
        exc = failure(lambda: pool.submit(die, "kill").result(within(5)))
        assert type(exc) is tri.WorkerLost
        pool.submit(speak).result(within(5))
        healthy(pool)
        assert live > 0


@matrix("fork", "forkserver", "spawn")
def test_output_never_goes_into_a_descriptor_of_the_tasks(start: str) -> None:
    def take_their_place() -> tuple[int, int]:
        import socket

        os.closerange(3, 1024)
        pairs = [socket.socketpair() for _ in range(100)]
        print("for the owner", flush=True)
        got = 0
        for pair in pairs:
            for end in pair:
                end.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    got += len(end.recv(1000))
        return os.getpid(), got

    with tri.Pool(1, start=start) as pool:
        pid, got = pool.submit(take_their_place).result(within(5))
        assert got == 0, "output went into a socket of the task's own"
        healthy(pool)
        assert pid not in pids_of(pool), "a worker that lost its way to the owner is replaced"
        assert pool.stats()["deaths"] == 0


@matrix("fork", "forkserver", "spawn")
def test_signal_mask_does_not_leak_into_the_next_task(start: str) -> None:
    def block() -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM})
        return os.getpid()

    def blocked() -> tuple[int, list[int]]:
        return os.getpid(), sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, []))

    with tri.Pool(1, start=start) as pool:
        pid, at_first = pool.submit(blocked).result(within(5))
        assert at_first == []
        for _ in range(3):
            assert pool.submit(block).result(within(5)) == pid
            assert pool.submit(blocked).result(within(5)) == (pid, []), "the mask leaked"


@matrix()
def test_tasks_that_change_their_process(start: str) -> None:
    def directory() -> None:
        os.chdir("/")
        os.umask(0o777)

    def limits() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def language() -> None:
        import locale

        for name in ("de_DE.UTF-8", "tr_TR.UTF-8", "C"):
            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, name)

    def streams() -> None:
        os.closerange(0, 3)
        sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]

    def handlers() -> None:
        for number in range(1, 65):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)

    def modules() -> None:
        sys.path.clear()
        for name in ("pickle", "signal", "linecache", "traceback"):
            sys.modules.pop(name, None)
        sys.setrecursionlimit(200)

    def threads() -> None:
        for _ in range(20):
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()

    def big(n: int) -> bytes:
        return bytes(n)

    with tri.Pool(2, start=start) as pool:
        for change in (directory, limits, language, streams, handlers, modules, threads):
            for future in [pool.submit(change) for _ in range(4)]:
                assert future.result(within(5)) is None, change
            assert len(pool.submit(big, 300_000).result(within(5))) == 300_000, change
            exc = failure(lambda: pool.submit(divmod, 1, 0).result(within(5)))
            assert type(exc) is ZeroDivisionError, (change, exc)
            healthy(pool)
        exc = failure(lambda: pool.submit(os._exit, 4).result(within(5)))
        assert type(exc) is tri.WorkerLost, exc
        healthy(pool)


@matrix()
def test_task_that_uses_up_its_cpu_limit_is_lost_alone(start: str) -> None:
    def burn() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
        while True:
            pass

    with tri.Pool(1, start=start) as pool:
        exc = failure(lambda: pool.submit(burn).result(within(10)))
        assert type(exc) is tri.WorkerLost and exc.signal in (signal.SIGXCPU, signal.SIGKILL), exc
        healthy(pool)


@matrix()
def test_task_that_forks_and_both_return(start: str) -> None:
    def fork_and_return() -> int:
        pid = os.fork()
        return 0 if pid == 0 else os.waitpid(pid, 0)[1]

    def fork_and_leave() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(5)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with tri.Pool(2, start=start) as pool:
        assert pool.submit(fork_and_leave).result(within(5)) == 5
        # A copy of the worker that comes back from the task must end, not answer a second time.
        status = pool.submit(fork_and_return).result(within(5))
        assert isinstance(status, int)
        healthy(pool)
        assert pool.stats()["completed"] <= pool.stats()["submitted"]


# ---------------------------------------------------------------------------------------------
# Initializers
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_initializer_that_raises_is_one_error(start: str) -> None:
    def init(text: str) -> None:
        raise LookupError(text)

    pool = tri.Pool(2, start=start, initializer=init, initargs=("no such table",))
    seen = set()
    for call in (
        lambda: pool.submit(square, 1).result(within(5)),
        lambda: pool.map(square, range(10)),
        lambda: list(pool.imap(square, range(10))),
    ):
        exc = failure(call)
        assert type(exc) is LookupError and "no such table" in str(exc), repr(exc)
        seen.update(own_processes())
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
# Sizes and back-pressure
# ---------------------------------------------------------------------------------------------


@matrix()
def test_results_and_arguments_of_any_size(start: str) -> None:
    def give(n: int) -> bytes:
        return b"x" * n

    arena = 8 << 20
    with tri.Pool(2, start=start, arena_bytes=arena) as pool:
        live = live_bytes(pool, lambda: give(1))
        sizes = (0, 1, 255, 256, 65535, 65536, arena // 2, arena - 4096, arena, arena + 1)
        for n in (*sizes, 3 * arena):
            got = pool.submit(give, n).result(within(10))
            assert len(got) == n and bytes(got[-1:]) == b"x" * min(n, 1), n
            if n <= arena // 2:
                assert pool.submit(len, b"y" * n).result(within(10)) == n
            elif n >= arena:  # the owner's own part of the arena is the limit of what it sends
                exc = failure(lambda k=n: pool.submit(len, b"y" * k).result(within(10)))
                assert type(exc) is MemoryError and str(n)[:3] in str(exc), exc
            assert [len(x) for x in pool.map(give, [n, 1, n])] == [n, 1, n]
            del got
        assert live > 0
        healthy(pool)
        assert pool.stats()["deaths"] == 0


@matrix()
def test_submit_blocks_when_full_and_goes_on(start: str) -> None:
    with tri.Pool(2, start=start, slots=64) as pool:
        futures = [pool.submit(square, i) for i in range(2000)]
        assert [f.result(within(5)) for f in futures] == [i * i for i in range(2000)]
        blockers = [pool.submit(time.sleep, 60) for _ in range(2)]
        until(lambda: all(f.running() for f in blockers))
        fill = [pool.submit(square, i) for i in range(62)]
        threading.Timer(0.3, lambda: [os.kill(p, 9) for p in pool.stats()["pids"]]).start()
        more = [pool.submit(square, i) for i in range(62)]  # blocks until workers die
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


@pytest.mark.parametrize("how", DEATHS)
def test_message_names_how(how: str) -> None:
    from faultlib import run_row

    run_row(
        f"""
        with tri.Pool(1, start="fork") as pool:
            exc = pool.submit(die, {how!r}).exception(10)
            assert {DEATHS[how]!r} in str(exc) and f"worker pid {{exc.pid}}" in str(exc), exc
        """
    )
