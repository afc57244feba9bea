# SPDX-License-Identifier: BSD-3-Clause
"""Signals in workers and wardens: what each does there, and what Python says that it does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trireme as tri
from conftest import PROCESSES, open_pool, pids_of, until
from facadelib import BOTH, module

PATIENCE = 60
STARTS = pytest.mark.parametrize("start", PROCESSES)


def nothing(*_: object) -> None:
    pass


def say_of(*numbers: int) -> list[Any]:
    found = [signal.getsignal(n) for n in numbers]
    return [getattr(f, "__name__", f) for f in found]


@pytest.fixture
def handlers() -> Any:
    """signal.signal(), undone at the end."""
    before: dict[int, Any] = {}

    def put(number: int, handler: Any) -> None:
        before.setdefault(number, signal.signal(number, handler))

    yield put
    for number, handler in before.items():
        signal.signal(number, handler)


# ------------------------------------------------------------------------------------- Ctrl-C


async def one() -> int:
    return 1


def run_a_loop() -> int:
    return asyncio.run(one())


def nap_after_a_loop(path: str) -> str:
    run_a_loop()
    Path(path).touch()
    try:
        time.sleep(0.5)
    except BaseException as exc:
        return repr(exc)
    return "slept"


@STARTS
def test_ctrl_c_does_nothing_and_python_says_so(start: str, tmp_path: Path) -> None:
    with open_pool(start, 1) as pool:
        assert pool.submit(say_of, signal.SIGINT).result(PATIENCE) == [signal.SIG_IGN]
        assert pool.submit(run_a_loop).result(PATIENCE) == 1
        assert pool.submit(say_of, signal.SIGINT).result(PATIENCE) == [signal.SIG_IGN]
        worker = pool.submit(os.getpid).result(PATIENCE)
        task = pool.submit(nap_after_a_loop, str(tmp_path / "begun"))
        until((tmp_path / "begun").exists)
        os.kill(worker, signal.SIGINT)
        assert task.result(PATIENCE) == "slept"
        assert pool.submit(os.getpid).result(PATIENCE) == worker


def interrupted_child() -> int:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as child:
        return child.wait()


@STARTS
def test_programs_that_tasks_start_do_not_inherit_that(start: str) -> None:
    with open_pool(start, 1) as pool:
        assert pool.submit(interrupted_child).result(PATIENCE) == -signal.SIGINT


# ------------------------------------------------------------------- what the program has set up


@STARTS
def test_what_the_whole_group_gets_is_the_owners_to_answer(run_script: Any, start: str) -> None:
    out, err = run_script(
        """
import os, signal, sys, time
import trireme as tri
got = []
numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
           signal.SIGRTMIN)
for number in numbers:
    signal.signal(number, lambda n, _: got.append(n))
with tri.Pool(2, start=sys.argv[1]) as pool:
    pids = set(pool.map(lambda _: time.sleep(0.1) or os.getpid(), range(8), chunk=1))
    for number in numbers:
        os.killpg(0, number)
    while len(got) < len(numbers):
        time.sleep(0.001)
    time.sleep(0.2)
    print(pool.map(abs, range(-3, 0)))
    later = set(pool.map(lambda _: time.sleep(0.1) or os.getpid(), range(8), chunk=1))
    print(sorted(got) == sorted(numbers), later == pids)
""",
        start,
    )
    # With fork the workers have the program's handlers; others die of it, and are replaced.
    assert out.split("\n")[:2] == ["[3, 2, 1]", f"True {start == 'fork'}"]
    assert err == ""


def raise_in_the_owner(*_: object) -> None:
    raise RuntimeError("from a handler")


def send_to_myself(number: int) -> str:
    os.kill(os.getpid(), number)
    time.sleep(0.01)
    return "nothing happened"


@BOTH
def test_a_fork_has_the_programs_handlers(door: str, handlers: Any, tmp_path: Path) -> None:
    path = tmp_path / "told"

    def tell(number: int, _: object) -> None:
        with open(path, "a") as file:
            file.write(f"{number}\n")

    handlers(signal.SIGUSR1, tell)
    handlers(signal.SIGUSR2, raise_in_the_owner)
    with module(door).get_context("fork").Pool(1) as pool:
        found = pool.apply(say_of, (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM))
        assert found == ["tell", "raise_in_the_owner", signal.SIG_DFL]
        with pytest.raises(RuntimeError, match="from a handler"):
            pool.apply(send_to_myself, (signal.SIGUSR2,))
        worker = pool.apply(os.getpid)
        time.sleep(0.1)  # it sleeps for work now
        os.kill(worker, signal.SIGUSR1)
        until(path.exists)
        until(lambda: path.read_text() == f"{int(signal.SIGUSR1)}\n")
        assert pool.apply(os.getpid) == worker


def leave(*_: object) -> None:
    sys.exit(5)


def fail(*_: object) -> None:
    raise LookupError("between tasks")


def install(number: int, handler: Any) -> None:
    signal.signal(number, handler)


@pytest.mark.parametrize("start", PROCESSES)
@pytest.mark.parametrize("handler", [leave, fail])
def test_a_handler_that_raises_between_tasks_ends_the_worker(
    start: str, handler: Any, capsys: Any
) -> None:
    options = {"initializer": install, "initargs": (signal.SIGUSR1, handler)}
    with open_pool(start, 1, **options) as pool:
        worker = pool.submit(os.getpid).result(PATIENCE)
        time.sleep(0.1)  # it sleeps for work now
        os.kill(worker, signal.SIGUSR1)
        until(lambda: pool.submit(os.getpid).result(PATIENCE) != worker)
        assert pool.map(abs, range(-5, 5)) == [abs(x) for x in range(-5, 5)]
        assert pool.stats()["lost"] == 0
    err = capsys.readouterr().err
    assert ("LookupError: between tasks" in err) == (handler is fail)


def test_an_event_loop_of_the_owner_hears_only_of_its_own_signals() -> None:
    async def main() -> list[str]:
        heard: list[str] = []
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.append, "owner's")
        with tri.Pool(1, start="fork") as pool:
            worker = await pool.submit(os.getpid)
            os.kill(worker, signal.SIGUSR1)
            assert await pool.submit(os.getpid) == worker
            await asyncio.sleep(0.2)
        return heard

    assert asyncio.run(main()) == []


@STARTS
def test_what_the_program_ignores_its_workers_ignore(run_script: Any, start: str) -> None:
    out, err = run_script(
        """
import os, signal, sys
import trireme as tri
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
def hang_up():
    os.kill(os.getpid(), signal.SIGHUP)
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
with tri.Pool(1, start=sys.argv[1]) as pool:
    print(pool.submit(hang_up).result(60))
""",
        start,
    )
    assert (out, err) == ("True\n", "")


@STARTS
def test_programs_that_tasks_start_ignore_what_the_program_ignores(
    start: str, run_script: Any
) -> None:
    """A background job of a shell ignores Ctrl-C, and so does what it starts."""
    out, _ = run_script(
        """
import os, signal, subprocess, sys
if len(sys.argv) == 2:
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.execv(sys.executable, [sys.executable, *sys.argv, "again"])
import trireme as tri
def survive(number):
    code = f"import os; os.kill(os.getpid(), {number}); print('survived')"
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout
with tri.Pool(1, start=sys.argv[1]) as pool:
    print(pool.map(survive, [int(signal.SIGINT), int(signal.SIGQUIT)]))
""",
        start,
    )
    assert out == str([b"survived\n"] * 2) + "\n"


def blocked() -> set[int]:
    return {int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def blocks(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.split("SigBlk:")[1].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


@STARTS
def test_workers_block_what_the_program_blocks(start: str) -> None:
    numbers = {signal.SIGUSR1, signal.SIGALRM, signal.SIGTERM}
    with open_pool(start, 1) as pool:  # a fork server is there before
        assert pool.submit(blocked).result(PATIENCE) == set()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        try:
            with open_pool(start, 2) as inner:
                pids = set(pids_of(inner))
                for pid in pids:
                    until(lambda: blocks(pid, signal.SIGUSR1))  # noqa: B023
                    os.kill(pid, signal.SIGUSR1)
                assert inner.submit(blocked).result(PATIENCE) == {int(n) for n in numbers}
                assert inner.map(abs, range(-9, 0)) == list(range(9, 0, -1))
                assert set(pids_of(inner)) == pids
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with open_pool(start, 1) as pool:
            assert pool.submit(blocked).result(PATIENCE) == set()


# ------------------------------------------------------------------------- time limits of tasks


class Limit(Exception):
    """Of a task's own, by SIGALRM."""


def reach_limit(*_: object) -> None:
    raise Limit


def print_until_the_limit(size: int) -> str:
    signal.signal(signal.SIGALRM, reach_limit)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    end = time.monotonic() + 20
    try:
        while time.monotonic() < end:
            print("x" * size)
    except Limit:
        return "limited"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "the limit was lost"


@STARTS
def test_a_limit_by_alarm_holds_while_a_task_prints(start: str, capfd: Any) -> None:
    with open_pool(start, 1) as pool:
        for _ in range(4):
            assert pool.submit(print_until_the_limit, 100).result(PATIENCE) == "limited"
    # Nothing went past the owner's sys.stdout, which pytest has, to descriptor 1 twice.
    assert set(capfd.readouterr().out) <= {"x", "\n"}


@STARTS
def test_a_limit_by_alarm_holds_while_print_waits_for_the_owner(
    start: str, tmp_path: Path, capfd: Any
) -> None:
    def task(path: str) -> str:
        said = print_until_the_limit(60000)
        Path(path).write_text(said)
        return said

    with open_pool(start, 1) as pool:
        result = pool.submit(task, str(tmp_path / "said"))
        until((tmp_path / "said").exists)  # nobody looks for what it prints meanwhile
        assert result.result(PATIENCE) == "limited"
