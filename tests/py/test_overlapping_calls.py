# SPDX-License-Identifier: BSD-3-Clause
"""Calls that overlap: each finds the globals as they were when it was made.

In a pool of one worker, whose tasks wait for a file where an order is to be had, everything here
happens in the order that is written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

START = """
import gc, operator, os, pathlib, sys, time
import trireme as tri

gate = pathlib.Path(sys.argv[1])

def hold(_=None):
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.005)
    return K

K = "at the call"

def helper():
    return K

def task(i=0):
    return helper()

class Box:
    def look(self):
        return K

pool = tri.Pool(1, start=sys.argv[2])
"""


@pytest.fixture(params=["forkserver", "fork", "spawn"])
def overlap(request: Any, run_script: Any, tmp_path: Path) -> Iterator[Any]:
    """Run a script's rest after START, and return what it prints."""

    def run(rest: str) -> str:
        out, err = run_script(START + rest, str(tmp_path / "gate"), request.param)
        assert err == ""
        return str(out)

    yield run


def test_a_task_that_is_overtaken_finds_what_its_call_was_made_with(overlap: Any) -> None:
    out = overlap("""
held = pool.submit(hold)
low = [pool.submit(task, priority=-2) for _ in range(3)]
K = "later"
high = [pool.submit(task, priority=2) for _ in range(3)]
gate.touch()
print([f.result() for f in low + high])
print(pool.submit(task).result())
""")
    assert out == f"{['at the call'] * 3 + ['later'] * 3}\nlater\n"


def test_an_iterator_that_is_read_while_the_program_goes_on(overlap: Any) -> None:
    out = overlap("""
it = pool.imap(task, range(400), chunk=1)
seen = {next(it)}
for n in range(5):
    K = f"later {n}"
    print(pool.submit(task).result())
    seen.add(next(it))
seen.update(it)
print(seen)
""")
    assert out == "".join(f"later {n}\n" for n in range(5)) + "{'at the call'}\n"


def test_a_function_that_is_redefined_meanwhile(overlap: Any) -> None:
    out = overlap("""
it = pool.imap(task, range(400), chunk=1)
seen = {next(it)}
def helper():
    return "redefined"
print(pool.map(task, range(3)))
def task(i):
    return "a new task, " + helper()
print(pool.map(task, range(2)))
print(seen | set(it))
""")
    assert out == f"{['redefined'] * 3}\n{['a new task, redefined'] * 2}\n{{'at the call'}}\n"


def test_a_global_that_changes_in_place_or_goes_away(overlap: Any) -> None:
    out = overlap("""
settings = {"k": 1}
def read():
    try:
        return settings["k"], late
    except NameError:
        return settings["k"], None
late = 1
held = pool.submit(hold)
first = [pool.submit(read, priority=-1) for _ in range(2)]
settings["k"] = 2
del late
second = [pool.submit(read) for _ in range(2)]
late = 3
third = [pool.submit(read, priority=1) for _ in range(2)]
gate.touch()
print([f.result() for f in third + second + first])
print(pool.submit(read).result())
""")
    assert out == "[(2, 3), (2, 3), (2, None), (2, None), (1, 1), (1, 1)]\n(2, 3)\n"


def test_methods_of_a_class_that_several_functions_use(overlap: Any) -> None:
    out = overlap("""
def one():
    return Box().look()
def two():
    return "two: " + Box().look()
held = pool.submit(hold)
first = [pool.submit(one, priority=-1), pool.submit(two, priority=-2)]
K = "later"
second = [pool.submit(one), pool.submit(two), pool.submit(one)]
gate.touch()
print([f.result() for f in second + first])
print(pool.submit(two).result(), pool.submit(one).result())
""")
    both = "'later', 'two: later', 'later', 'at the call', 'two: at the call'"
    assert out == f"[{both}]\ntwo: later later\n"


def test_a_function_among_the_arguments(overlap: Any) -> None:
    out = overlap("""
held = pool.submit(hold)
first = [
    pool.submit(operator.methodcaller("__call__"), task, priority=-1) for _ in range(2)]
own = pool.submit(task, priority=-1)
K = "later"
second = [pool.submit(operator.methodcaller("__call__"), task) for _ in range(2)]
own2 = [pool.submit(task), pool.submit(task, priority=-2)]
gate.touch()
print([f.result() for f in second + first + [own] + own2])
""")
    later, call = "'later', 'later'", "'at the call', 'at the call', 'at the call'"
    assert out == f"[{later}, {call}, {later}]\n"


def test_what_a_worker_has_made_of_its_globals_is_there_again(overlap: Any) -> None:
    out = overlap("""
count = 0
model = None
def load():
    global model
    model = "loaded"
def step():
    global count
    count += 1
    return K, count, model
with tri.Pool(1, initializer=load, start=sys.argv[2]) as own:
    held = own.submit(hold)
    first = [own.submit(step, priority=-1) for _ in range(2)]
    K = "later"
    count = 10
    second = [own.submit(step) for _ in range(2)]
    third = own.submit(step, priority=-2)
    gate.touch()
    print([f.result() for f in second + first + [third]])
""")
    later = "('later', 11, 'loaded'), ('later', 12, 'loaded')"
    call = "('at the call', 1, 'loaded'), ('at the call', 2, 'loaded')"
    assert out == f"[{later}, {call}, ('later', 13, 'loaded')]\n"


@pytest.mark.parametrize("busy", [False, True])
def test_values_that_no_task_can_want_any_more_are_let_go(overlap: Any, busy: bool) -> None:
    """Also in a pool that is never idle, where some task always overlaps with the next call."""
    out = overlap(f"""
class Big:
    def __init__(self, n):
        self.n = n
def count():
    gc.collect()
    return sum(type(o).__name__ == "Big" for o in gc.get_objects()), big is not None
big = Big(-1)
most = 0
last = pool.submit(count)
for n in range(20):
    before, last = last, pool.submit(count)
    if not {busy}:
        last.result()
    big = Big(n)
    most = max(most, before.result()[0])
    before = None
last = None
print(most <= 4 or most)
print(pool.submit(count).result()[0] <= 3)
""")
    assert out == "True\nTrue\n"
