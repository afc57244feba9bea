# SPDX-License-Identifier: BSD-3-Clause
"""Tasks that follow each other without a pause let others have the interpreter's lock.

What runs them is a loop in C: it must do what the interpreter does between two lines of Python,
which is to hand the lock over when somebody has waited for the switch interval, and to run the
handlers of signals.  These programs end within a second; without that they do not within a minute,
or end only when all of their tasks have.
"""

from __future__ import annotations

from typing import Any

import pytest
from trireme import multiprocessing

AGAIN = """
import time
import trireme
from trireme.futures import ThreadPoolExecutor

def again(pool):
    pool.submit(again, pool)

with {pool} as pool:
    again(pool)
    for _ in range(40):
        time.sleep(0.0005)
    print("forty turns", flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("pool", "end"),
    [
        ('trireme.Pool(1, kind="thread")', "pool.terminate()"),
        ('trireme.Pool(2, kind="thread")', "pool.terminate()"),
        ("ThreadPoolExecutor(1)", ""),
    ],
)
def test_a_task_that_submits_itself_leaves_others_their_turns(
    run_script: Any, pool: str, end: str
) -> None:
    """As CPython's test_hang_global_shutdown_lock, whose tasks go on until the executor ends."""
    assert run_script(AGAIN.format(pool=pool, end=end))[0] == "forty turns\n"


BUILTINS = """
import _thread, threading, time
import trireme

short = ([0] * 1_500).count  # 8 us
long = ([0] * 2_000_000).count  # 10 ms
done = 0

def generators(x):  # a function of Python's whose call runs none of it
    yield x

def count(so_far, all):
    global done
    done = so_far

def turns():
    for _ in range(20):
        time.sleep(0.001)
    _thread.interrupt_main()

if __name__ == "__main__":
    with trireme.Pool({options}) as pool:
        pool.map(abs, range(10))
        try:
            threading.Thread(target=turns).start()
            pool.{call}
            print("all of them")
        except KeyboardInterrupt:
            print("interrupted" if done < {half} else f"after {{done}}")
        pool.terminate()
"""


@pytest.mark.parametrize("options", ['1, kind="thread"', '2, kind="thread"', "1", 'kind="serial"'])
@pytest.mark.parametrize(
    ("call", "half"),
    [
        ("map(short, [1] * 500_000, progress=count)", 250_000),
        ("map(short, [1] * 500_000, chunk=250_000, progress=count)", 1),
        ("map(short, [1] * 500_000, caller=True)", 1),
        ("starmap(short, [(1,)] * 500_000, caller=True)", 1),
        ("map(long, [1] * 500, caller=True)", 1),
        ("map(generators, [1] * 3_000_000, caller=True)", 1),
    ],
)
def test_a_map_of_builtins_leaves_threads_their_turns_and_can_be_interrupted(
    run_script: Any, options: str, call: str, half: int
) -> None:
    """All of them would take four seconds, twenty turns a tenth of one.

    Where the caller works there is no progress to tell: that is a call of Python's.
    """
    if "generators" in call and "thread" not in options:
        pytest.skip("a generator does not travel, and the serial loop is Python's")
    if "serial" in options:
        half = 500_000
    script = BUILTINS.format(options=options, call=call, half=half)
    assert run_script(script)[0] == "interrupted\n"


MIXED = """
import threading
import trireme

short, long = abs, ([0] * 4_000_000).count  # nothing, 20 ms
seen = []

with trireme.Pool(1, kind="thread") as pool:
    gate = threading.Lock()
    gate.acquire()
    held = pool.submit(gate.acquire)
    tasks = [pool.submit(short, 1) for _ in range(200)]
    tasks += [pool.submit(long, 1) for _ in range(60)]
    gate.release()
    while not tasks[-1].done():
        seen.append(sum(f.done() for f in tasks))
    held.result()
print(max(b - max(a, 200) for a, b in zip(seen, seen[1:])) <= 20)
"""


def test_long_builtins_after_short_ones_leave_turns_too(run_script: Any) -> None:
    """The other thread comes by after each of them, or nearly: 60 in a row would be none."""
    assert run_script(MIXED)[0] == "True\n"


WORKERS = """
import pathlib, threading, time
import trireme

short = ([0] * 1_500).count
folder = pathlib.Path({folder!r})

def turns():
    while not (folder / "sent").exists():
        time.sleep(0.001)
    for _ in range(100):
        time.sleep(0.001)
    (folder / "turns").write_text("had")

def start():
    threading.Thread(target=turns, daemon=True).start()

if __name__ == "__main__":
    with trireme.Pool(1, start={start!r}) as pool:
        pool.submit(start).result()
        {call}
        (folder / "sent").write_text("to the worker")
        while not (folder / "turns").exists():
            time.sleep(0.01)
        print("after the end" if done() else "before the end", flush=True)
        pool.terminate()
"""


@pytest.mark.parametrize("start", ["fork", "forkserver"])
@pytest.mark.parametrize(
    "call",
    [
        "done = pool.map_async(short, [1] * 500_000, chunk=500_000).ready",
        "done = [pool.submit(short, 1) for _ in range(100_000)][-1].done",
    ],
)
def test_a_workers_own_threads_have_their_turns_among_builtins(
    run_script: Any, tmp_path: Any, start: str, call: str
) -> None:
    script = WORKERS.format(start=start, folder=str(tmp_path), call=call)
    assert run_script(script)[0] == "before the end\n"


RAISED = """
import ctypes, threading
import trireme

class Enough(BaseException):
    pass

def raise_in_the_worker():
    error = ctypes.py_object(Enough)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker), error)

def ends(tasks):
    for task in tasks:
        try:
            yield task()
        except Enough:
            yield "Enough"
        except StopIteration:
            return

with trireme.Pool(1, kind="thread") as pool:
    worker = pool.submit(threading.get_ident).result()
    gate = threading.Lock()
    gate.acquire()
    held = pool.submit(gate.acquire)
    {tasks}
    raise_in_the_worker()
    gate.release()
    got = list(ends([held.result] + tasks))
    print(len(got), got.count("Enough"), pool.submit(abs, -3).result())
"""


@pytest.mark.parametrize("function", ["([0] * 20_000).count", "lambda x: x"])
@pytest.mark.parametrize(
    "tasks",
    [
        "tasks = [pool.submit({}, i).result for i in range(500)]",
        "tasks = [pool.imap({}, range(500), chunk=50).__next__] * 501",
        "tasks = [pool.imap_unordered({}, range(500), chunk=50).__next__] * 501",
    ],
)
def test_an_exception_set_from_outside_is_one_tasks_failure(
    run_script: Any, tasks: str, function: str
) -> None:
    """One of 501, which may be the one that holds the others back."""
    assert run_script(RAISED.format(tasks=tasks.format(function)))[0] == "501 1 3\n"


SHORTER = """
import trireme

items = [1] * 300_000
short = ([0] * 1_500).count  # 8 us

def shorten(done, all):
    if done > 300:
        del items[:]

def f(x):
    return short(x)

if __name__ == "__main__":
    with trireme.Pool(2, kind="{kind}") as pool:
        try:
            pool.map({function}, items, progress=shorten, {options})
        except RuntimeError as error:
            print(error)
        print(pool.map(abs, [-1, 2]))
"""


@pytest.mark.parametrize("kind", ["thread", "process", "serial"])
@pytest.mark.parametrize("options", ["", "chunk=50", "caller=True", "caller=True, chunk=50"])
@pytest.mark.parametrize("function", ["f", "short"])
def test_a_list_that_becomes_shorter_is_an_error_and_no_crash(
    run_script: Any, kind: str, options: str, function: str
) -> None:
    out = run_script(SHORTER.format(kind=kind, options=options, function=function))[0]
    assert "has become shorter" in out.splitlines()[0]
    assert out.splitlines()[1:] == ["[1, 2]"]


class Shortens:
    """Its pickling shortens the list that it is in."""

    items: list[Any]

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __reduce__(self) -> Any:
        del self.items[10:]
        return int, ()


def test_the_facades_pool_maps_the_list_that_it_was_given() -> None:
    """The original sends while the list is shortened, and then waits for ever."""
    items: list[Any] = list(range(100))
    items[5] = Shortens(items)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(type, items, 3) == [int] * 100
        assert len(items) == 10


CUT_SHORT = """
import threading, time
import trireme

called = []

def item(x):
    called.append(x)
    begun.set()
    gate.wait(0.05)

begun, gate = threading.Event(), threading.Event()
pool = trireme.Pool(1, kind="thread")
{start}
begun.wait()
pool.terminate()
print(len(called) < 100)
try:
    {take}
except trireme.WorkerLost as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("start", "take"),
    [
        ("job = pool.map_async(item, range(2_000), chunk=1_000)", "job.get()"),
        ("job = pool.imap(item, range(2_000), chunk=1_000)", "next(job)"),
        ("job = pool.imap_unordered(item, range(2_000), chunk=1_000)", "next(job)"),
    ],
)
def test_terminate_ends_a_threads_chunk_between_two_items(
    run_script: Any, start: str, take: str
) -> None:
    """A thread cannot be killed; all of its chunk would take 50 s."""
    out = run_script(CUT_SHORT.format(start=start, take=take))[0].splitlines()
    assert out[0] == "True" and "terminated" in out[1]
