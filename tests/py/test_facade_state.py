# SPDX-License-Identifier: BSD-3-Clause
"""What one task leaves for another, and what is left when workers and programs end.

Each test is run under the originals' names, too, where they do not differ on purpose.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trireme as tri
from conftest import until
from facadelib import BOTH, ORIGINAL, OURS, STARTS, module
from tasklib import square

LONG = 60


def futures(door: str) -> Any:
    return importlib.import_module("concurrent.futures" if door == ORIGINAL else "trireme.futures")


# ------------------------------------------------------------------------- functions with a state


class Counter:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def add(self, x: int) -> int:
        self.seen.append(x)
        return len(self.seen)

    __call__ = add


def count(seen: list[int], x: int) -> int:
    seen.append(x)
    return len(seen)


def change_first(a: list[int], b: list[int]) -> list[int]:
    a.append(1)
    return b


def one_object(a: list[Any], b: dict[str, Any]) -> bool:
    return a[0] is b["k"]


@BOTH
@STARTS
def test_each_task_has_its_own_copy_of_the_function(door: str, method: str) -> None:
    with module(door).get_context(method).Pool(2) as p:
        held = functools.partial(count, [])
        for f in (Counter().add, Counter(), held):
            assert p.map(f, range(6), 1) == [1] * 6
            assert p.map(f, range(6), 3) == [1, 2, 3] * 2
            assert list(p.imap(f, range(4))) == [1] * 4
            assert list(p.imap(f, range(4), 2)) == [1, 2, 1, 2]
            assert sorted(p.imap_unordered(f, range(4))) == [1] * 4
            assert p.starmap(f, [(1,), (2,)], 1) == [1, 1]
            assert [p.apply(f, (1,)) for _ in range(3)] == [1, 1, 1]
            assert [p.apply_async(f, (1,)).get(LONG) for _ in range(3)] == [1, 1, 1]
        assert p.map([1, 2, 3].pop, [0, 0, 0], 1) == [1, 1, 1]
        held(1)  # the owner's own has changed, and goes as it is now
        assert p.apply(held, (1,)) == 2


def test_a_native_pool_unpickles_a_function_once_per_worker() -> None:
    with tri.Pool(1) as p:
        assert p.map(functools.partial(count, []), range(4), chunk=1) == [1, 2, 3, 4]


@BOTH
def test_arguments_of_a_call_stay_one_object(door: str) -> None:
    a: list[int] = []
    with module(door).get_context("fork").Pool(1) as p:
        assert p.apply(change_first, (a, a)) == [1]
        assert p.apply(change_first, (a,), {"b": a}) == [1]
        assert p.apply(one_object, ([a], {"k": a}))
        assert p.starmap(change_first, [(a, a)]) == [[1]]
    with futures(door).ProcessPoolExecutor(1) as executor:
        assert executor.submit(change_first, a, a).result(LONG) == [1]
    with tri.Pool(1) as native:
        assert native.submit(change_first, a, a).result(LONG) == [1]
        assert native.submit(one_object, [a], {"k": a}).result(LONG)
        many = [[] for _ in range(40)] + [a, a]  # more than the writer remembers in line
        assert native.submit(lambda *all_: all_[-1] is all_[-2], *many).result(LONG)


# -------------------------------------------------------------------------------------- callbacks


@BOTH
@pytest.mark.parametrize("kind", ["Pool", "ThreadPool"])
def test_callbacks_of_one_worker_come_in_order(door: str, kind: str) -> None:
    mp = module(door).get_context("fork")
    for _ in range(10):
        p = mp.Pool(1) if kind == "Pool" else module(door, "pool").ThreadPool(1)
        out: list[Any] = []
        for i in range(50):
            p.apply_async(square, (i,), callback=out.append)
            if i % 10 == 0:
                p.map_async(square, [i], callback=out.append)
        p.close()
        p.join()
        want: list[Any] = []
        for i in range(50):
            want += [i * i, [i * i]] if i % 10 == 0 else [i * i]
        assert out == want


# ------------------------------------------------------------------------------------- iterators


def broken_input() -> Iterator[float]:
    yield from (0.01, 0.02, 0.03)
    raise KeyError("of the input")


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@BOTH
def test_the_inputs_exception_comes_after_what_came_before(door: str) -> None:
    with module(door).get_context("fork").Pool(1) as p:
        for _ in range(2):
            out: list[float] = []
            with pytest.raises(KeyError):
                for x in p.imap_unordered(nap, broken_input()):
                    out.append(x)
            assert out == [0.01, 0.02, 0.03]


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_an_iterator_loses_nothing_to_progress_that_raises(name: str) -> None:
    told: list[int] = []
    raised = 0

    def progress(done: int, _: int | None) -> None:
        told.append(done)
        raise ZeroDivisionError

    with tri.Pool(1) as p:
        # Slower than progress is told.
        it = getattr(p, name)(nap, [0.06] * 5, progress=progress, chunk=1)
        out: list[Any] = []
        while True:
            try:
                out.append(next(it))
            except ZeroDivisionError:
                raised += 1
            except StopIteration:
                break
    assert out == [0.06] * 5
    assert raised == len(told) > 1 and told[-1] == 5


def test_progress_may_end_the_pool() -> None:
    for end in ("close", "terminate"):
        with tri.Pool(1) as p:

            def progress(*_: object, p: Any = p, end: str = end) -> None:
                getattr(p, end)()

            it = p.imap(nap, [0.06] * 3, progress=progress, chunk=1)
            if end == "close":
                assert list(it) == [0.06] * 3
            else:
                with pytest.raises((ValueError, tri.WorkerLost)):
                    list(it)


# --------------------------------------------------------------------------------- ends of things


def write_later(path: str) -> None:
    def write() -> None:
        time.sleep(0.2)
        with open(path, "a") as file:
            file.write("written")

    threading.Thread(target=write).start()


def write_at_exit(path: str) -> None:
    atexit.register(Path(path).write_text, "written")


@BOTH
@STARTS
def test_threads_that_tasks_leave_are_waited_for(door: str, method: str, tmp_path: Path) -> None:
    context = module(door).get_context(method)
    first, second = tmp_path / "pool", tmp_path / "executor"
    p = context.Pool(1)
    p.apply(write_later, (str(first),))
    p.close()
    p.join()
    assert first.read_text() == "written"
    with futures(door).ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(write_later, str(second)).result(LONG)
    assert second.read_text() == "written"


# The originals do that since 3.13, with spawn always.
@pytest.mark.parametrize("door", [ORIGINAL, OURS] if sys.version_info >= (3, 13, 1) else [OURS])
@STARTS
def test_what_tasks_register_with_atexit_is_called(door: str, method: str, tmp_path: Path) -> None:
    if door == ORIGINAL and method == "forkserver" and sys.version_info < (3, 13, 1):
        pytest.skip("the original forgets it")
    path = tmp_path / "file"
    p = module(door).get_context(method).Pool(1)
    p.apply(write_at_exit, (str(path),))
    p.close()
    p.join()
    assert path.read_text() == "written"


@BOTH
def test_shutdown_waits_for_threads_that_one_before_did_not_wait_for(door: str) -> None:
    done: list[int] = []

    def work(i: int) -> None:
        time.sleep(0.2)
        done.append(i)

    with futures(door).ThreadPoolExecutor(2) as executor:
        sent = [executor.submit(work, i) for i in range(6)]
        until(lambda: sum(f.running() for f in sent) == 2)
        executor.shutdown(wait=False, cancel_futures=True)
    assert sorted(done) == [0, 1]


@BOTH
def test_threads_of_an_executor_are_no_daemons(door: str) -> None:
    made: list[threading.Thread] = []

    def start() -> bool:
        made.append(threading.Thread(target=time.sleep, args=(0,)))
        made[0].start()
        return threading.current_thread().daemon

    with futures(door).ThreadPoolExecutor(1) as executor:
        assert not executor.submit(start).result(LONG)
    assert not made[0].daemon


@BOTH
@pytest.mark.parametrize("hook", ["settrace", "setprofile"])
def test_threads_have_the_hooks_of_threading(door: str, hook: str) -> None:
    seen: set[str] = set()

    def watch(frame: Any, event: str, arg: Any) -> None:
        seen.add(frame.f_code.co_name)

    def traced(x: int) -> int:
        return square(x)

    getattr(threading, hook)(watch)
    try:
        with futures(door).ThreadPoolExecutor(1) as executor:
            assert executor.submit(traced, 2).result(LONG) == 4
        with module(door, "pool").ThreadPool(1) as p:
            assert p.apply(square, (3,)) == 9
    finally:
        getattr(threading, hook)(None)
    assert {"traced", "square"} <= seen


class Big:
    pass


HELD: list[Any] = []


@BOTH
def test_an_executor_in_a_list_of_its_module_can_be_collected(door: str) -> None:
    cf, context = futures(door), module(door).get_context("fork")
    HELD[:] = [cf.ProcessPoolExecutor(1, mp_context=context)]
    pid = HELD[0].submit(os.getpid).result(LONG)
    alive = weakref.ref(HELD[0])
    HELD.clear()
    gc.collect()
    assert alive() is None

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except OSError:
            return True
        return False

    until(gone)


SCRIPT = """
import sys
class Log:
    def __init__(self):
        self.file, self.rows = open(sys.argv[1], "w"), [1]
    def __del__(self):
        self.file.write(str(self.rows))
        self.file.close()
log = Log()
def square(x): return x * x
{}
"""


@pytest.mark.parametrize(
    "use",
    [
        "import trireme; trireme.map(square, [1])",
        "import trireme; p = trireme.Pool(1); p.map(square, [1])",
        "from trireme.futures import *; e = ProcessPoolExecutor(1); e.submit(square, 1).result()",
    ],
    ids=["default", "pool", "executor"],
)
def test_globals_end_while_there_are_builtins(use: str, tmp_path: Path) -> None:
    script, path = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SCRIPT.format(use))
    subprocess.run([sys.executable, script, path], check=True, timeout=LONG)
    assert path.read_text() == "[1]"
