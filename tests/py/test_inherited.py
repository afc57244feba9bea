# SPDX-License-Identifier: BSD-3-Clause
"""Under fork, code of the script sees one set of globals, however it is passed: as the original's.

Each program prints with the façade what it prints with the original.
"""

from __future__ import annotations

from typing import Any

import pytest

HEAD = """
import sys
from functools import partial
import {multiprocessing} as mp
import {futures} as futures

context = mp.get_context("fork")

def pool(initializer=None, initargs=()):
    return context.Pool(1, initializer, initargs)

class Executor:
    def __init__(self, initializer=None, initargs=()):
        self._e = futures.ProcessPoolExecutor(1, context, initializer, initargs)
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self._e.shutdown()
    def apply(self, f, args=(), kwds={{}}):
        return self._e.submit(f, *args, **kwds).result()
    def map(self, f, items):
        return list(self._e.map(f, items, chunksize=2))

KINDS = pool, Executor
"""

PROGRAMS = {
    "what an initializer has set": """
model, table, words = None, {}, ["unset"]
def begin(value):
    global model, words
    model = value
    table["k"] = value
    words = [value]
def read(x=0):
    return model, table.get("k"), words[0], x
class C:
    def method(self, x):
        return read(x)
    @staticmethod
    def static(x):
        return read(x)
    @classmethod
    def of_class(cls, x):
        return read(x)
    def __call__(self, x):
        return read(x)
def call(f, x):
    return f(x)
def outer():
    def begin_inside(value):
        begin(value)
    return begin_inside
for kind in KINDS:
    for initializer in begin, partial(begin), outer():
        with kind(initializer, (7,)) as p:
            print(p.apply(read), p.apply(read, (), {"x": 1}), p.apply(partial(read, 2)))
            print(p.map(read, [1, 2, 3]), p.map(partial(read), [4]), p.map(C().method, [5]))
            print(p.apply(C.static, (6,)), p.apply(C.of_class, (7,)), p.apply(C(), (8,)))
            print(p.apply(call, (read, 9)), p.apply(call, (C().method, 10)))
""",
    "what tasks set": """
count, seen = 0, []
def add(n):
    global count
    count += n
    seen.append(n)
    return count
def get():
    return count, len(seen)
class Acc:
    def add(self, n):
        return add(n)
for kind in KINDS:
    with kind() as p:
        acc = Acc()
        print(p.apply(add, (1,)), p.apply(partial(add, 2)), p.apply(acc.add, (3,)))
        print(p.apply(get), p.apply(partial(get)), p.map(partial(add), [1, 1]), p.apply(get))
""",
    "identity": """
class Thing:
    pass
def same(f, g):
    return f is g, f is same
def kind_of(t):
    return type(t) is Thing, isinstance(t, Thing)
thing = Thing()
def is_it(t):
    return t is thing
for kind in KINDS:
    with kind() as p:
        print(p.apply(same, (kind_of, kind_of)), p.apply(same, (same, same)))
        print(p.apply(kind_of, (Thing(),)), p.apply(partial(kind_of, Thing())))
        print(p.apply(kind_of, (p.apply(Thing),)))
""",
    "what may not travel": """
class Table:
    def __reduce__(self):
        raise TypeError("a table is not to travel")
    def __getitem__(self, i):
        return i + 100
table = Table()
def look_up(i):
    return table[i]
class C:
    def method(self, i):
        return table[i]
for kind in KINDS:
    with kind() as p:
        print(p.apply(look_up, (1,)), p.apply(partial(look_up, 2)), p.map(partial(look_up), [3]))
        print(p.apply(C().method, (4,)), p.map(C().method, [5, 6, 7]))
""",
}

PROGRAMS["methods, and what the program binds meanwhile"] = """
import threading
count = 0
class Job:
    lock = threading.Lock()
    def run(self):
        global count
        with self.lock:
            count += 1
        return count
    def over(self, items):
        return workers.map(self.one, items)
    def one(self, x):
        return [x, count]
def read():
    return count
for kind in KINDS:
    count = 0
    workers = kind()
    with workers as p:
        out = []
        for i in range(4):
            out.append(p.apply(Job().run))
            count = 100 + i
        print(out, p.apply(read), p.apply(partial(read)), Job().over([1, 2]))
"""
PROGRAMS["after the same class went to other pools"] = """
import multiprocessing
spawned = mp.get_context("forkserver")
model = None
def begin(value):
    global model
    model = value
def get():
    return model
class C:
    def method(self):
        return model
def is_c(c):
    return isinstance(c, C), c.method()
if __name__ == "__main__":
    for kind in KINDS:
        with kind(begin, (7,)) as p:
            print(p.apply(get), p.apply(is_c, (C(),)), p.apply(C().method), p.apply(get))
        with spawned.Pool(1, begin, (8,)) as p:
            print(p.apply(is_c, (C(),)))
"""
PROGRAMS["odd globals"] = """
import weakref
class Thing:
    pass
class Lazy:
    @property
    def __class__(self):
        raise RuntimeError("not set up")
class Meta(type):
    def __eq__(self, other):
        return self is other
class Unhashable(metaclass=Meta):
    pass
thing = Thing()
dead = weakref.proxy(thing)
del thing
lazy = Lazy()
def f(x):
    return x
for kind in KINDS:
    with kind() as p:
        print(p.apply(f, (1,)), p.apply(partial(f, 2)))
"""
PROGRAMS["what is dropped is freed"] = """
import gc, weakref
class Big:
    pass
def f(x):
    return x
big = Big()
kept = [p for p in [pool()]]
print(kept[0].apply(f, (1,)))
gone = weakref.ref(big)
del big
print(gone() is None)
executor = futures.ProcessPoolExecutor(1, context)
print(executor.submit(f, 1).result())
gone = weakref.ref(executor)
del executor
gc.collect()
print(gone() is None)
kept[0].terminate()
"""

LATE = """
base, label = 1, "before"
def begin():
    global label
    label = "begun"
for kind in KINDS:
    base = 1
    with kind(begin) as p:
        print(p.apply(lambda: (base, label)))
        base = 2
        def late(x):
            return base, label, x
        print(p.apply(late, (3,)), p.map(late, [4, 5]))
        base = 1
        print(p.apply(late, (6,)))
"""


def text(program: str, multiprocessing: str, futures: str) -> str:
    return HEAD.format(multiprocessing=multiprocessing, futures=futures) + program


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_fork_of_the_facades_is_one_of_the_originals(name: str, run_script: Any) -> None:
    program = PROGRAMS[name]
    theirs, _ = run_script(text(program, "multiprocessing", "concurrent.futures"))
    ours, err = run_script(text(program, "trireme.multiprocessing", "trireme.futures"))
    assert ours == theirs
    assert err == ""


def test_code_that_is_defined_later_sees_what_workers_have_and_what_has_changed(
    run_script: Any,
) -> None:
    ours, err = run_script(text(LATE, "trireme.multiprocessing", "trireme.futures"))
    lines = [
        "(1, 'begun')",
        "(2, 'begun', 3) [(2, 'begun', 4), (2, 'begun', 5)]",
        "(1, 'begun', 6)",
    ]
    assert ours.split("\n") == [*lines, *lines, ""]
    assert err == ""
