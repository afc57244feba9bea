# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of trireme.futures share: executors of each kind, and tasks for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PROCESSES
from trireme.futures import ProcessPoolExecutor, ThreadPoolExecutor

KINDS = (*PROCESSES, "thread")
LONG = 60


def open_executor(kind: str, workers: int = 2, **options: Any) -> Any:
    if kind == "thread":
        return ThreadPoolExecutor(workers, **options)
    return ProcessPoolExecutor(workers, multiprocessing.get_context(kind), **options)


@pytest.fixture(params=KINDS)
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    with open_executor(request.param) as e:
        yield e


@pytest.fixture(params=PROCESSES)
def start(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def double(x: int) -> int:
    return 2 * x


def fail(x: int = 0) -> None:
    raise ValueError(f"no {x}")  # a comment that tracebacks show


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def touch(path: str) -> None:
    Path(path).touch()


def wait_for_file(path: str) -> bool:
    end = time.monotonic() + LONG
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.002)
    return os.path.exists(path)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def keywords(**kwargs: Any) -> dict[str, Any]:
    return kwargs


_state: Any = None


def set_state(value: Any) -> None:
    global _state
    _state = value


def get_state() -> Any:
    return _state


def try_lock() -> bool:
    return bool(_state.acquire(False))


def lock_then_put(value: int) -> None:
    lock, queue = _state
    with lock:
        queue.put(value)
