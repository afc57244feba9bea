# SPDX-License-Identifier: BSD-3-Clause
"""The fast binary form of common values: what comes back is what went in, or None, or ValueError.

Simple values return equal, of the same types and bit for bit; all others are refused, so that the
caller pickles them; bytes that no encoder wrote give ValueError or some value and never a crash.
TRI_TEST_CODEC_PATH may name a stand-alone build of the codec to test instead of the package's.
"""

from __future__ import annotations

import collections
import enum
import gc
import importlib
import importlib.util
import math
import os
import pickle
import random
import struct
import sys
import unittest
from types import ModuleType
from typing import Any


def load_codec() -> ModuleType:
    """The extension module that holds the codec's test functions."""
    path = os.environ.get("TRI_TEST_CODEC_PATH")
    if not path:
        return importlib.import_module("trireme._core")
    spec = importlib.util.spec_from_file_location("tricodec", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


C = load_codec()

DEPTH = 32
INT_BITS = 4095
STR_BYTES = 1 << 20
VALUE_BYTES = 16 << 20


def same(a: Any, b: Any) -> bool:
    """Whether two values agree in types, structure, order of dicts, and bits of floats."""
    if type(a) is not type(b):
        return False
    if type(a) is float:
        return struct.pack("d", a) == struct.pack("d", b)
    if type(a) is complex:
        return same(a.real, b.real) and same(a.imag, b.imag)
    if type(a) in (tuple, list):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict:
        return same(list(a.items()), list(b.items()))
    return bool(a == b)


def nan(payload: int, sign: int = 0, quiet: int = 1) -> float:
    """A NaN with these bits."""
    bits = sign << 63 | 0x7FF << 52 | quiet << 51 | payload
    value: float = struct.unpack("d", struct.pack("Q", bits))[0]
    return value


def nested(depth: int, kind: type) -> Any:
    """A value of so many containers, one in the other."""
    value: Any = 1
    for _ in range(depth):
        value = {1: value} if kind is dict else kind([value])
    return value


class Generator:
    """Random simple values without sharing; every leaf is fresh."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def integer(self) -> Any:
        """An int around the borders of the forms: 8, 30, 32, 60, 64 bits and many."""
        rng = self.rng
        bits = rng.choice((0, 6, 7, 8, 9, 15, 29, 30, 31, 32, 33, 59, 60, 61, 62, 63, 64, 65, 500))
        return rng.choice((-1, 1)) * ((1 << bits) + rng.randint(-2, 2))

    def real(self) -> float:
        """Any float: all bit patterns may come."""
        rng = self.rng
        if rng.random() < 0.5:
            return rng.uniform(-1e6, 1e6)
        value: float = struct.unpack("d", rng.randbytes(8))[0]
        return value

    def text(self) -> str:
        """A str of one of the widths, with surrogates."""
        rng = self.rng
        top = rng.choice((0x7F, 0x7F, 0xFF, 0xFFFF, 0x10FFFF))
        return "".join(chr(rng.randint(0, top)) for _ in range(rng.choice((0, 1, 2, 9, 70, 300))))

    def leaf(self) -> Any:
        """A value that is no container."""
        rng = self.rng
        pick = rng.randrange(9)
        if pick < 2:
            return self.integer()
        if pick < 4:
            return self.real()
        if pick < 6:
            return self.text()
        if pick == 6:
            return rng.randbytes(rng.choice((0, 1, 5, 255, 256, 1000)))
        if pick == 7:
            return complex(self.real(), self.real())
        return rng.choice((None, True, False))

    def key(self, depth: int) -> Any:
        """A value that hashes."""
        if depth > 0 and self.rng.random() < 0.2:
            return tuple(self.key(depth - 1) for _ in range(self.rng.randrange(4)))
        return self.leaf()

    def value(self, depth: int = 4) -> Any:
        """Any simple value."""
        rng = self.rng
        pick = rng.random()
        if depth == 0 or pick < 0.4:
            return self.leaf()
        n = rng.choice((0, 1, 2, 3, 7)) if rng.random() < 0.97 else 300
        if n == 300:
            depth = 1
        if pick < 0.6:
            return tuple([self.value(depth - 1) for _ in range(n)])
        if pick < 0.8:
            return [self.value(depth - 1) for _ in range(n)]
        return {self.key(1): self.value(depth - 1) for _ in range(n)}


class Colour(enum.IntEnum):
    """A subclass of int."""

    RED = 1


Point = collections.namedtuple("Point", "x y")


class Float(float):
    """A subclass of float, as numpy.float64 is."""


class Str(str):
    """A subclass of str."""


BORDERS = [0, 1, -1, 127, 128, -128, -129, 255, 256, 2**15, 2**30 - 1, 2**30, 2**31 - 1, 2**31,
           -(2**31), -(2**31) - 1, 2**60 - 1, 2**60, 2**63 - 1, -(2**63)]
BIG = [2**63, -(2**63) - 1, 2**64, -(2**64), 10**100, -(10**100), 2**INT_BITS - 1,
       -(2**INT_BITS) + 1]
FLOATS = [0.0, -0.0, 1.5, math.inf, -math.inf, 5e-324, 1.7976931348623157e308,
          nan(0), nan(12345), nan(1, sign=1), nan(77, quiet=0)]
STRINGS = ["", "a", "\x00", "\x7f", "\x80", "\xff", "\u0100", "\uffff", "\U00010000", "\U0010ffff",
           "\ud800", "\udfff\ud800", "a\udc80b", "\xe9t\xe9", "\u03b1\u03b2", "x" * 255, "x" * 256,
           "\xe9" * 300, "\u03b1" * 300, "\U0001f680" * 300, "a\U0001f680", "ab\x00cd"]
BYTES = [b"", b"\x00", b"\xff", b"ab\x00", bytes(range(256)), b"x" * 255, b"x" * 256]
LEAVES: list[Any] = [None, True, False, *BORDERS, *BIG, *FLOATS, *STRINGS, *BYTES,
                     0j, complex(-0.0, nan(9))]


class OneValue(unittest.TestCase):
    """_encode and _decode."""

    def check_round_trip(self, value: Any) -> None:
        """The value is simple and comes back the same."""
        data = C._encode(value)
        self.assertIsInstance(data, bytes)
        self.assertTrue(same(C._decode(data), value), repr(value)[:200])

    def test_leaves_come_back_bit_for_bit(self) -> None:
        for value in LEAVES:
            self.check_round_trip(value)

    def test_singletons_come_back_as_themselves(self) -> None:
        singletons: list[Any] = [None, True, False, (), "", chr(97), chr(233), b"", bytes([97]), 5]
        for value in singletons:
            self.assertIs(C._decode(C._encode(value)), value)

    def test_containers_keep_types_and_order(self) -> None:
        value: Any
        for value in ((), [], {}, (1,), [1.0], {"b": 1, "a": 2, 3: [4, {5: (6,)}]},
                      tuple(range(255)), tuple(range(256)), list(range(70000)),
                      {i: str(i) for i in range(1000)}, {(1, "x"): None, None: (), 1.5: b""},
                      [[], [], (), ()], [LEAVES], ({nan(1): 1, nan(2): 2},)):
            self.check_round_trip(value)

    def test_random_values_come_back(self) -> None:
        generate = Generator(1)
        for _ in range(1500):
            self.check_round_trip(generate.value())

    def test_subclasses_and_strangers_are_not_simple(self) -> None:
        for value in (Colour.RED, Point(1, 2), Float(1.0), Str("a"), collections.OrderedDict(),
                      collections.defaultdict(list), bytearray(b"x"), {1}, frozenset(), object(),
                      range(3), int, len, memoryview(b""), Ellipsis):
            self.assertIsNone(C._encode(value))
            self.assertIsNone(C._encode((1, [value])))
            self.assertIsNone(C._encode({1: value}))

    def test_numpy_scalars_are_not_simple(self) -> None:
        try:
            import numpy
        except ImportError:
            self.skipTest("numpy is absent")
        for value in (numpy.float64(1.0), numpy.int64(1), numpy.str_("a"), numpy.bytes_(b"a")):
            self.assertIsNone(C._encode(value))

    def test_limit_of_ints(self) -> None:
        for value in (2**INT_BITS, -(2**INT_BITS) - 1, 2**INT_BITS + 1, 1 << 100000):
            self.assertIsNone(C._encode(value))
        for bits in range(1, INT_BITS, 61):
            for delta in (-1, 0, 1):
                self.check_round_trip((1 << bits) + delta)
                self.check_round_trip(-(1 << bits) + delta)

    def test_limit_of_strings(self) -> None:
        self.check_round_trip("x" * STR_BYTES)
        self.check_round_trip("\u03b1" * (STR_BYTES // 2))
        self.check_round_trip("\U0001f680" * (STR_BYTES // 4))
        self.check_round_trip(b"x" * STR_BYTES)
        for value in ("x" * (STR_BYTES + 1), "\xe9" * (STR_BYTES + 1), b"x" * (STR_BYTES + 1),
                      "\u03b1" * (STR_BYTES // 2 + 1), "\U0001f680" * (STR_BYTES // 4 + 1)):
            self.assertIsNone(C._encode(value))

    def test_limit_of_a_value(self) -> None:
        text = "x" * (1 << 19)
        self.check_round_trip([text] * 30)
        self.assertIsNone(C._encode([text] * 33))
        self.assertIsNone(C._encode({i: text for i in range(33)}))
        self.assertIsNone(C._encode([None] * (VALUE_BYTES + 1)))

    def test_limit_of_depth(self) -> None:
        for kind in (tuple, list, dict):
            self.check_round_trip(nested(DEPTH, kind))
            self.assertIsNone(C._encode(nested(DEPTH + 1, kind)))
            self.assertIsNone(C._encode(nested(DEPTH + 50, kind)))

    def test_refused_value_leaves_no_exception_behind(self) -> None:
        for value in (object(), 1 << 5000, [1 << 5000], "x" * (STR_BYTES + 1)):
            self.assertIsNone(C._encode(value))
            self.assertIsNone(sys.exc_info()[1])


class Sharing(unittest.TestCase):
    """A container reached twice is refused, because pickle would keep it one object."""

    def test_shared_containers_are_refused(self) -> None:
        shareable: list[Any] = [[], [1], {}, {1: 2}, (1,), ([],)]
        for x in shareable:
            for value in ((x, x), [x, x], {1: x, 2: x}, (x, [x]), [[x], [x]], ([1, (x,)], {1: x})):
                self.assertIsNone(C._encode(value), repr(value))

    def test_list_in_a_shared_tuple_is_refused(self) -> None:
        shared: tuple[Any, ...] = ([],)
        self.assertIsNone(C._encode([shared, shared]))
        key = (1, 2)
        self.assertIsNone(C._encode([{key: 1}, {key: 2}]))

    def test_cycles_are_refused(self) -> None:
        x: list[Any] = []
        x.append(x)
        self.assertIsNone(C._encode(x))
        d: dict[Any, Any] = {}
        d[1] = d
        self.assertIsNone(C._encode(d))
        t: tuple[Any, ...] = ([],)
        t[0].append(t)
        self.assertIsNone(C._encode(t))
        self.assertIsNone(C._encode([t]))
        self.assertIsNone(C._encode(t[0]))
        x.clear()
        d.clear()
        t[0].clear()

    def test_doubling_tuples_end_at_once(self) -> None:
        value: tuple[Any, ...] = (1,)
        for _ in range(30):
            value = (value, value)
        self.assertIsNone(C._encode(value))

    def test_containers_held_elsewhere_are_simple(self) -> None:
        for n in (1, 15, 16, 17, 31, 32, 33, 300, 5000):
            rows = [[i] for i in range(n)]
            value = list(rows)
            self.assertTrue(same(C._decode(C._encode(value)), value))
            self.assertIsNone(C._encode([*rows, rows[0]]))
            self.assertIsNone(C._encode([*rows, rows[-1]]))
            self.assertIsNone(C._encode([*rows, (rows[n // 2],)]))

    def test_empty_tuples_and_leaves_may_be_shared(self) -> None:
        text = "x" * 100
        value = [(), (), text, text, {text: text}, (text,)]
        self.assertTrue(same(C._decode(C._encode(value)), value))

    def test_decoded_containers_are_new(self) -> None:
        value = [[1], {2: 3}]
        back = C._decode(C._encode(value))
        self.assertIsNot(back, value)
        self.assertIsNot(back[0], value[0])
        back[0].append(9)
        self.assertEqual(value, [[1], {2: 3}])

    def test_same_as_pickle_on_random_graphs(self) -> None:
        """Where the codec accepts a value with sharing among its parts, no list loses it."""
        rng = random.Random(7)
        accepted = 0
        for _ in range(3000):
            pool: list[Any] = [[], {}, (1, 2), ([],)]
            for _ in range(rng.randrange(1, 5)):
                parts = [rng.choice(pool) for _ in range(rng.randrange(0, 4))]
                pool.append(rng.choice((list, tuple, lambda p: dict(enumerate(p))))(parts))
            value = pool[-1]
            data = C._encode(value)
            if data is None:
                continue
            accepted += 1
            self.assertEqual(count_objects(C._decode(data)), count_objects(value))
            self.assertTrue(same(C._decode(data), pickle.loads(pickle.dumps(value))))
            del pool
        self.assertGreater(accepted, 100)


def count_objects(value: Any) -> int:
    """How many containers, other than (), a value has by identity."""
    seen: dict[int, Any] = {}

    def visit(v: Any) -> None:
        if type(v) not in (tuple, list, dict) or v == () or id(v) in seen:
            return
        seen[id(v)] = v
        for x in v.values() if type(v) is dict else v:
            visit(x)

    visit(value)
    return len(seen)


class Sequences(unittest.TestCase):
    """Columns, ranges and tagged values."""

    def check_sequence(self, items: list[Any]) -> bytes:
        """Written whole and streamed, read whole and streamed: always the same."""
        data = C._encode_seq(items)
        self.assertIsInstance(data, bytes)
        assert isinstance(data, bytes)
        for back in (C._decode_seq(data, len(items)), C._decode_stream(data, len(items)),
                     C._seq_stream(items)):
            self.assertTrue(same(back, items), repr(items)[:200])
        half = len(items) // 2
        self.assertTrue(same(C._decode_stream(data, half), items[:half]))
        return data

    def test_columns(self) -> None:
        for items in ([1], BORDERS, list(range(1000)), FLOATS, [0.5] * 1000, [1.0]):
            data = self.check_sequence(items)
            self.assertEqual(len(data), 8 + 8 * len(items))

    def test_tagged(self) -> None:
        chunks: list[list[Any]] = [
            [], [None], [True, False] * 500, LEAVES, STRINGS, [(1, 2.0)] * 50, [[], {}],
            [{"name": str(i), "x": i} for i in range(300)]]
        for items in chunks:
            self.check_sequence(items)

    def test_broken_columns_are_retagged(self) -> None:
        for first in (BORDERS * 20, FLOATS * 20):
            for n in (1, 2, 3, 8, 9, 63, 64, 65, 200):
                for breaker in (None, True, "x", 2**63, 2**200, (1,), 1, 1.0):
                    self.check_sequence([*first[:n], breaker])
                    self.check_sequence([*first[:n], breaker, *first[:n]])

    def test_random_sequences(self) -> None:
        generate = Generator(2)
        for _ in range(300):
            makers = generate.rng.choices((generate.integer, generate.real, generate.value), k=2)
            n = generate.rng.randrange(40)
            self.check_sequence([makers[0]() for _ in range(n)]
                                + [makers[1]() for _ in range(generate.rng.randrange(4))])

    def test_one_strange_item_refuses_the_chunk(self) -> None:
        for items in ([object()], [1, object()], [1.0, Float(2.0)], [None, {1}], [1, Colour.RED],
                      [*range(100), 1 << 5000]):
            self.assertIsNone(C._encode_seq(items))

    def test_writer_keeps_what_came_before_a_strange_item(self) -> None:
        for before in ([], [1], [1.0, 2.0], list(range(100)), [1, "x", None], ["x"] * 50):
            self.assertTrue(same(C._seq_stream([*before, object()]), before))

    def test_identity_is_kept_per_item_only(self) -> None:
        x = [1]
        back = C._decode_seq(C._encode_seq([x, x]), 2)
        self.assertEqual(back, [x, x])
        self.assertIsNot(back[0], back[1])
        self.assertIsNone(C._encode_seq([(x, x)]))

    def test_items_that_share_much_are_left_to_pickle(self) -> None:
        table = {f"k{i}": [i] * 3 for i in range(200)}
        long = ["x" * 2000, "\xe9" * 500, b"y" * 900]
        for shared in (table, list(range(100)), ("x" * 60,) * 3, *long):
            self.assertIsNone(C._encode_seq([(shared, i) for i in range(1000)]))
            self.assertIsNone(C._encode_seq([shared] * 1000))
            for few in ([(shared, i) for i in range(3)], [shared] * 3):
                self.assertTrue(same(C._decode_seq(C._encode_seq(few), 3), few))
            apart = [(C._decode(C._encode(shared)), i) for i in range(100)]
            self.assertTrue(same(C._decode_seq(C._encode_seq(apart), 100), apart))
        self.assertIsNotNone(C._encode_seq([(("a", 1), {}) for _ in range(10000)]))

    def test_records_share_their_keys(self) -> None:
        items = [{"name": i, "k" * 64: i} for i in range(10)]
        for read in (C._decode_seq, C._decode_stream):
            back = read(C._encode_seq(items), 10)
            self.assertTrue(same(back, items))
            self.assertIs(list(back[0])[0], list(back[9])[0])

    def test_ranges(self) -> None:
        top, low = 2**63 - 1, -(2**63)
        for start, step, n in ((0, 1, 0), (0, 1, 10), (5, -3, 7), (top, 1, 1), (top, top, 1),
                               (low, 1, 3), (top, -1, 3), (low, top, 3), (0, 0, 5), (1, low, 2)):
            data = C._encode_range(start, step, n)
            expected = [start + i * step for i in range(n)]
            self.assertEqual(len(data), 24)
            self.assertTrue(same(C._decode_seq(data, n), expected))
            self.assertTrue(same(C._decode_stream(data, n), expected))

    def test_ranges_that_leave_64_bits_are_refused(self) -> None:
        top, low = 2**63 - 1, -(2**63)
        for start, step, n in ((top, 1, 2), (low, -1, 2), (0, top, 3), (0, low, 3), (2**63, 1, 1),
                               (0, 2**64, 2), (0, 1, -1), (True, 1, 2), (0, Colour.RED, 2),
                               (0.0, 1, 2), (1, 1, sys.maxsize)):
            self.assertIsNone(C._encode_range(start, step, n), (start, step, n))

    def test_large_chunks_of_one_string_are_refused(self) -> None:
        self.assertIsNone(C._encode_seq(["x" * (1 << 20)] * 65))
        self.assertEqual(len(C._seq_stream(["x" * (1 << 20)] * 65)), 63)


class Malformed(unittest.TestCase):
    """No bytes crash a decoder, and most give ValueError."""

    def assert_malformed(self, data: bytes) -> None:
        with self.assertRaises(ValueError):
            C._decode(data)

    def decode_anything(self, data: bytes, n: int) -> None:
        """Each decoder gives ValueError or something that can be used."""
        for read in (C._decode, lambda d: C._decode_seq(d, n), lambda d: C._decode_stream(d, n)):
            try:
                value = read(data)
            except ValueError:
                continue
            repr(value)
            value == value  # noqa: B015 - must not crash

    def test_every_truncation_is_refused(self) -> None:
        generate = Generator(3)
        for value in [*LEAVES, *(generate.value() for _ in range(150))]:
            data = C._encode(value)
            for end in {*range(min(len(data), 64)), len(data) - 1, len(data) // 2}:
                self.assert_malformed(data[:end])
            self.assert_malformed(data + b"\x00")

    def test_every_truncation_of_a_sequence_is_refused(self) -> None:
        for items in ([1, 2, 3], [1.0, 2.0], [None, "abc", (1, [2])], [{"a": 1}] * 3, []):
            data = C._encode_seq(items)
            n = len(items)
            for end in range(len(data)):
                for read in (C._decode_seq, C._decode_stream):
                    with self.assertRaises(ValueError):
                        read(data[:end], n)
            for read in (C._decode_seq, C._decode_stream):
                with self.assertRaises(ValueError):
                    read(data + b"\x00", n)
        with self.assertRaises(ValueError):
            C._decode_stream(C._encode_range(1, 2, 3)[:-1], 3)

    def test_wrong_counts_are_refused(self) -> None:
        for data in (C._encode_seq([1, 2]), C._encode_seq([None, None]), C._encode_range(0, 1, 2)):
            for n in (0, 1, 3, 1000, -1):
                with self.assertRaises(ValueError):
                    C._decode_seq(data, n)

    def test_flipped_bits_never_crash(self) -> None:
        generate = Generator(4)
        rng = generate.rng
        for _ in range(250):
            data = C._encode(generate.value())
            n = rng.randrange(1, 6)
            seq = C._encode_seq([generate.value(2) for _ in range(n)])
            for source in (data, seq):
                for _ in range(40):
                    bad = bytearray(source)
                    for _ in range(rng.choice((1, 1, 2, 5))):
                        bad[rng.randrange(min(len(bad), 400))] ^= 1 << rng.randrange(8)
                    self.decode_anything(bytes(bad), n)

    def test_random_bytes_never_crash(self) -> None:
        rng = random.Random(5)
        for _ in range(20000):
            self.decode_anything(bytes(rng.choices(range(24), k=rng.randrange(40))), 3)

    def tag(self, value: Any) -> int:
        """The tag byte of a value's form."""
        tag: int = C._encode(value)[0]
        return tag

    def test_counts_beyond_the_bytes_are_refused(self) -> None:
        for value in (tuple(range(300)), list(range(300)), dict.fromkeys(range(300)), "x" * 300,
                      b"x" * 300, "\xe9", "\u03b1", "\U0001f680"):
            for count in (2**32 - 1, 2**31, 1 << 24, 5000):
                head = bytes([self.tag(value)]) + struct.pack("I", count)
                self.assert_malformed(head + b"\0" * 99)

    def test_nested_counts_cannot_claim_the_same_bytes(self) -> None:
        size = 1 << 20
        head = bytes([self.tag(list(range(300)))])
        data = b"".join(head + struct.pack("I", size) for _ in range(30)) + b"\0" * (size + 30)
        self.assert_malformed(data)

    def test_too_deep_is_refused(self) -> None:
        one = C._encode([1])[:2]
        self.assertEqual(C._decode(one * DEPTH + C._encode(1)), nested(DEPTH, list))
        self.assert_malformed(one * (DEPTH + 1) + C._encode(1))
        self.assert_malformed(one * 100000)
        self.assert_malformed(C._encode({1: 1})[:4] * 100000)

    def test_keys_that_do_not_hash_or_repeat_are_refused(self) -> None:
        head = C._encode({1: 2})[:1]
        one, items = C._encode(1), C._encode([])
        self.assert_malformed(head + b"\x01" + items + one)
        self.assert_malformed(head + b"\x01" + C._encode(([],)) + one)
        self.assert_malformed(head + b"\x02" + one * 4)
        self.assert_malformed(head + b"\x02" + C._encode("a") + one + C._encode("a") + one)

    def test_characters_beyond_unicode_are_refused(self) -> None:
        wide = bytes([self.tag("\U0001f680")]) + struct.pack("I", 1)
        self.assertEqual(C._decode(wide + struct.pack("I", 0x10FFFF)), "\U0010ffff")
        for unit in (0x110000, 0x7FFFFFFF, 0xFFFFFFFF):
            self.assert_malformed(wide + struct.pack("I", unit))
        self.assert_malformed(C._encode("a")[:2] + b"\x80")
        self.assert_malformed(C._encode("abcdefghij")[:2] + b"abcdefgh\x80j")

    def test_strings_wider_than_needed_become_ordinary(self) -> None:
        for value, code in (("\xe9", "B"), ("\u03b1", "H"), ("\U0001f680", "I")):
            for text in ("a", "ab", "\xe9", "\xe9\xe8", "\u03b1", "\u03b1b", "\u03b1" * 9):
                if ord(max(text)) >= 1 << 8 * struct.calcsize(code):
                    continue
                units = struct.pack(f"{len(text)}{code}", *map(ord, text))
                back = C._decode(bytes([self.tag(value)]) + struct.pack("I", len(text)) + units)
                self.assertEqual(back, text)
                self.assertEqual(hash(back), hash(text))
                self.assertEqual(sys.getsizeof(back), sys.getsizeof("".join(list(text))))

    def test_ints_longer_than_needed_are_plain_ints(self) -> None:
        head = bytes([self.tag(2**70)])
        self.assertEqual(C._decode(head + struct.pack("H", 512) + b"\xff" * 512), -1)
        self.assertEqual(C._decode(head + struct.pack("H", 3) + b"\x05\0\0"), 5)
        self.assert_malformed(head + struct.pack("H", 0))
        self.assert_malformed(head + struct.pack("H", 513) + b"\xff" * 513)


class References(unittest.TestCase):
    """Nothing is leaked and nothing is released once too often."""

    def test_counts_of_arguments_do_not_change(self) -> None:
        items = [object(), [1, "two", 3.5], {"k": (1,)}, "text" * 20, 10**30, b"bytes"]
        before = [sys.getrefcount(x) for x in items]
        for _ in range(50):
            C._encode(items)
            C._encode(items[1:])
            C._encode_seq(items)
            C._encode_seq(items[1:])
            C._seq_stream(items[1:] + items)
        self.assertEqual([sys.getrefcount(x) for x in items], before)

    def test_counts_of_results_are_one(self) -> None:
        back = C._decode(C._encode([[1], {"key": 10**30}, "text" * 20]))
        # What a variable shows of an object that nothing else holds; it differs by version.
        fresh = [object()]
        y = fresh.pop()
        alone = sys.getrefcount(y)
        while back:
            x = back.pop()
            self.assertEqual(sys.getrefcount(x), alone)
            if type(x) is dict:
                key = next(iter(x))
                self.assertEqual(sys.getrefcount(key), alone + 1)

    def exercise(self) -> None:
        """One of everything, errors included."""
        generate = Generator(6)
        for _ in range(60):
            value = generate.value()
            data = C._encode(value)
            C._decode(data)
            items = [{"a": 1, "b": generate.leaf()}, generate.value(2), "x" * 100]
            seq = C._encode_seq(items)
            C._decode_seq(seq, 3)
            C._decode_stream(seq, 1)
            C._seq_stream([*items, object()])
            C._encode([items, items])
            for bad in (data[:-1], seq[:-1], seq):
                for read in (C._decode, lambda d: C._decode_seq(d, 3),
                             lambda d: C._decode_stream(d, 3)):
                    try:
                        read(bad)
                    except ValueError:
                        pass

    def test_blocks_do_not_grow(self) -> None:
        count = getattr(sys, "gettotalrefcount", sys.getallocatedblocks)
        for _ in range(3):
            self.exercise()
        gc.collect()
        before = count()
        for _ in range(10):
            self.exercise()
        gc.collect()
        self.assertLess(count() - before, 60)


if __name__ == "__main__":
    unittest.main()
