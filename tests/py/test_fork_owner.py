# SPDX-License-Identifier: BSD-3-Clause
"""os.fork() by the program with open pools: no warning, no harm, a clear error in the child."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import PROCESSES

BODY = """
import os, sys, time, warnings
warnings.simplefilter("error")
import trireme as tri
way = sys.argv[1]
def open_pool():
    return tri.Pool(2, kind=way) if way == "thread" else tri.Pool(2, start=way)
def in_child(run):
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            start = time.monotonic()
            run()
            code = 0 if time.monotonic() - start < 2 else 98
        except BaseException as exc:
            print("child:", repr(exc), file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def refuses(call):
    try:
        call()
    except RuntimeError as exc:
        assert "fork" in str(exc), exc
    else:
        raise AssertionError("no RuntimeError")
"""


@pytest.mark.parametrize("way", PROCESSES)
@pytest.mark.parametrize("watched", ["", "f.add_done_callback(print_nothing)"])
def test_fork_with_open_pools_does_not_warn(run_script: Any, way: str, watched: str) -> None:
    out, err = run_script(
        BODY
        + f"""
def print_nothing(f): pass
pool = open_pool()
pool.map(abs, range(10))
f = pool.submit(time.sleep, 0.2)
{watched}
print(in_child(lambda: None))
print(in_child(lambda: None))
f.result()
print(pool.map(abs, [-1]))
done = pool.submit(abs, -3)
told = []
done.add_done_callback(told.append)
end = time.monotonic() + 10
while not told and time.monotonic() < end: time.sleep(0.001)
print(told == [done])
pool.close(); pool.join()
""",
        way,
    )
    assert out == "0\n0\n[1]\nTrue\n"
    assert err == ""


@pytest.mark.parametrize("way", [*PROCESSES, "thread"])
def test_inherited_pool_refuses_quickly_and_the_parent_goes_on(run_script: Any, way: str) -> None:
    if way == "thread":
        flags = ("-W", "ignore::DeprecationWarning")
        body = BODY.replace('warnings.simplefilter("error")', "")
    else:
        flags, body = (), BODY
    out, err = run_script(
        body
        + """
pool = open_pool()
future = pool.submit(time.sleep, 0.3)
iterator = pool.imap(abs, range(100))
next(iterator)
result = pool.map_async(time.sleep, [0.2])
def child():
    refuses(lambda: pool.map(abs, [1]))
    refuses(lambda: pool.submit(abs, 1))
    refuses(lambda: pool.imap(abs, [1]))
    refuses(lambda: pool.map_async(abs, [1]))
    refuses(lambda: pool.apply(abs, (1,)))
    refuses(lambda: future.result(5))
    refuses(lambda: future.exception(5))
    refuses(lambda: list(iterator) if len(list(iterator)) > 90 else None)
    refuses(lambda: result.get(5))
    refuses(pool.join)
    assert not future.cancel()
    pool.close()
    pool.terminate()
    repr(pool), repr(future)
    with pool:
        pass
for _ in range(2):
    print(in_child(child))
print(future.result(10), result.get(10), len(list(iterator)))
print(pool.map(abs, [-1, -2]))
pool.close(); pool.join()
""",
        way,
        flags=flags,
    )
    assert err == ""
    assert out == "0\n0\nNone [None] 99\n[1, 2]\n"


@pytest.mark.parametrize("way", PROCESSES)
def test_child_that_exits_normally_harms_nothing(run_script: Any, way: str) -> None:
    """sys.exit() in the child runs its atexit handlers and destructors."""
    out, err = run_script(
        BODY
        + """
import gc
pool = open_pool()
keep = pool.map(bytes, [200_000] * 4, chunk=1)
futures = [pool.submit(time.sleep, 0.05) for _ in range(20)]
pid = os.fork()
if pid == 0:
    del keep, futures
    gc.collect()
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print([f.result(10) for f in futures] == [None] * 20, [len(b) for b in keep] == [200_000] * 4)
print(pool.map(abs, [-1]), pool.stats()["deaths"])
pool.close(); pool.join()
""",
        way,
    )
    assert err == ""
    assert out == "5\nTrue True\n[1] 0\n"


@pytest.mark.parametrize("way", PROCESSES)
def test_child_may_open_pools_of_its_own(run_script: Any, way: str) -> None:
    out, err = run_script(
        BODY
        + """
pool = open_pool()
pool.map(abs, [1])
tri.map(abs, [1])
def child():
    with open_pool() as own:
        assert own.map(lambda x: x + 1, range(5)) == [1, 2, 3, 4, 5]
        assert own.submit(abs, -1).result(10) == 1
    assert tri.map(abs, [-4]) == [4]
print(in_child(child))
print(pool.map(abs, [-2]), tri.map(abs, [-3]))
""",
        way,
    )
    assert err == ""
    assert out == "0\n[2] [3]\n"


def test_children_of_multiprocessing_live_beside_pools(run_script: Any) -> None:
    out, err = run_script(
        """
        import multiprocessing as mp, warnings
        warnings.simplefilter("error")
        import trireme as tri
        def f(q): q.put(42)
        with tri.Pool(2) as pool, tri.Pool(2, start="fork") as other:
            pool.map(abs, [1])
            f_ = pool.submit(abs, -1)
            f_.add_done_callback(lambda f: None)
            ctx = mp.get_context("fork")
            q = ctx.SimpleQueue()
            p = ctx.Process(target=f, args=(q,))
            p.start()
            print(q.get())
            p.join()
            print(p.exitcode, pool.map(abs, [-1]), other.map(abs, [-2]))
            print(mp.active_children())
        """
    )
    assert err == ""
    assert out == "42\n0 [1] [2]\n[]\n"


def test_forking_while_other_threads_use_the_pool(run_script: Any) -> None:
    out, err = run_script(
        BODY.replace('warnings.simplefilter("error")', 'warnings.simplefilter("ignore")')
        + """
import threading
pool = open_pool()
stop = False
wrong = []
def use():
    while not stop:
        if pool.map(abs, range(50)) != list(range(50)) or pool.submit(abs, -1).result(10) != 1:
            wrong.append(1)
threads = [threading.Thread(target=use) for _ in range(3)]
for t in threads: t.start()
codes = {in_child(lambda: refuses(lambda: pool.map(abs, [1]))) for _ in range(20)}
stop = True
for t in threads: t.join()
print(codes, wrong)
pool.close(); pool.join()
""",
        "forkserver",
    )
    assert err == ""
    assert out == "{0} []\n"
