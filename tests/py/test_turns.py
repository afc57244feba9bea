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

def turns():
    for _ in range(20):
        time.sleep(0.001)
    _thread.interrupt_main()

if __name__ == "__main__":
    with trireme.Pool({options}) as pool:
        pool.map(abs, range(10))
        threading.Thread(target=turns).start()
        try:
            pool.{call}
            print("all of them")
        except KeyboardInterrupt:
            print("interrupted")
        pool.terminate()
"""


@pytest.mark.parametrize("options", ['1, kind="thread"', '2, kind="thread"', "1", 'kind="serial"'])
@pytest.mark.parametrize(
    "call",
    [
        "map(short, [1] * 500_000)",
        "map(short, [1] * 500_000, chunk=250_000)",
        "map(short, [1] * 500_000, caller=True)",
        "starmap(short, [(1,)] * 500_000, caller=True)",
        "map(long, [1] * 500, caller=True)",
    ],
)
def test_a_map_of_builtins_leaves_threads_their_turns_and_can_be_interrupted(
    run_script: Any, options: str, call: str
) -> None:
    """All of them would take four seconds, twenty turns a tenth of one."""
    assert run_script(BUILTINS.format(options=options, call=call))[0] == "interrupted\n"


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

with trireme.Pool(1, kind="thread") as pool:
    worker = pool.submit(threading.get_ident).result()
    futures = [pool.submit(([0] * 20_000).count, 1) for _ in range(3_000)]
    futures[0].result()
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker), ctypes.py_object(Enough))
    failed = [f.exception() for f in futures]
    print([type(e).__name__ for e in failed if e], pool.submit(abs, -3).result())
"""


def test_an_exception_set_from_outside_is_one_tasks_failure(run_script: Any) -> None:
    assert run_script(RAISED)[0] == "['Enough'] 3\n"
