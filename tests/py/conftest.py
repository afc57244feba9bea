# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the Python API share: pools of every kind, scripts run as a user runs them.

Every test has a time limit.  pytest-timeout sets it by a signal (pyproject.toml), because a timer
thread would change what the tests that count threads see; where that plug-in is not installed,
faulthandler's own timer prints all stacks and ends the run.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 120
HAS_TIMEOUT_PLUGIN = False

PROCESSES = ("fork", "forkserver", "spawn")
WAYS = (*PROCESSES, "thread", "serial")


def pytest_configure(config: pytest.Config) -> None:
    global HAS_TIMEOUT_PLUGIN
    HAS_TIMEOUT_PLUGIN = config.pluginmanager.hasplugin("timeout")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    if not HAS_TIMEOUT_PLUGIN:
        faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        if not HAS_TIMEOUT_PLUGIN:
            faulthandler.cancel_dump_traceback_later()


def open_pool(way: str, workers: int = 2, **options: Any) -> Any:
    """A pool by one word: a start method, "thread" or "serial"."""
    import trireme as tri

    if way in PROCESSES:
        return tri.Pool(workers, start=way, **options)
    return tri.Pool(workers, kind=way, **options)


@pytest.fixture(params=WAYS)
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A pool of two workers, of every kind."""
    with open_pool(request.param) as p:
        p.way = request.param
        yield p


@pytest.fixture(params=(*PROCESSES, "thread"))
def workers(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A pool of two workers that work beside the caller."""
    with open_pool(request.param) as p:
        p.way = request.param
        yield p


@pytest.fixture(params=PROCESSES)
def processes(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A pool of two worker processes."""
    with open_pool(request.param) as p:
        p.way = request.param
        yield p


@pytest.fixture
def fast() -> Iterator[Any]:
    """One pool of two worker processes, for what does not depend on how they start."""
    with open_pool("forkserver") as p:
        yield p


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something is so; fail if it never is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became so"
        time.sleep(0.002)


@pytest.fixture
def eventually() -> Callable[..., None]:
    return until


def live_bytes(pool: Any) -> int:
    gc.collect()
    return int(pool.stats()["arena_live_bytes"])


def settle(pool: Any, most: int | None = None) -> int:
    """Wait until the arena holds at most *most* bytes; without, whatever it settles at.

    Blocks of a worker's that the owner has let go of are counted until that worker looks around,
    which it does between tasks: so there are a few.
    """
    seen: list[int] = []

    def calm() -> bool:
        pool.map(time.sleep, [0.002] * 4, chunk=1)
        pool._forget()
        seen.append(live_bytes(pool))
        if most is not None:
            return seen[-1] <= most
        return len(seen) > 3 and len(set(seen[-3:])) == 1

    try:
        until(calm)
    except AssertionError:
        pytest.fail(f"the arena holds {seen[-1]} bytes, allowed are {most}")
    return seen[-1]


def script_env(**extra: str) -> dict[str, str]:
    """This process's environment, with the package under test found first."""
    import trireme

    package = str(Path(trireme.__file__).resolve().parents[1])
    old = os.environ.get("PYTHONPATH")
    path = package if not old else package + os.pathsep + old
    return {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", **extra}


class Script:
    """A program in a process group of its own; leaving the block ends whatever is left of it."""

    def __init__(self, path: Path, args: tuple[str, ...], flags: tuple[str, ...]) -> None:
        self.child = subprocess.Popen(
            [sys.executable, *flags, str(path), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=script_env(),
            cwd=path.parent,
            start_new_session=True,
        )

    def line(self) -> str:
        """The next line it prints; what it said on stderr if it ended instead."""
        assert self.child.stdout is not None
        text = self.child.stdout.readline()
        if not text:
            out, err = self.child.communicate(timeout=20)
            pytest.fail(f"the script ended with {self.child.returncode}:\n{out}\n{err}")
        return text.rstrip("\n")

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the whole group."""
        os.killpg(self.child.pid, signal.SIGINT)

    def end(self, seconds: float = 60) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; fails with the stacks if it hangs."""
        try:
            out, err = self.child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.child.send_signal(signal.SIGABRT)
            out, err = self.child.communicate(timeout=20)
            pytest.fail(f"the script hung:\n{out}\n{err}")
        return self.child.returncode, out, err

    def group(self) -> list[int]:
        """Processes left in its session, itself excepted."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self.child.pid:
                continue
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.child.pid and fields[0] not in "ZX":
                found.append(int(entry))
        return found

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        for pid in self.group():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for stream in (self.child.stdout, self.child.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def start_script(tmp_path: Path) -> Callable[..., Script]:
    """start_script(source, *args): run it as a script file in an empty folder."""

    def start(source: str, *args: str, flags: tuple[str, ...] = ()) -> Script:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(source))
        return Script(path, args, flags)

    return start


@pytest.fixture
def run_script(start_script: Callable[..., Script]) -> Callable[..., tuple[str, str]]:
    """run_script(source, *args): run it to its end; stdout and stderr of a success."""

    def run(source: str, *args: str, flags: tuple[str, ...] = (), code: int = 0) -> Any:
        with start_script(source, *args, flags=flags) as script:
            got, out, err = script.end()
            assert got == code, f"exit code {got}\n{out}\n{err}"
            return out, err

    return run
