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
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("doorslib", "futureslib")

LIMIT_S = 120
HAS_TIMEOUT_PLUGIN = False

PROCESSES = ("fork", "forkserver", "spawn")
WAYS = (*PROCESSES, "thread", "serial")


def pytest_configure(config: pytest.Config) -> None:
    global HAS_TIMEOUT_PLUGIN
    HAS_TIMEOUT_PLUGIN = config.pluginmanager.hasplugin("timeout")


# What `make asan` runs with the extension under AddressSanitizer, by file: test functions, or None
# for all.  Of the start methods one will do, since the tests that take `fast` are of another:
# workers that start slowly would add minutes and no path through the extension.
SLOW_START = re.compile(r"\[(spawn|forkserver)")
ASAN: dict[str, frozenset[str] | None] = {
    "test_codec.py": None,
    "test_values.py": frozenset(
        {
            "test_values_of_every_size_come_back_whole",
            "test_arguments_larger_than_the_arena_are_a_memory_error_and_results_arrive",
            "test_arrays_arrive_equal_whatever_their_layout",
            "test_result_arrays_are_writable",
            "test_large_results_are_views_and_memory_comes_back_with_the_last",
            "test_argument_memory_comes_back_when_the_task_has_ended",
            "test_an_array_that_a_task_keeps_stays_valid",
            "test_result_that_is_the_argument_outlives_it",
            "test_buffers_that_are_not_numpy",
            "test_what_would_end_this_process_ends_one_future",
            "test_exception_that_cannot_travel_is_told_by_name_and_message",
            "test_unpicklable_argument_fails_its_future_and_names_the_path",
            "test_unpicklable_item_of_imap_fails_at_its_place",
            "test_unpicklable_result_fails_its_future_and_names_the_path",
            "test_argument_that_does_not_unpickle_fails_its_future",
            "test_result_that_does_not_unpickle_fails_its_future",
        }
    ),
    "test_maps.py": frozenset(
        {
            "test_map_gives_results_in_order_whatever_the_chunk",
            "test_map_takes_any_iterable_and_any_item",
            "test_caller_works_too_and_results_are_the_same",
            "test_caller_error_ends_the_map_and_the_pool_goes_on",
            "test_imap_goes_on_behind_an_item_that_fails",
            "test_imap_unordered_reports_each_failure_once",
            "test_result_that_does_not_unpickle_fails_alone",
            "test_arrays_beside_a_result_that_does_not_unpickle_arrive",
            "test_what_two_results_have_in_common_fails_both_and_no_other",
            "test_imap_item_that_kills_its_worker_fails_alone",
            "test_input_that_raises_is_told_after_what_came_before_it",
            "test_starmap_item_that_cannot_be_spread_fails",
            "test_dropped_iterator_cancels_what_has_not_started",
        }
    ),
    "test_maps_options.py": frozenset(
        {"test_map_async_callbacks_are_called_once_without_anybody_waiting"}
    ),
    "test_futures.py": frozenset(
        {
            "test_arguments_and_keywords_arrive",
            "test_failure_is_the_exception_and_is_raised_each_time",
            "test_cancel_calls_the_callbacks_and_wakes_waiters",
            "test_as_completed_gives_each_once_and_the_quick_first",
            "test_callback_may_submit_and_wait",
            "test_await_gather_and_wrap_future",
            "test_futures_and_results_are_freed",
            "test_results_taken_in_any_order",
            "test_future_of_a_terminated_pool_ends",
        }
    ),
    "test_share.py": None,
    "test_deaths.py": frozenset({"test_a_retry_that_works_is_a_result"}),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what ASAN names.  A name in it that no test has would silently test nothing."""
    found: dict[str, set[str]] = {}
    for item in items:
        name = getattr(item, "originalname", None) or item.name
        wanted = ASAN.get(item.path.name, frozenset())
        found.setdefault(item.path.name, set()).add(name)
        if (wanted is None or name in wanted) and not SLOW_START.search(item.name):
            item.add_marker("asan")
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    if whole and config.getoption("markexpr") == "asan":
        for file, wanted in ASAN.items():
            missing = (wanted or set()) - found.get(file, set())
            if missing or file not in found:
                raise pytest.UsageError(f"{file} has no test {', '.join(sorted(missing))}")


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

    if way == "fork" and "ASAN_OPTIONS" in os.environ:
        # Opening a pool hung here once.  It is thought that a fork while another thread is inside
        # of ASan's allocator, which has no fork handlers in gcc 12, leaves the child a lock that
        # nobody opens; not proven.  So threads of earlier tests end first.
        end = time.monotonic() + 5
        while threading.active_count() > 1 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.05)
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


def pids_of(pool: Any) -> list[int]:
    """All workers, once they are up: a pool opens before they are."""
    until(lambda: len(pool.stats()["pids"]) == pool.workers)
    return list(pool.stats()["pids"])


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


def ends_with(code: str, exitcode: int) -> None:
    """Run *code* by an interpreter of its own; it ends with *exitcode*."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=script_env()
    )
    assert done.returncode == exitcode, done.stderr


def original_keeps_forks_locks() -> None:
    """Skip where the standard library's locks made for forks let themselves be sent anywhere."""
    import multiprocessing

    if not hasattr(multiprocessing.get_context("fork").Lock(), "_is_fork_ctx"):
        pytest.skip("this Python's locks refuse nothing: they do so since 3.11.5")


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
