# SPDX-License-Identifier: BSD-3-Clause
"""What a signal's handler raises comes out of every call that waits, as itself.

Programs limit a call's time so: the handler of SIGALRM raises, often a TimeoutError of their own.
Each call is made under the originals' names, too.  (SIGUSR1, as pytest's own limit has SIGALRM.)
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trireme as tri
from facadelib import ORIGINAL, OURS, module
from tasklib import nap

LATE = 0.05  # seconds until the signal
LONG = 0.3  # what the call waits for takes this long
FOREVER = 60.0


class Late(Exception):
    """Of a program's own."""


ERRORS = (Late("late"), TimeoutError("late"), TimeoutError())
NAMES = ("own", "timeout", "bare")
DOORS = pytest.mark.parametrize(
    "door, error",
    [(OURS, error) for error in ERRORS] + [(ORIGINAL, ERRORS[2])],
    ids=[*NAMES, "original"],
)


@pytest.fixture(autouse=True)
def handled(error: Exception) -> Iterator[None]:
    def handler(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


def expect(error: Exception, call: Callable[[], object]) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(LATE, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    with pytest.raises(type(error)) as caught:
        call()
    timer.join()
    assert caught.value is error


@DOORS
def test_calls_of_a_pool(door: str, error: Exception) -> None:
    with module(door).get_context("fork").Pool(2) as p:
        naps = [LONG] * 3
        quick = [0.0005] * 2000
        calls: list[Callable[[], object]] = [
            lambda: p.map(nap, quick),
            lambda: p.map(nap, naps),
            lambda: p.starmap(nap, [(LONG,)]),
            lambda: p.apply(nap, (LONG,)),
            lambda: p.apply_async(nap, (LONG,)).get(),
            lambda: p.apply_async(nap, (LONG,)).get(FOREVER),
            lambda: p.apply_async(nap, (LONG,), callback=id).get(),
            lambda: p.apply_async(nap, (LONG,)).wait(),
            lambda: p.apply_async(nap, (LONG,)).wait(FOREVER),
            lambda: p.map_async(nap, naps).get(FOREVER),
            lambda: p.map_async(nap, naps).wait(FOREVER),
            lambda: list(p.imap(nap, naps)),
            lambda: p.imap(nap, naps).next(FOREVER),
            lambda: list(p.imap_unordered(nap, naps, 2)),
        ]
        for call in calls:
            expect(error, call)


@DOORS
@pytest.mark.parametrize("kind", ["ProcessPoolExecutor", "ThreadPoolExecutor"])
def test_calls_of_an_executor(door: str, kind: str, error: Exception) -> None:
    cf: Any = importlib.import_module(
        "concurrent.futures" if door == ORIGINAL else "trireme.futures"
    )
    calls: list[Callable[[Any], object]] = [
        lambda x: x.submit(nap, LONG).result(),
        lambda x: x.submit(nap, LONG).exception(FOREVER),
        lambda x: list(x.map(nap, [LONG] * 3)),
        lambda x: list(x.map(nap, [LONG] * 3, timeout=FOREVER)),
        lambda x: cf.wait([x.submit(nap, LONG)]),
        lambda x: list(cf.as_completed([x.submit(nap, LONG)], FOREVER)),
        lambda x: (x.submit(nap, LONG), x.shutdown()),
    ]
    x = getattr(cf, kind)(2)
    for call in calls:
        expect(error, lambda call=call: call(x))
    x.shutdown()


@DOORS
def test_calls_of_locks_and_queues(door: str, error: Exception) -> None:
    mp = module(door).get_context("fork")
    lock, event, condition = mp.Lock(), mp.Event(), mp.Condition()
    queue, simple, joinable, full = mp.Queue(), mp.SimpleQueue(), mp.JoinableQueue(), mp.Queue(1)
    lock.acquire()
    joinable.put(1)
    full.put(1)
    calls: list[Callable[[], object]] = [
        lock.acquire,
        lambda: lock.acquire(timeout=FOREVER),
        mp.Semaphore(0).acquire,
        event.wait,
        lambda: event.wait(FOREVER),
        condition.wait,
        lambda: condition.wait(FOREVER),
        queue.get,
        lambda: queue.get(timeout=FOREVER),
        simple.get,
        joinable.join,
        lambda: full.put(2),
        lambda: full.put(2, timeout=FOREVER),
        lambda: mp.Barrier(2).wait(FOREVER),
    ]
    with condition:
        for call in calls:
            expect(error, call)


@pytest.mark.parametrize("error", ERRORS, ids=NAMES)
def test_calls_of_a_native_pool(error: Exception) -> None:
    with tri.Pool(2) as p:
        naps = [LONG] * 3
        quick = [0.0005] * 2000
        calls: list[Callable[[], object]] = [
            lambda: p.map(nap, quick),
            lambda: p.map(nap, quick, caller=True),
            lambda: p.map(nap, naps),
            lambda: p.apply(nap, (LONG,)),
            lambda: list(p.imap(nap, naps)),
            lambda: list(p.imap_unordered(nap, naps)),
            lambda: p.submit(nap, LONG).result(),
            lambda: p.submit(nap, LONG).result(FOREVER),
            lambda: p.map_async(nap, naps).get(),
            lambda: p.map_async(nap, naps).get(FOREVER),
            lambda: (p.submit(nap, LONG), p.close(), p.join()),
        ]
        for call in calls[:-1]:
            expect(error, call)
        assert p.map(abs, range(-3, 0)) == [3, 2, 1]
        expect(error, calls[-1])
