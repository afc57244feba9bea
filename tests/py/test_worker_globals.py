# SPDX-License-Identifier: BSD-3-Clause
"""Globals of the script that tasks and initializers change in place: whose they are, how long."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import PROCESSES

STARTS = pytest.mark.parametrize("start", PROCESSES)

# Everything in __main__: that is what goes by value.
HEAD = """
import functools, random, sys
import numpy as np
import trireme as tri
from trireme import multiprocessing as mp

table, cache, seen, log, rng = np.zeros(3), {}, set(), [], random.Random()
model = None

class Config:
    value = 1

config = Config()

def init(x):
    table[:] = [10, 20, x]
    cache["model"] = x
    config.value = x
    global model
    model = x

def look(i):
    return [float(table[i]), cache.get("model"), config.value, model]

def visit(x):
    new = x not in seen
    seen.add(x)
    return new

def draw(_):
    return rng.random()

def note(x):
    log.append(x)

def notes():
    return list(log)

@functools.cache
def counted(x):
    note(x)
    return x

start = sys.argv[1]
"""


@STARTS
def test_what_an_initializer_puts_into_them_stays(run_script: Any, start: str) -> None:
    out, _ = run_script(
        HEAD
        + """
with tri.Pool(1, start=start, initializer=init, initargs=(30,)) as pool:
    print(pool.map(look, range(3)))
    print(pool.submit(look, 2).result(), next(iter(pool.imap(look, [1]))))
    print(pool.apply(lambda i: look(i), (0,)))
with mp.get_context(start).Pool(1, init, (40,)) as pool:
    print(pool.map(look, [2]), pool.apply(look, (2,)))
print(look(0))
""",
        start,
    )
    assert out.split("\n")[:-1] == [
        "[[10.0, 30, 30, 30], [20.0, 30, 30, 30], [30.0, 30, 30, 30]]",
        "[30.0, 30, 30, 30] [20.0, 30, 30, 30]",
        "[10.0, 30, 30, 30]",
        "[[40.0, 40, 40, 40]] [40.0, 40, 40, 40]",
        "[0.0, None, 1, None]",
    ]


@STARTS
def test_what_a_task_does_to_them_the_next_one_sees(run_script: Any, start: str) -> None:
    out, _ = run_script(
        HEAD
        + """
with tri.Pool(1, start=start) as pool:
    print([pool.apply(visit, (x,)) for x in (1, 1, 2, 1)], pool.map(visit, [2, 3, 3]))
    print(len({pool.submit(draw, 0).result() for _ in range(10)} | set(pool.map(draw, range(10)))))
    for x in range(3):
        pool.apply(note, (x,))
    print(pool.apply(notes), [pool.apply(counted, (7,)) for _ in range(3)], pool.apply(notes))
""",
        start,
    )
    assert out.split("\n")[:-1] == [
        "[True, False, True, False] [False, True, False]",
        "20",
        "[0, 1, 2] [7, 7, 7] [0, 1, 2, 7]",
    ]


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_what_the_program_does_to_them_the_next_call_sees(run_script: Any, start: str) -> None:
    out, _ = run_script(
        HEAD
        + """
both = [table]
def shared(_):
    return both[0] is table
with tri.Pool(1, start=start) as pool:
    print(pool.apply(shared, (0,)))
    print(pool.apply(look, (0,)), pool.apply(visit, (5,)))
    table[0] = 7; cache["model"] = 8; config.value = 9
    print(pool.apply(look, (0,)), pool.apply(visit, (5,)))  # what has not changed stays
    seen.add(6)
    print(pool.apply(visit, (6,)), pool.apply(visit, (5,)))
    log.append([1]); print(pool.apply(notes))
    log[0].append(2); print(pool.apply(notes))
    cache.clear(); print(pool.apply(look, (0,))[1])
""",
        start,
    )
    assert out.split("\n")[:-1] == [
        "True",
        "[0.0, None, 1, None] True",
        "[7.0, 8, 9, None] False",
        "False True",
        "[[1]]",
        "[[1, 2]]",
        "None",
    ]


CHANGES = """
import dataclasses, functools
row = np.zeros(1, [("x", "i8")])[0]
@dataclasses.dataclass(frozen=True)
class Frozen:
    n: int
    def __post_init__(self): object.__setattr__(self, "kept", {})
class Thawed(Frozen):
    pass
frozen, thawed = Frozen(1), Thawed(1)
object.__setattr__(thawed, "m", 0)
part = functools.partial(lambda x, tol: tol, tol=0)
def look(_):
    return [int(row["x"]), len(frozen.kept), thawed.m]
"""


@pytest.mark.parametrize("start", ["forkserver", "thread"])
def test_what_looks_constant_and_is_not(run_script: Any, start: str) -> None:
    out, _ = run_script(
        HEAD
        + CHANGES
        + """
with tri.Pool(1, kind="thread") if start == "thread" else tri.Pool(1, start=start) as pool:
    for i in range(3):
        row["x"] = i
        if i:
            frozen.kept[i] = 1
        object.__setattr__(thawed, "m", i)
        part.keywords["tol"] = i
        print(pool.map(look, [0])[0], pool.map(part, [0]))
""",
        start,
    )
    assert out.split("\n")[:-1] == [f"{[i] * 3} [{i}]" for i in range(3)]


def test_globals_that_lead_to_themselves_or_cannot_be_pickled(run_script: Any) -> None:
    out, _ = run_script(
        HEAD
        + """
handlers = {}
def handle(name):
    return handlers[name](name)
def upper(name):
    handlers["calls"] = handlers.get("calls", 0) + 1
    return name.upper(), handlers["calls"], handle.__name__
handlers["up"] = upper
handlers["self"] = handlers
lines = (line for line in "ab")
def bad(_):
    return next(lines)
with tri.Pool(1, start=start) as pool:
    print([pool.apply(handle, ("up",)) for _ in range(2)])
    try:
        pool.apply(bad, (0,))
    except TypeError as error:
        print("lines" in str(error), "generator" in str(error))
""",
        "forkserver",
    )
    assert out.split("\n")[:-1] == ["[('UP', 1, 'handle'), ('UP', 2, 'handle')]", "True True"]
