# SPDX-License-Identifier: BSD-3-Clause
"""What CPython's own suites found: the executors and modules keep these parts of the contract."""

from __future__ import annotations

import concurrent.futures.process as original
import multiprocessing
import pickle
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import trireme as tri
import trireme.futures.process
import trireme.futures.thread
import trireme.multiprocessing
from conftest import PROCESSES
from trireme.futures import ProcessPoolExecutor, ThreadPoolExecutor

LONG = 60


@pytest.fixture(params=PROCESSES)
def context(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield multiprocessing.get_context(request.param)


def exit_with(code: int) -> None:
    sys.exit(code)


def exit_in_a_pool_of_its_own(code: int) -> str:
    with tri.Pool(1, start="fork") as pool:
        exc = pool.submit(exit_with, code).exception(LONG)
    return type(exc).__name__


class Unreadable:
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return exit_with, (3,)


class Wrong:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def make(kind: Any) -> Any:
    return kind()


def read_wrong() -> str:
    try:
        pickle.loads(pickle.dumps(Wrong()))
    except ValueError:
        return "read"
    return "not reached"


def read_with_ours() -> str:
    with tri.Pool(1) as pool:
        exc = pool.submit(Wrong).exception(LONG)
    return type(exc).__name__


def test_an_exit_of_a_task_arrives_as_itself(context: Any) -> None:
    with ProcessPoolExecutor(1, context) as executor:
        with pytest.raises(SystemExit) as caught:
            executor.submit(exit_with, 7).result(LONG)
        assert caught.value.code == 7
        with pytest.raises(SystemExit):
            list(executor.map(exit_with, [1, 2], chunksize=2, timeout=LONG))
        assert executor.submit(abs, -1).result(LONG) == 1
    with ThreadPoolExecutor(1) as threads:
        assert type(threads.submit(exit_with, 7).exception(LONG)) is SystemExit


def test_a_native_pool_inside_a_task_keeps_its_own_rules() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as executor:
        assert executor.submit(exit_in_a_pool_of_its_own, 7).result(LONG) == "RemoteError"


@pytest.mark.parametrize("bad", [Unreadable(), Wrong()], ids=["exit", "error"])
def test_a_call_that_cannot_be_unpickled_breaks_the_executor(context: Any, bad: Any) -> None:
    with ProcessPoolExecutor(2, context) as executor:
        with pytest.raises(original.BrokenProcessPool):
            executor.submit(id, bad).result(LONG)
        with pytest.raises(original.BrokenProcessPool):
            executor.submit(abs, -1)


def test_with_isolate_it_fails_alone(context: Any) -> None:
    with ProcessPoolExecutor(2, context, on_crash="isolate") as executor:
        bad = executor.submit(id, Wrong())
        assert type(bad.exception(LONG)) is ValueError
        assert executor.submit(abs, -1).result(LONG) == 1


@pytest.mark.parametrize("bad", [Unreadable, Wrong], ids=["exit", "error"])
def test_a_result_that_cannot_be_unpickled_breaks_the_executor(context: Any, bad: Any) -> None:
    with ProcessPoolExecutor(2, context) as executor:
        future = executor.submit(bad)
        with pytest.raises(original.BrokenProcessPool) as caught:
            future.result(LONG)
        assert caught.value.__cause__ is not None
        assert type(future.exception(LONG)) is original.BrokenProcessPool
        with pytest.raises(original.BrokenProcessPool):
            executor.submit(abs, -1)
    with ProcessPoolExecutor(2, context) as executor:
        with pytest.raises(original.BrokenProcessPool):
            list(executor.map(make, [bad] * 3))
    with ProcessPoolExecutor(2, context, on_crash="isolate") as executor:
        error = executor.submit(bad).exception(LONG)
        assert error is not None and not isinstance(error, original.BrokenProcessPool)
        assert executor.submit(abs, -1).result(LONG) == 1


def test_what_a_task_unpickles_itself_breaks_nothing(context: Any) -> None:
    with ProcessPoolExecutor(1, context) as executor:
        assert executor.submit(read_wrong).result(LONG) == "read"
        assert executor.submit(read_with_ours).result(LONG) == "ValueError"


def test_only_the_workers_that_the_original_would_have_are_shown() -> None:
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(4, context) as executor, ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            assert executor.submit(abs, -1).result(LONG) == 1
            assert threads.submit(abs, -1).result(LONG) == 1
        assert len(executor._processes or {}) == 1
        assert len(threads._threads) == 1
        go = threading.Event()
        waiting = [threads.submit(go.wait, LONG) for _ in range(3)]
        assert len(threads._threads) == 3
        go.set()
        assert all(future.result(LONG) for future in waiting)
        assert list(executor.map(abs, range(9), timeout=LONG)) == list(range(9))
        assert len(executor._processes or {}) == 4


def test_modules_have_what_else_the_originals_have() -> None:
    assert trireme.futures.process._check_system_limits is original._check_system_limits
    assert trireme.futures.thread._worker
    assert trireme.multiprocessing.process.current_process()
    assert trireme.multiprocessing.util.get_logger()
    with pytest.raises(AttributeError):
        _ = trireme.multiprocessing.no_such_module
    # CPython compares like this: names of modules do not count, others are exported.
    hidden = {"annotations", "SUBDEBUG", "SUBWARNING"}
    everything = vars(trireme.multiprocessing).items()
    shown = {name for name, value in everything if not isinstance(value, types.ModuleType)}
    public = {n for n in shown if not n.startswith("_")} - hidden
    assert public == set(trireme.multiprocessing.__all__) - {"reducer"}
