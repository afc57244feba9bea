# SPDX-License-Identifier: BSD-3-Clause
"""Ctrl-C: one KeyboardInterrupt, one short traceback, nothing left over a second later."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from conftest import PROCESSES

BODY = """
import sys, time
import trireme as tri
way = sys.argv[1]
def nap(x):
    time.sleep(0.01 if x == 0 else 30)
    return x
def spin(x):
    if x:
        while True: pass
def source():
    yield 0
    yield from iter(int, 1)
    while True: yield 1
pool = tri.Pool(2, kind=way) if way == "thread" else tri.Pool(2, start=way)
pool.map(nap, [0])  # the first call imports what it needs
"""

CALLS = {
    "map": "with pool: print('ready', flush=True); pool.map(nap, [1] * 50)",
    "map of busy loops": "with pool: print('ready', flush=True); pool.map(spin, [1] * 50)",
    "map with caller": """with pool:
    print('ready', flush=True)
    pool.map(nap, [1] * 50, caller=True)""",
    "submit": "with pool: f = pool.submit(nap, 1); print('ready', flush=True); f.result()",
    "imap": "with pool:\n    for r in pool.imap(nap, [0] + [1] * 50): print('ready', flush=True)",
    "many futures": """with pool:
    fs = [pool.submit(nap, 1) for _ in range(500)]
    print('ready', flush=True)
    [f.result() for f in fs]""",
    "map_async": "with pool: r = pool.map_async(nap, [1] * 9); print('ready', flush=True); r.get()",
    "wait": """import concurrent.futures as cf
with pool: f = pool.submit(nap, 1); print('ready', flush=True); cf.wait([f])""",
    "wait without a block": """import concurrent.futures as cf
fs = [pool.submit(nap, 1) for _ in range(9)]; print('ready', flush=True); cf.wait(fs)""",
    "without a block": "print('ready', flush=True); pool.map(nap, [1] * 50)",
    "join": "fs = [pool.submit(nap, 1)]; pool.close(); print('ready', flush=True); pool.join()",
    "default pool": "tri.map(nap, [0]); print('ready', flush=True); tri.map(nap, [1] * 50)",
    "progress": """import tqdm.auto; tqdm.auto.tqdm.get_lock()  # imports more when first asked for
with pool: print('ready', flush=True); pool.map(nap, [1] * 9, progress=True)""",
}


def interrupt(script: Any) -> tuple[int, str, float]:
    assert script.line() == "ready"
    # The call has begun: what was printed is out, and what follows takes half a minute.
    time.sleep(0.3)
    start = time.monotonic()
    script.interrupt()
    code, _, err = script.end(25)
    return code, err, time.monotonic() - start


@pytest.mark.parametrize("start", PROCESSES)
@pytest.mark.parametrize("call", CALLS)
def test_one_interrupt_one_traceback_nothing_left(start_script: Any, call: str, start: str) -> None:
    with start_script(BODY + CALLS[call], start) as script:
        code, err, took = interrupt(script)
        assert code == -signal.SIGINT, err
        text = [line for line in err.strip().split("\n") if line.strip() and "it/s" not in line]
        assert err.count("KeyboardInterrupt") == 1, err
        assert len(text) <= 15, err
        assert "RemoteTraceback" not in err
        assert took < 3
        gone_by = time.monotonic() + 1
        while script.group():
            assert time.monotonic() < gone_by, "workers were left over"
            time.sleep(0.01)


# Each has made a call before: the first one imports what it needs.
FACADES = {
    "Pool.map": """with mp.Pool(2) as p:
    p.map(nap, [0])
    print('ready', flush=True)
    p.map(nap, [1] * 9)""",
    "Pool.apply": """with mp.Pool(2) as p:
    p.apply(nap, [0])
    print('ready', flush=True)
    p.apply(nap, [1])""",
    "AsyncResult.get": """with mp.Pool(2) as p:
    r = p.map_async(nap, [1] * 9)
    print('ready', flush=True)
    r.get()""",
    "Pool.imap": """with mp.Pool(2) as p:
    for r in p.imap(nap, [0] + [1] * 9): print('ready', flush=True)""",
    "submit": """with ProcessPoolExecutor(2, mp_context=mp) as p:
    f = p.submit(nap, 1)
    print('ready', flush=True)
    try:
        f.result()
    finally:
        p.terminate_workers()""",
}


@pytest.mark.parametrize("start", PROCESSES)
@pytest.mark.parametrize("call", FACADES)
def test_one_interrupt_in_a_facade(start_script: Any, call: str, start: str) -> None:
    body = BODY[: BODY.index("pool = ")].replace("import trireme as tri", "")
    body += "import trireme.multiprocessing\nfrom trireme.futures import ProcessPoolExecutor\n"
    body += "mp = trireme.multiprocessing.get_context(way)\n"
    with start_script(body + FACADES[call], start) as script:
        code, err, took = interrupt(script)
        assert code == -signal.SIGINT, err
        assert err.count("KeyboardInterrupt") == 1 and "RemoteTraceback" not in err, err
        assert len([line for line in err.split("\n") if line.strip()]) <= 15, err
        assert took < 3
        gone_by = time.monotonic() + 1
        while script.group():
            assert time.monotonic() < gone_by, "workers were left over"
            time.sleep(0.01)


@pytest.mark.parametrize("start", PROCESSES)
def test_the_pool_goes_on_after_a_caught_interrupt(start_script: Any, start: str) -> None:
    source = (
        BODY
        + """
try:
    print("ready", flush=True)
    pool.map(lambda x: time.sleep(0.05), range(2000), chunk=1)
except KeyboardInterrupt:
    print("caught")
print(pool.map(abs, range(-5, 0)))
print(pool.submit(abs, -7).result())
print(pool.stats()["deaths"])
pool.close(); pool.join()
"""
    )
    with start_script(source, start) as script:
        assert script.line() == "ready"
        time.sleep(0.15)
        script.interrupt()
        code, out, err = script.end(25)
        assert (code, err) == (0, "")
        assert out == "caught\n[5, 4, 3, 2, 1]\n7\n0\n"


@pytest.mark.parametrize("start", PROCESSES)
def test_tasks_that_catch_everything_do_not_see_it(start_script: Any, start: str) -> None:
    """Workers ignore the terminal's interrupt: only the owner decides."""
    source = (
        BODY
        + """
def stubborn(x):
    try:
        time.sleep(0.6)
        return "undisturbed"
    except BaseException as exc:
        return repr(exc)
fs = [pool.submit(stubborn, i) for i in range(2)]
while not all(f.running() for f in fs): time.sleep(0.001)
try:
    print("ready", flush=True)
    # Short sleeps: a signal that comes just before a sleep begins is noticed after it.
    for _ in range(3000): time.sleep(0.01)
except KeyboardInterrupt:
    pass
print([f.result() for f in fs])
pool.close(); pool.join()
"""
    )
    with start_script(source, start) as script:
        assert script.line() == "ready"
        script.interrupt()
        code, out, err = script.end(25)
        assert (code, err) == (0, "")
        assert out == "['undisturbed', 'undisturbed']\n"


def test_interrupt_while_a_pool_opens_leaves_nothing(start_script: Any) -> None:
    source = """
import trireme as tri
print("ready", flush=True)
while True:
    with tri.Pool(2, start="spawn") as pool:
        pool.map(abs, [1])
"""
    with start_script(source) as script:
        code, err, took = interrupt(script)
        assert code == -signal.SIGINT, err
        assert err.count("KeyboardInterrupt") == 1, err
        assert took < 5
        gone_by = time.monotonic() + 1.5
        while script.group():
            assert time.monotonic() < gone_by, "workers were left over"
            time.sleep(0.01)


CALLBACKS = """
    import signal, sys, time
    import trireme as tri
    from trireme import _pool
    _pool._serve = lambda pool: None  # whoever waits runs the callbacks
    told = []
    def callback(name):
        def run(_):
            told.append(name)
            if name == "b":
                signal.raise_signal(signal.SIGINT)
        return run
    with tri.Pool(2) as pool:
        first, second = [pool.submit(abs, -i) for i in (1, 2)]
        for name in "abc":
            first.add_done_callback(callback(name))
        second.add_done_callback(callback("d"))
        wait = {
            "map": lambda: pool.map(time.sleep, [0.5] * 4),
            "imap": lambda: list(pool.imap(time.sleep, [0.5] * 4)),
            "result": lambda: pool.submit(time.sleep, 1).result(),
            "its own result": lambda: (time.sleep(0.3), first.result()),
            "join": lambda: (pool.close(), pool.join()),
            "map_async": lambda: pool.map_async(time.sleep, [0.5] * 4).get(),
        }[sys.argv[1]]
        try:
            wait()
            print("not interrupted", end=" ")
        except KeyboardInterrupt:
            print("interrupted", end=" ")
        second.result()
        if not pool._refused:
            pool.map(abs, [1])
    print(*sorted(told), first.result(), second.result())
"""


@pytest.mark.parametrize("wait", ["map", "imap", "result", "its own result", "join", "map_async"])
def test_an_interrupt_in_a_callback_is_for_who_waits(run_script: Any, wait: str) -> None:
    out, err = run_script(CALLBACKS, wait)
    assert out.split() == ["interrupted", "a", "b", "c", "d", "1", "2"]
    assert err == ""


def test_an_interrupt_in_a_callback_does_not_stop_the_watching_thread(run_script: Any) -> None:
    out, err = run_script("""
        import threading, trireme as tri
        def interrupt(_):
            raise KeyboardInterrupt("in a thread")
        told = threading.Event()
        with tri.Pool(2) as pool:
            pool.submit(abs, 1).add_done_callback(interrupt)
            pool.submit(abs, 2).add_done_callback(lambda _: told.set())
            print(told.wait(20))
    """)
    assert out == "True\n"
    assert "KeyboardInterrupt: in a thread" in err
