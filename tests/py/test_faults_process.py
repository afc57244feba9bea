# SPDX-License-Identifier: BSD-3-Clause
"""The fault matrix, first part: tasks that change their process.

Descriptors, signals, limits, streams, modules, forks: what a task does to its worker is no harm to
the next task, nor to the pool's memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time

import trireme as tri
from faultlib import die, failure, healthy, live_bytes, matrix, pids_of, square, within


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

    null = os.open("/dev/null", os.O_RDONLY)
    with tri.Pool(1, start=start) as pool:
        pool.submit(os.read, null, 0).exception(within(5))
        live = live_bytes(pool, close_all, open_in_their_place, speak, die)
        for _ in range(3):
            pool.submit(close_all).result(within(5))
            assert pool.submit(open_in_their_place).result(within(5)) == 200
            assert len(pool.submit(speak).result(within(5))) == 200_000
            # Whatever has the owner's number there: that is the task's own affair.
            exc = pool.submit(os.read, null, 0).exception(within(5))
            assert exc is None or isinstance(exc, OSError), exc
        exc = failure(lambda: pool.submit(die, "kill").result(within(5)))
        assert type(exc) is tri.WorkerLost
        pool.submit(speak).result(within(5))
        healthy(pool, live)
    os.close(null)


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
def test_output_never_goes_into_files_that_took_the_place_of_standard_streams(start: str) -> None:
    def take_their_place() -> list[str]:
        os.closerange(0, 1024)
        files = [tempfile.TemporaryFile("w+") for _ in range(3)]
        print("out")
        sys.stdout.flush()
        print("err", file=sys.stderr, flush=True)
        for file in files:
            file.seek(0)
        return [file.read() for file in files]

    with tri.Pool(1, start=start) as pool:
        assert pool.submit(take_their_place).result(within(5)) == ["", "", ""]


@matrix("fork", "forkserver", "spawn")
def test_a_worker_whose_descriptors_were_closed_is_replaced_though_it_says_nothing(
    start: str,
) -> None:
    def close_all() -> int:
        os.closerange(0, 1024)
        return os.getpid()

    with tri.Pool(1, start=start) as pool:
        for _ in range(3):
            pid = pool.submit(close_all).result(within(5))
            healthy(pool)
            end = time.monotonic() + within(5)
            while pid in pids_of(pool):
                assert time.monotonic() < end, "the worker is still there"
                time.sleep(0.01)
        assert pool.stats()["deaths"] == 0
        assert pool.submit(os.getpid).result(within(5)) != pid


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

    def limits() -> None:  # from here on nothing can be imported
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

    # Each worker has faultlib before it can no longer import it: the maps below may well be all
    # one worker's, and the other then needs the module for the first time when it is alone.
    with tri.Pool(2, start=start, initializer=square, initargs=(1,)) as pool:
        for change in (directory, language, limits, streams, handlers, modules, threads):
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
        assert pool.submit(fork_and_return).result(within(5)) == 0
        healthy(pool)
        assert pool.stats()["completed"] == pool.stats()["submitted"]
        assert pool.stats()["deaths"] == 0
