# SPDX-License-Identifier: BSD-3-Clause
"""An exception that ends a wait for results in the background ends that wait and nothing else."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import open_pool, until

WAYS = ("forkserver", "thread")
SIGNAL = signal.SIGUSR1


class Alarm(Exception):
    """What a program's own handler raises."""


def behind(gate: str, x: int) -> int:
    """x, once there is a file of that name."""
    while not os.path.exists(gate):
        time.sleep(0.002)
    return x


@contextmanager
def handler(raised: type[BaseException]) -> Iterator[list[int]]:
    """Our signal raises that; how often it was handled."""
    calls: list[int] = []

    def handle(number: int, frame: Any) -> None:
        calls.append(number)
        raise raised("from the handler")

    before = signal.signal(SIGNAL, handle)
    try:
        yield calls
    finally:
        signal.signal(SIGNAL, before)


def main_is_in(*names: str) -> bool:
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return frame.f_globals["__name__"].startswith("trireme.") and frame.f_code.co_name in names


def signal_main_in(*names: str) -> threading.Thread:
    """A thread that sends the signal to this one when it is in such a method of ours."""

    def send() -> None:
        until(lambda: main_is_in(*names))
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


CALLS: dict[str, Callable[[Any], object]] = {
    "get": lambda result: result.get(),
    "get(timeout)": lambda result: result.get(60),
    "wait": lambda result: result.wait(),
    "wait(timeout)": lambda result: result.wait(60),
}


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, Alarm])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", WAYS)
def test_a_wait_that_is_interrupted_leaves_the_map_alone(
    way: str, call: str, raised: type[BaseException], watched: bool, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    told: list[Any] = []
    failed: list[Any] = []
    progress: list[tuple[int, int]] = []
    options: dict[str, Any] = {}
    if watched:
        options = {"callback": told.append, "error_callback": failed.append}
        options["progress"] = lambda *counts: progress.append(counts)
    with open_pool(way) as pool, handler(raised):
        result = pool.map_async(behind, [str(gate)] * 8, range(8), chunk=1, **options)
        for _ in range(2):
            sender = signal_main_in("get", "wait")
            with pytest.raises(raised, match="from the handler"):
                CALLS[call](result)
            sender.join()
            assert not result.ready()
        gate.touch()
        assert result.get(60) == list(range(8))
        assert result.get() == list(range(8)) and result.ready() and result.successful()
        if watched:
            until(lambda: told)
            assert told == [list(range(8))] and failed == [] and progress[-1] == (8, 8)
        assert pool.stats()["cancelled"] == 0


@pytest.mark.parametrize("raised", [KeyboardInterrupt, Alarm])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_handler_raises_comes_out_of_ready(
    way: str, raised: type[BaseException], tmp_path: Path
) -> None:
    gate, seen, over = tmp_path / "gate", 0, threading.Event()

    def send() -> None:
        try:
            for sent in range(30):
                until(lambda: main_is_in("ready"))
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
                until(lambda sent=sent: seen > sent, 3)  # type: ignore[misc]
        except AssertionError:
            pass  # one was lost: the numbers say so
        finally:
            over.set()

    with open_pool(way) as pool, handler(raised) as calls:
        result = pool.map_async(behind, [str(gate)] * 4, range(4), chunk=1)
        thread = threading.Thread(target=send)
        thread.start()
        while not over.is_set():
            try:
                assert not result.ready()
            except raised:
                seen += 1
        thread.join()
        assert (seen, len(calls)) == (30, 30)
        gate.touch()
        assert result.get(60) == list(range(4))


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_in_the_progress_callable_is_for_who_waits(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever waits tells of the progress, which is the main thread.
    monkeypatch.setattr("trireme._pool._serve", lambda pool: None)
    told: list[Any] = []
    counts: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        counts.append((done, total))
        if len(counts) == 1:
            signal.raise_signal(SIGNAL)

    with open_pool(way) as pool, handler(KeyboardInterrupt):
        result = pool.map_async(abs, range(9), chunk=1, progress=progress, callback=told.append)
        with pytest.raises(KeyboardInterrupt):
            result.get(60)
        assert result.get(60) == list(range(9)) and result.successful()
        assert told == [list(range(9))] and counts[-1] == (9, 9)


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_in_another_results_callback_leaves_the_map_alone(
    way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("trireme._pool._serve", lambda pool: None)
    gate = tmp_path / "gate"
    with open_pool(way) as pool, handler(KeyboardInterrupt):
        result = pool.map_async(behind, [str(gate)] * 4, range(4), chunk=1, priority=-1)
        other = pool.submit(abs, -5, priority=1)
        third = pool.submit(behind, str(gate), 7)
        other.add_done_callback(lambda _: signal.raise_signal(SIGNAL))
        third.add_done_callback(lambda _: gate.touch())
        gate.touch()
        with pytest.raises(KeyboardInterrupt):
            while True:
                result.get(60)
                other.result(60)
        assert result.get(60) == list(range(4)) and other.result(60) == 5 and third.result(60) == 7


@pytest.mark.parametrize("raised", [KeyboardInterrupt, Alarm])
def test_a_map_that_waits_for_room_raises_what_the_handler_does(
    raised: type[BaseException], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with open_pool("forkserver", slots=64) as pool, handler(raised):
        sender = signal_main_in("_background")
        with pytest.raises(raised, match="from the handler"):
            pool.map_async(behind, [str(gate)] * 500, range(500), chunk=1)
        sender.join()
        gate.touch()
        assert pool.map(abs, [-1, -2]) == [1, 2]


def interrupt(x: int) -> None:
    raise KeyboardInterrupt(f"of task {x}")


def test_a_tasks_own_keyboard_interrupt_is_its_results_and_not_the_waits() -> None:
    with open_pool("thread") as pool:
        result = pool.map_async(interrupt, [1])
        result.wait(60)
        assert result.ready() and not result.successful()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt, match="of task 1"):
                result.get(60)


@pytest.mark.parametrize("way", WAYS)
def test_a_handlers_timeout_error_comes_out_of_the_wait_for_a_call(
    way: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with open_pool(way) as pool, handler(TimeoutError):
        result = pool.apply_async(behind, (str(gate), 3))
        assert result.wait(0.001) is None
        sender = signal_main_in("wait")
        with pytest.raises(TimeoutError, match="from the handler"):
            result.wait()
        sender.join()
        gate.touch()
        assert result.get(60) == 3
