# SPDX-License-Identifier: BSD-3-Clause
"""What goes in and comes out: sizes, arrays in place, exceptions, what cannot travel."""

from __future__ import annotations

import gc
import os
import threading
import traceback
from typing import Any

import pytest
import trireme as tri
from conftest import live_bytes, open_pool, settle, until


def same(x: Any) -> Any:
    return x


def square(x: int) -> int:
    return x * x


# -------------------------------------------------------------- sizes

# What fits into a slot, where small results stop being copied, and their neighbours.
EDGES = sorted({n + d for n in (0, 1, 64, 100, 128, 192, 200, 224, 256, 512, 4096, 65_536, 1 << 20)
                for d in (-17, -16, -2, -1, 0, 1, 2, 16, 17) if n + d >= 0})  # fmt: skip


@pytest.mark.parametrize("kind", [bytes, str, bytearray])
def test_values_of_every_size_come_back_whole(fast: Any, kind: type) -> None:
    for n in EDGES:
        value = kind("x" * n, "ascii") if kind is not str else "x" * n
        assert fast.submit(same, value).result(20) == value, n
    values = [kind("y" * n, "ascii") if kind is not str else "y" * n for n in EDGES]
    assert fast.map(same, values) == values
    assert fast.map(same, values, chunk=10) == values
    assert list(fast.imap(same, values, chunk=3)) == values


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**100, 0.0, -0.0,
        1.5, float("inf"), 1j, "", "é€😀", "\ud800", "\0", b"", b"\0", (), ((),), (1, (2, "3")),
        [[]], {}, {"a": [1, {2: 3}]}, {1, 2}, frozenset([1]), range(5), slice(1, 2), Ellipsis,
        bytearray(b"x"), int, len, os.path.join, ValueError("x").args,
    ],
    ids=lambda v: repr(v)[:30].encode("ascii", "backslashreplace").decode(),
)  # fmt: skip
def test_every_common_value_is_itself_again(pool: Any, value: Any) -> None:
    got = pool.submit(same, value).result(20)
    assert type(got) is type(value)
    assert got == value
    assert repr(got) == repr(value)
    assert pool.map(same, [value, value]) == [value, value]


def test_nan_stays_nan(workers: Any) -> None:
    got = workers.submit(same, float("nan")).result(20)
    assert got != got


def test_bool_and_int_are_not_confused_in_a_column(workers: Any) -> None:
    values = [0, False, 1, True, 1.0, None, "1", b"1"] * 20
    for got in (workers.map(same, values), list(workers.imap(same, values, chunk=7))):
        assert [(type(v), v) for v in got] == [(type(v), v) for v in values]


def test_a_hundred_mebibytes_go_there_and_back(fast: Any) -> None:
    data = os.urandom(1 << 20) * 100
    assert fast.submit(same, data).result(60) == data
    settle(fast, 4096)


def _free_memory() -> int:
    with open("/proc/meminfo") as f:
        for line in f:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return 0


def test_a_result_of_three_gibibytes() -> None:
    np = pytest.importorskip("numpy")
    if _free_memory() < 9 << 30:
        pytest.skip("less than 9 GiB of memory are free")
    n = (3 << 30) // 8

    def make(n: int) -> Any:
        a = np.zeros(n)
        a[0], a[-1] = 1, 2
        return a

    with open_pool("forkserver", 1) as pool:
        got = pool.submit(make, n).result(100)
        assert got.nbytes == 3 << 30
        assert (got[0], got[-1], got[n // 2]) == (1, 2, 0)
        del got
        settle(pool, 4096)


def test_arguments_larger_than_the_arena_are_a_memory_error_and_results_arrive() -> None:
    with open_pool("forkserver", arena_bytes=8 << 20) as pool:
        with pytest.raises(MemoryError, match="shared memory"):
            pool.submit(len, b"x" * (64 << 20)).result(20)
        with pytest.raises(MemoryError, match="shared memory"):
            pool.map(len, [b"x" * (64 << 20)])
        assert pool.submit(bytes, 64 << 20).result(20) == bytes(64 << 20)
        assert pool.submit(len, b"x" * (1 << 20)).result(20) == 1 << 20
        settle(pool, 4096)


# -------------------------------------------------------------- arrays


def test_arrays_arrive_equal_whatever_their_layout(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    base = np.arange(60_000, dtype="f8").reshape(300, 200)
    for a in (
        base, base.T, base[::2, ::3], base[:0], np.array(5), np.asfortranarray(base), base[5],
        base.astype(">i4"), base > 7, np.array(["a", "bcd"]), np.array([None, "x"], dtype=object),
        np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]), np.arange("2020", "2025", dtype="M8[Y]"),
    ):  # fmt: skip
        got = processes.submit(same, a).result(20)
        assert got.dtype == a.dtype
        assert got.shape == a.shape
        assert (got == a).all()
        assert processes.map(np.sum, [base] * 5) == [base.sum()] * 5


@pytest.mark.parametrize("n", [0, 1, 8191, 8192, 8193, 1_000_000])
def test_result_arrays_are_writable(processes: Any, n: int) -> None:
    np = pytest.importorskip("numpy")
    got = processes.submit(np.ones, n).result(20)
    got += 1
    assert (got == 2).all()


def test_argument_arrays_are_read_only_in_the_worker(processes: Any) -> None:
    np = pytest.importorskip("numpy")

    def spoil(a: Any) -> None:
        a[0] = 7

    a = np.zeros(100_000)
    with pytest.raises(ValueError, match="read-only"):
        processes.submit(spoil, a).result(20)
    assert a[0] == 0


def test_large_results_are_views_and_memory_comes_back_with_the_last(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    start = settle(processes)
    got = processes.submit(np.arange, 1_000_000).result(20)
    assert live_bytes(processes) >= 8_000_000
    part = got[10:20]
    del got
    gc.collect()
    assert live_bytes(processes) >= 8_000_000
    assert part.tolist() == list(range(10, 20))
    del part
    settle(processes, start)


def test_argument_memory_comes_back_when_the_task_has_ended(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    start = settle(processes)
    a = np.ones(500_000)
    for _ in range(20):
        assert processes.submit(np.sum, a).result(20) == 500_000
    settle(processes, start)


def test_an_array_that_a_task_keeps_stays_valid(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    start = settle(processes)

    def keep(a: Any, i: int) -> int:
        import builtins

        kept = builtins.__dict__.setdefault("trireme_test_kept", {})
        kept[i] = a
        return os.getpid()

    def check(_: int) -> tuple[int, bool]:
        import builtins

        kept = builtins.__dict__.get("trireme_test_kept", {})
        return os.getpid(), all((a == i).all() for i, a in kept.items())

    def drop(_: int) -> None:
        import builtins

        builtins.__dict__.pop("trireme_test_kept", None)
        gc.collect()

    for i in range(10):
        processes.submit(keep, np.full(50_000, i), i).result(20)
    # Other arrays go over the same memory, if it were free.
    for _ in range(20):
        processes.submit(np.sum, np.full(50_000, 99)).result(20)
    assert all(ok for _, ok in processes.map(check, range(20), chunk=1))
    assert live_bytes(processes) - start >= 10 * 400_000

    def dropped() -> bool:
        processes.map(drop, range(20), chunk=1)
        return live_bytes(processes) - start < 400_000

    until(dropped)
    settle(processes, start)


def test_result_that_is_the_argument_outlives_it(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    got = [processes.submit(same, np.full(100_000, i)).result(20) for i in range(10)]
    for i, a in enumerate(got):
        assert (a == i).all()


def test_arrays_in_containers_and_in_maps(processes: Any) -> None:
    np = pytest.importorskip("numpy")
    a = np.arange(50_000.0)
    got = processes.submit(lambda d: {"twice": d["a"] * 2, "list": [d["a"]] * 2}, {"a": a}).result(
        20
    )
    assert (got["twice"] == 2 * a).all()
    assert (got["list"][1] == a).all()
    for i, b in enumerate(processes.map(lambda i: np.full(30_000, i), range(10))):
        assert (b == i).all()
    for i, b in enumerate(processes.imap(lambda i: np.full(30_000, i), range(10))):
        assert (b == i).all()


def test_buffers_that_are_not_numpy(processes: Any) -> None:
    import array

    a = array.array("d", range(50_000))
    assert processes.submit(same, a).result(20) == a
    view = memoryview(bytes(100_000))
    assert bytes(processes.submit(bytes, view).result(20)) == bytes(100_000)


def test_threads_get_the_object_itself() -> None:
    with open_pool("thread") as pool:
        value = object()
        assert pool.submit(same, value).result(20) is value
        assert pool.map(same, [value])[0] is value


# -------------------------------------------------------------- exceptions


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class HoldsALock(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class UnpickleRaises:
    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise RuntimeError("does not unpickle")


def raise_(exc: BaseException) -> None:
    raise exc


def test_own_exception_types_arrive_with_their_state(processes: Any) -> None:
    def task() -> None:
        raise TwoArguments(7, "seven")

    with pytest.raises(TwoArguments) as info:
        processes.submit(task).result(20)
    assert (info.value.code, info.value.text) == (7, "seven")


def test_the_workers_traceback_is_the_cause(processes: Any) -> None:
    def inner_part() -> None:
        raise ValueError("deep")

    def outer_part() -> None:
        inner_part()

    for call in (
        lambda: processes.submit(outer_part).result(20),
        lambda: processes.map(lambda _: outer_part(), [1]),
        lambda: next(processes.imap(lambda _: outer_part(), [1])),
    ):
        with pytest.raises(ValueError, match="deep") as info:
            call()
        text = "".join(traceback.format_exception(info.value))
        assert "in outer_part" in text
        assert "in inner_part" in text
        assert 'raise ValueError("deep")' in text
        assert str(info.value.__cause__).count("inner_part") >= 1


def test_chained_exceptions_are_told(processes: Any) -> None:
    def task() -> None:
        try:
            {}["key"]
        except KeyError as exc:
            raise RuntimeError("no such key") from exc

    with pytest.raises(RuntimeError) as info:
        processes.submit(task).result(20)
    assert "KeyError: 'key'" in str(info.value.__cause__)


def test_exception_groups_and_notes_arrive(processes: Any) -> None:
    def task() -> None:
        exc = ExceptionGroup("several", [ValueError("a"), TypeError("b")])
        exc.add_note("look here")
        raise exc

    with pytest.raises(ExceptionGroup) as info:
        processes.submit(task).result(20)
    assert [type(e) for e in info.value.exceptions] == [ValueError, TypeError]
    assert info.value.__notes__ == ["look here"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_what_would_end_this_process_ends_one_future(processes: Any, kind: type) -> None:
    with pytest.raises(tri.RemoteError, match=kind.__name__) as info:
        processes.submit(raise_, kind(3)).result(20)
    assert isinstance(info.value.original, kind)
    assert processes.stats()["deaths"] == 0
    assert processes.map(square, range(10)) == [x * x for x in range(10)]


def test_sys_exit_in_a_map_is_an_error(processes: Any) -> None:
    import sys

    with pytest.raises(tri.RemoteError, match="SystemExit"):
        processes.map(lambda _: sys.exit(1), [1])


def test_exception_that_cannot_travel_is_told_by_name_and_message(processes: Any) -> None:
    def task() -> None:
        raise HoldsALock

    with pytest.raises(Exception, match="holds a lock") as info:
        processes.submit(task).result(20)
    assert type(info.value) is HoldsALock or "HoldsALock" in str(info.value)
    assert "in task" in str(info.value.__cause__)
    assert processes.submit(square, 2).result(20) == 4


def test_thread_exceptions_are_the_objects_themselves() -> None:
    with open_pool("thread") as pool:
        exc = HoldsALock()
        with pytest.raises(HoldsALock) as info:
            pool.submit(raise_, exc).result(20)
        assert info.value is exc


# -------------------------------------------------------------- what cannot travel


def test_unpicklable_argument_fails_its_future_and_names_the_path(processes: Any) -> None:
    value = {"config": [1, {"lock": threading.Lock()}]}
    bad = processes.submit(same, value)
    good = processes.submit(square, 3)
    with pytest.raises(TypeError, match=r"config.*lock") as info:
        bad.result(20)
    assert "['config'][1]['lock']" in str(info.value)
    assert good.result(20) == 9
    with pytest.raises(TypeError, match="lock"):
        processes.map(same, [1, 2, value])
    with pytest.raises(TypeError, match="lock"):
        processes.apply(same, (value,))
    with pytest.raises(TypeError, match="lock"):
        processes.map_async(same, [1, value]).get(20)
    assert processes.map(square, [2]) == [4]


def test_unpicklable_item_of_imap_fails_at_its_place(processes: Any) -> None:
    items = [1, threading.Lock(), 3, threading.Lock(), 5]
    for chunk in (1, 5, None):
        for method in (processes.imap, processes.imap_unordered):
            results = method(repr, items, chunk=chunk)
            got: list[Any] = []
            while True:
                try:
                    got.append(next(results))
                except StopIteration:
                    break
                except TypeError:
                    got.append("bad")
            if method == processes.imap:
                assert got == ["1", "bad", "3", "bad", "5"]
            else:
                assert sorted(got) == ["1", "3", "5", "bad", "bad"]


def test_unpicklable_function_fails_its_future(processes: Any) -> None:
    lock = threading.Lock()
    bad = processes.submit(lambda: lock.locked())
    with pytest.raises(TypeError, match="lock"):
        bad.result(20)
    with pytest.raises(TypeError, match="lock"):
        processes.map(lambda _: lock.locked(), [1])
    assert processes.submit(square, 3).result(20) == 9


def test_unpicklable_result_fails_its_future_and_names_the_path(processes: Any) -> None:
    def task(x: int) -> Any:
        return {"deep": [threading.Lock()]} if x == 2 else x

    with pytest.raises(TypeError, match=r"deep"):
        processes.submit(task, 2).result(20)
    with pytest.raises(TypeError, match=r"deep"):
        processes.map(task, range(5))
    for chunk in (1, 5, None):
        results = processes.imap(task, range(5), chunk=chunk)
        got: list[Any] = []
        while True:
            try:
                got.append(next(results))
            except StopIteration:
                break
            except TypeError as exc:
                assert "deep" in str(exc)
                got.append("bad")
        assert got == [0, 1, "bad", 3, 4]


CONNECTIONS = """
import multiprocessing
import multiprocessing.connection
import sys

import trireme as tri


class Connection:  # not of multiprocessing's
    def fileno(self):
        return 1


class Holder:
    def __init__(self, content):
        self.content = content


class Channel(multiprocessing.connection.Connection):
    pass


def same(x):
    return x


def ask(x):
    return theirs.poll()


def give(kind):
    ours, theirs = multiprocessing.Pipe()
    ours.__class__ = kind
    return {"pipe": ours}


def said(call):
    try:
        return call()
    except TypeError as exc:
        return str(exc).partition(",")[0]


ours, theirs = multiprocessing.Pipe()
start = sys.argv[1]
with tri.Pool(1, start=start) as pool:
    submit = lambda *call: said(lambda: pool.submit(*call).result(20))
    if start != "fork":  # there it may have been before, and then its number is right
        print(submit(same, theirs))
        print(submit(same, [1, {"k": Holder(theirs)}]))
        print(submit(ask, 1))
        print(said(lambda: pool.map(same, [1, theirs])))
        print(said(lambda: tri.share([theirs])))
    else:
        print(submit(ask, 1))
    print(submit(give, multiprocessing.connection.Connection))
    print(submit(give, Channel))
    print(type(submit(same, Connection())).__name__, submit(same, "multiprocessing.connection"))
"""


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_connections_are_refused_with_the_path_to_them(run_script: Any, start: str) -> None:
    """Plain pickle makes of one the number of a descriptor, which is another's elsewhere."""
    out, err = run_script(CONNECTIONS, start)
    no = "a Connection is a descriptor of this process"
    assert err == ""
    assert out.splitlines() == [
        *(
            ["False"]
            if start == "fork"
            else [
                f"args[0]: {no}",
                f"args[0][1]['k'].content: {no}",
                f"ask -> global theirs: {no}",
                f"items[0]: {no}",
                f"shared object[0]: {no}",
            ]
        ),
        f"result['pipe']: {no}",
        f"result['pipe']: {no.replace('Connection', 'Channel')}",
        "Connection multiprocessing.connection",
    ]


def test_argument_that_does_not_unpickle_fails_its_future(processes: Any) -> None:
    bad = processes.submit(same, UnpickleRaises())
    good = processes.submit(square, 3)
    with pytest.raises(RuntimeError, match="does not unpickle"):
        bad.result(20)
    assert good.result(20) == 9


def test_result_that_does_not_unpickle_fails_its_future(processes: Any) -> None:
    def task(x: int) -> Any:
        return UnpickleRaises() if x == 2 else x

    with pytest.raises(RuntimeError, match="does not unpickle"):
        processes.submit(task, 2).result(20)
    with pytest.raises(RuntimeError, match="does not unpickle"):
        processes.map(task, range(5))
    results = processes.imap(task, range(5), chunk=1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(RuntimeError, match="does not unpickle"):
        next(results)
    assert list(results) == [3, 4]
    assert processes.submit(square, 3).result(20) == 9


def test_generator_as_result_says_what_to_do(processes: Any) -> None:
    with pytest.raises(TypeError, match="generator"):
        processes.submit(lambda: (i for i in range(3))).result(20)


def test_memory_of_failed_tasks_comes_back(processes: Any) -> None:
    start = settle(processes)
    big = b"x" * 100_000
    for _ in range(5):
        for bad in ([big, threading.Lock()], [big, UnpickleRaises()]):
            with pytest.raises((TypeError, RuntimeError)):
                processes.submit(same, bad).result(20)
        with pytest.raises(TypeError):
            processes.submit(lambda b: [b, threading.Lock()], big).result(20)
        with pytest.raises(RuntimeError):
            processes.submit(lambda b: [b, UnpickleRaises()], big).result(20)
        with pytest.raises(ValueError, match="long"):
            processes.submit(raise_, ValueError("long" * 30_000)).result(20)
    settle(processes, start)
