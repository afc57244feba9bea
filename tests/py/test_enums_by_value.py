# SPDX-License-Identifier: BSD-3-Clause
"""Enums of the script in workers: names, aliases, values, attributes and identity as at home."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import PROCESSES

# Everything in __main__: that is what goes by value.
HEAD = """
import enum, sys
import trireme as tri

class Perm(enum.Flag):
    R = 1
    W = 2
    RW = 3
class Bits(enum.IntFlag):
    A = 1
    B = 2
class Color(enum.Enum):
    RED = 1
    CRIMSON = 1
    BLUE = enum.auto()
    def shout(self): return self.name + "!"
class Planet(enum.Enum):
    MERCURY = (3.303e+23, 2.4397e6)
    EARTH = (5.976e+24, 6.37814e6)
    def __init__(self, mass, radius):
        self.mass = mass
        self.radius = radius
    @property
    def gravity(self): return self.mass / (self.radius * self.radius)
class Coord(bytes, enum.Enum):
    def __new__(cls, value, label):
        made = bytes.__new__(cls, [value])
        made._value_ = value
        made.label = label
        return made
    PX = (0, "P.X")
    PY = (1, "P.Y")
class Word(str, enum.Enum):
    A = "a"
    def __str__(self): return "Word!"
class Number(enum.IntEnum):
    ONE = 1
    TWO = 2
class Pair(tuple, enum.Enum):
    P = (1, 2)
class Node(enum.Enum):
    A = "a"
    B = "b"
    def __init__(self, value): self.friends = []
Node.A.friends.append(Node.B)
Node.B.friends.append(Node.A)
class Unhashable(enum.Enum):
    L = [1]

ALL = (Perm, Bits, Color, Planet, Coord, Word, Number, Pair, Node, Unhashable)
def same(x): return x
def tell(m):
    kind = type(m)
    others = ("__objclass__", "_sort_order_", "friends")
    other = sorted(pair for pair in vars(m).items() if pair[0] not in others)
    content = kind._member_type_.__repr__(m) if kind._member_type_ is not object else None
    return (m.name, m.value, repr(other), content, list(kind.__members__), len(kind),
            kind(m.value) is m, isinstance(m, kind._member_type_))
"""


@pytest.mark.parametrize("start", PROCESSES)
def test_members_are_what_they_are_at_home(run_script: Any, start: str) -> None:
    out, _ = run_script(
        HEAD
        + """
members = [m for kind in ALL for m in kind.__members__.values()]
with tri.Pool(1, start=sys.argv[1]) as pool:
    for m in members:
        there = pool.submit(tell, m).result(60)
        if there != tell(m):
            print(m, there, tell(m))
        back = pool.submit(same, m).result(60)
        if back is not m:
            print(m, back)
    print(pool.submit(lambda: Planet.EARTH.gravity).result(60) == Planet.EARTH.gravity)
    call = lambda fn: pool.submit(fn).result(60)
    print(call(lambda: (Perm.R | Perm.W) is Perm.RW and Color(1) is Color.CRIMSON))
    print(call(lambda: (Bits.A | Bits.B | 8).value), pool.map(same, list(Bits)) == list(Bits))
    print(call(lambda: Node.A.friends[0].friends[0] is Node.A))
    print(call(lambda: Color.BLUE.shout() + str(Word.A) + Coord.PY.label))
    print(call(lambda: list(Color)) == list(Color), pool.map(type, [Number.ONE])[0] is Number)
    print(call(lambda: Perm.R | Perm.W) is Perm.RW)
    Color.extra = 5
    print(pool.submit(lambda: Color.RED.extra).result(60))
""",
        start,
    )
    assert out == "True\nTrue\n11 True\nTrue\nBLUE!Word!P.Y\nTrue True\nTrue\n5\n"
