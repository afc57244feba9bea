# SPDX-License-Identifier: BSD-3-Clause
"""May a task write to its arrays, and may the caller write to what comes back?

Under a borrowed name both may, because what was sent is a copy there.  In the native pools a large
argument is read in place and so is read-only; a result is always the caller's own.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trireme as tri
from conftest import PROCESSES, WAYS, open_pool
from trireme import multiprocessing as tmp
from trireme.futures import ProcessPoolExecutor

np = pytest.importorskip("numpy")

LARGE, SMALL = 100_000, 100  # bytes: beside the pickle in shared memory, and within it


def add_one(a: Any) -> Any:
    a += 1
    return a


def itself(a: Any) -> Any:
    return a


def add_both(pair: tuple[Any, Any]) -> Any:
    a, b = pair
    a += 1
    return a is b, b


def set_first(buffer: bytearray) -> int:
    buffer[0] = 7
    return len(buffer)


def flags(*arrays: Any) -> list[bool]:
    return [bool(a.flags.writeable) for a in arrays]


def dies_once(a: Any, mark: str) -> float:
    """Write to the argument, and die of it the first time."""
    a += 1
    if not os.path.exists(mark):
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(a[0])


def written() -> list[Any]:
    """Arrays of each kind that the originals deliver writable."""
    locked = np.zeros(LARGE // 8)
    locked.flags.writeable = False
    small_locked = np.zeros(SMALL // 8)
    small_locked.flags.writeable = False
    return [
        np.zeros(LARGE // 8),
        np.zeros(SMALL // 8),
        np.zeros((200, 100)).T,
        np.zeros(LARGE // 4)[::2],
        np.zeros(LARGE // 8, "f4"),
        np.ma.zeros(LARGE // 8),
        np.broadcast_to(np.zeros(1), (LARGE // 8,)),
        locked,
        small_locked,
    ]


# ---------------------------------------------------------------------------------------------
# Borrowed names
# ---------------------------------------------------------------------------------------------


@pytest.fixture(params=PROCESSES, scope="module")
def facade(request: pytest.FixtureRequest) -> Iterator[Any]:
    with tmp.get_context(request.param).Pool(2) as pool:
        yield pool


@pytest.fixture(params=PROCESSES, scope="module")
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    with ProcessPoolExecutor(2, mp_context=tmp.get_context(request.param)) as e:
        yield e


def is_ours(result: Any) -> None:
    assert (np.asarray(result) == 1).all()
    result += 1
    assert (np.asarray(result) == 2).all()


def test_tasks_of_a_borrowed_pool_write_to_their_arrays(facade: Any) -> None:
    arrays = written()
    for calls in (
        facade.map(add_one, arrays),
        facade.map(add_one, arrays, chunksize=4),
        list(facade.imap(add_one, arrays)),
        list(facade.imap(add_one, arrays, chunksize=2)),
        [facade.apply(add_one, (a,)) for a in arrays],
        [facade.apply(add_one, (), {"a": a}) for a in arrays],
        facade.starmap(add_one, [(a,) for a in arrays]),
    ):
        assert len(calls) == len(arrays)
        for result in calls:
            is_ours(result)
    for a in arrays:
        assert not np.asarray(a).any()  # the caller's own are as they were


def test_tasks_of_a_borrowed_executor_write_to_their_arrays(executor: Any) -> None:
    arrays = written()
    for a in arrays:
        is_ours(executor.submit(add_one, a).result(20))
    for result in executor.map(add_one, arrays, chunksize=3):
        is_ours(result)
    for a in arrays:
        assert not np.asarray(a).any()


def test_an_array_sent_twice_in_one_call_is_one_array_there(facade: Any, executor: Any) -> None:
    a = np.zeros(LARGE // 8)
    for same, b in (facade.apply(add_both, ((a, a),)), executor.submit(add_both, (a, a)).result()):
        assert same and (b == 1).all()
    two = facade.map(add_one, [a, a], chunksize=1)
    assert [r.sum() for r in two] == [a.size, a.size]
    assert not a.any()


def test_other_buffers_are_the_tasks_own_too(facade: Any) -> None:
    buffer = bytearray(LARGE)
    assert facade.apply(set_first, (buffer,)) == LARGE
    assert facade.map(set_first, [buffer] * 3) == [LARGE] * 3
    assert buffer[0] == 0
    assert type(facade.apply(itself, (bytes(LARGE),))) is bytes


def test_what_is_shared_stays_read_only_for_all(facade: Any) -> None:
    table = tri.share(np.zeros(LARGE // 8))
    assert facade.apply(flags, (table, np.zeros(LARGE // 8))) == [False, True]
    with pytest.raises(ValueError, match="read-only"):
        facade.apply(add_one, (table,))


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_a_call_that_is_run_again_finds_its_arguments_as_they_were(
    tmp_path: Path, size: int
) -> None:
    a = np.zeros(size // 8)
    with ProcessPoolExecutor(1, on_crash="isolate", retries=1) as e:
        assert e.submit(dies_once, a, str(tmp_path / "call")).result(60) == 1.0
        twice = e.map(dies_once, [a, a], [str(tmp_path / "map")] * 2, chunksize=2)
        assert list(twice) == [1.0, 2.0]  # one array: its pickle is one, too


def test_native_pools_in_a_borrowed_pools_worker_are_native(facade: Any) -> None:
    def inner() -> list[bool]:
        with tri.Pool(1, start="fork") as pool:
            return pool.apply(flags, (np.zeros(LARGE // 8),))

    assert facade.apply(inner) == [False]


# ---------------------------------------------------------------------------------------------
# Native pools
# ---------------------------------------------------------------------------------------------


def test_a_large_argument_is_read_only_in_a_native_pool(processes: Any) -> None:
    assert processes.apply(flags, (np.zeros(LARGE // 8),)) == [False]
    with pytest.raises(ValueError, match="read-only"):
        processes.apply(add_one, (np.zeros(LARGE // 8),))


PARTS: list[tuple[str, Callable[[Any], Any]]] = [
    ("the argument", lambda a: a),
    ("a large part of it", lambda a: a[1:]),
    ("a part of a few bytes", lambda a: a[:5]),
    ("transposed", lambda a: a.reshape(-1, 10).T),
    ("every second item", lambda a: a[::2]),
    ("in a dict", lambda a: {"a": [a, a[3:]]}),
    ("as bytes", lambda a: a.view("u1")),
]


@pytest.mark.parametrize("part", [f for _, f in PARTS], ids=[n for n, _ in PARTS])
def test_a_result_that_is_the_argument_or_a_part_is_writable(
    fast: Any, part: Callable[[Any], Any]
) -> None:
    for size in (800_000, LARGE, 8000):
        a = np.arange(size // 8, dtype="f8")
        results = [fast.submit(part, a).result(20), *fast.map(part, [a] * 5)]
        gots = [arrays_of(result) for result in results]
        for got in gots:
            assert all(map(np.array_equal, got, arrays_of(part(a))))
        for got in sum(gots, []):
            got[...] = 0
        assert a[-1] == size // 8 - 1


def arrays_of(value: Any) -> list[Any]:
    return [value] if isinstance(value, np.ndarray) else value["a"]


class Kept:
    """Holds a buffer of its own."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return Kept, (pickle.PickleBuffer(self.data),)


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_a_read_only_buffer_that_is_no_array_stays_read_only(fast: Any, size: int) -> None:
    back = fast.submit(itself, Kept(bytes(size))).result(20)
    assert memoryview(back.data).readonly and bytes(back.data) == bytes(size)


# ---------------------------------------------------------------------------------------------
# Shared arrays
# ---------------------------------------------------------------------------------------------


def layouts(path: Path) -> dict[str, Any]:
    mapped = np.memmap(path, "f8", "w+", shape=(LARGE // 8,))
    mapped[:] = 3
    table = np.zeros(1000, [("a", "i4"), ("b", "f8", (3,)), ("c", "S5")])
    table["a"] = np.arange(1000)
    return {
        "plain": np.arange(LARGE // 8),
        "a few": np.arange(5),
        "nothing": np.zeros((0, 5)),
        "no dimension": np.array(3.5),
        "fortran": np.asfortranarray(np.arange(20000.0).reshape(100, 200)),
        "transposed": np.arange(24000).reshape(20, 30, 40).T,
        "strided": np.arange(20000)[::2],
        "backwards": np.arange(20000)[::-1],
        "broadcast": np.broadcast_to(np.arange(3.0), (10000, 3)),
        "memmap": mapped,
        "dates": np.arange(10000).astype("M8[D]"),
        "days": np.arange(10000).reshape(100, 100).astype("m8[D]").T,
        "records": table,
        "recarray": np.rec.array([(1, 2.0)] * 1000, dtype=[("x", "i4"), ("y", "f8")]),
        "matrix": np.arange(4).reshape(2, 2).view(np.matrix),
        "masked": np.ma.array(np.arange(10000), mask=np.arange(10000) % 3 == 0, fill_value=7),
        "unmasked": np.ma.array(np.arange(10000)),
        "masked dates": np.ma.array(np.arange(3000).astype("M8[D]"), mask=[0, 1, 0] * 1000),
        "text": np.array(["a", "bb"] * 1000),
        "foreign bytes": np.arange(10000, dtype=">i4"),
        "unaligned": np.frombuffer(bytes(80001), "u1")[1:].view("f8"),
    }


def private_bytes() -> int:
    """Memory of this process that is its own."""
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0


def look_at(a: Any) -> Any:
    mask = np.ma.getmask(a)
    locked = [a.flags.writeable, mask is not np.ma.nomask and mask.flags.writeable]
    return type(a), a.dtype, a.shape, a.strides, locked, a


@pytest.mark.parametrize("way", [*WAYS])
def test_shared_arrays_of_every_layout_are_read_only_and_whole(tmp_path: Path, way: str) -> None:
    with open_pool(way) as pool:
        for name, a in layouts(tmp_path / "mapped").items():
            kind, dtype, shape, _, locked, there = pool.apply(look_at, (tri.share(a),))
            assert kind is type(a), name
            assert dtype == a.dtype and shape == a.shape, name
            assert locked == [False, False], name
            assert np.array_equal(np.ma.getdata(there), np.ma.getdata(a)), name
            assert np.array_equal(np.ma.getmaskarray(there), np.ma.getmaskarray(a)), name
            if kind is np.ma.MaskedArray:
                assert str(there.fill_value) == str(a.fill_value)  # NaT is not equal to itself
            nested = tri.share({"here": [a, 1]})
            assert pool.apply(lambda d: d["here"][0].flags.writeable, (nested,)) is False, name


def growth(a: Any) -> int:
    """How much memory of its own a worker needs to read all of an array that it never met."""
    before = private_bytes()
    assert np.ma.getdata(a.value).max() == np.ma.getdata(a.value).min()
    return private_bytes() - before


class Hidden:
    """A handle in here is not looked for: the task opens it itself."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle


@pytest.mark.parametrize("kind", ["plain", "strided", "dates", "memmap", "masked"])
def test_large_shared_arrays_take_no_memory_in_a_worker(tmp_path: Path, kind: str) -> None:
    n = 2_000_000
    mapped = np.memmap(tmp_path / "mapped", "f8", "w+", shape=(n,))
    mapped[:] = 1
    a = {
        "plain": np.ones(n),
        "strided": np.ones((n, 2))[:, 0],
        "dates": np.ones(n, "M8[s]"),
        "memmap": mapped,
        "masked": np.ma.array(np.ones(n), mask=np.zeros(n, bool)),
    }[kind]
    handle = tri.share(a)
    with tri.Pool(1) as pool:
        pool.apply(private_bytes)
        assert pool.apply(lambda hidden: growth(hidden.handle), (Hidden(handle),)) < n * 8 // 2


def test_objects_and_classes_of_ones_own_are_shared_as_before(fast: Any) -> None:
    class Own(np.ndarray):  # type: ignore[misc]
        pass

    objects = np.array([1, "a", None, {}], dtype=object)
    own = np.arange(1000).view(Own)
    assert fast.apply(itself, (tri.share(objects),)).tolist() == [1, "a", None, {}]
    assert fast.apply(lambda a: type(a).__name__, (tri.share(own),)) == "Own"
    assert fast.apply(lambda a: int(a.sum()), (tri.share(own),)) == 499500
