# SPDX-License-Identifier: BSD-3-Clause
"""An executor brings in little, starts no thread, and breaks although nobody looks."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from conftest import PROCESSES
from faultlib import alive, until
from trireme import _imports
from trireme.futures import ProcessPoolExecutor

LONG = 60


def meet(folder: Path) -> int:
    """One of two tasks: each waits until the other one runs, too."""
    (folder / str(os.getpid())).touch()
    until(lambda: len(list(folder.iterdir())) == 2, LONG)
    return os.getpid()


@pytest.mark.parametrize("start", PROCESSES)
def test_a_death_that_nobody_looks_at_ends_the_other_workers(start: str, tmp_path: Path) -> None:
    before = threading.active_count()
    with ProcessPoolExecutor(2, get_context(start)) as e:
        pids = {f.result() for f in [e.submit(meet, tmp_path) for _ in range(2)]}
        assert len(pids) == 2
        assert threading.active_count() == before
        asleep = [e.submit(time.sleep, LONG) for _ in range(2)]
        queued = e.submit((tmp_path / "ran").touch)
        until(lambda: all(f.running() for f in asleep), LONG)
        os.kill(min(pids), signal.SIGKILL)
        until(lambda: not any(map(alive, pids)), LONG)
        for f in (*asleep, queued):
            until(f.done, LONG)  # the news comes after the death
            assert isinstance(f.exception(), BrokenProcessPool)
        with pytest.raises(BrokenProcessPool):
            e.submit(abs, 1)
    assert not (tmp_path / "ran").exists()


def test_the_original_is_a_base_once_somebody_imports_it(run_script: Any) -> None:
    out, err = run_script(
        """
        import sys
        import trireme.futures as ours
        class Mine(ours.ProcessPoolExecutor):
            pass
        with Mine(1) as mine:
            print(mine.submit(abs, -1).result())
        print("concurrent.futures.process" in sys.modules)
        import concurrent.futures as original
        from concurrent.futures import process
        print(isinstance(mine, original.ProcessPoolExecutor))
        print(issubclass(ours.ProcessPoolExecutor, process.ProcessPoolExecutor))
        print(type(process.__loader__).__module__.startswith("trireme"), len(sys.meta_path) < 10)
        print([f for f in sys.meta_path if type(f).__module__.startswith("trireme")])
        print(ours.process.BrokenProcessPool is process.BrokenProcessPool)
        with Mine(1) as mine:
            print(mine.submit(abs, -1).result())
        """
    )
    assert out.split("\n") == [
        "1",
        "False",
        "True",
        "True",
        "False True",
        "[]",
        "True",
        "1",
        "",
    ]
    assert err == ""


def test_when_imported_waits_for_the_import_that_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "waited_for_by_a_test.py"
    file.write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    seen: list[Any] = []
    _imports.when_imported("waited_for_by_a_test", lambda module: seen.append(module.value))
    with pytest.raises(ZeroDivisionError):
        __import__("waited_for_by_a_test")
    assert not seen
    file.write_text("value = 12345")
    module = __import__("waited_for_by_a_test")
    assert seen == [12345]
    assert "trireme" not in type(module.__spec__.loader).__module__
    _imports.when_imported("waited_for_by_a_test", lambda module: seen.append(module))
    assert seen == [12345, module]


INHERITED = """
import concurrent.futures, multiprocessing, sys
from trireme.futures import ProcessPoolExecutor

class Table:
    def __reduce__(self):
        raise TypeError("a table is not to travel")
    def __getitem__(self, i):
        return i + base

class Point:
    def __init__(self, x):
        self.x = x

table, base, set_by_begin = Table(), 100, None
word = "unchanged"

def look_up(i, factor=1):
    return factor * table[i]

def moved(point, by):
    assert isinstance(point, Point)
    return Point(point.x + by)

def begin(value):
    global set_by_begin
    set_by_begin = value

def begun():
    return set_by_begin

with ProcessPoolExecutor(2, multiprocessing.get_context("fork"), begin, (table,)) as e:
    print(e.submit(look_up, 1).result(), e.submit(look_up, 2, factor=3).result())
    print("cloudpickle" in sys.modules)
    base = 0  # as with the original, workers have what was there when they were forked
    print(list(e.map(look_up, range(4))), list(e.map(look_up, range(4), chunksize=2)))
    print(isinstance(e.submit(moved, Point(1), by=2).result(), Point))
    print(e.submit(moved, Point(1), 5).result().x)
    print(e.submit(type, begun).result(), e.submit(lambda: base).result())
    word = "changed"
    def later(i):
        return [i, base]
    print(e.submit(later, 1).result())
    print(e.submit(lambda: type(set_by_begin).__name__ + word).result())

with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as e:
    print(list(e.map(look_up, [], chunksize=3)), len(e._processes))
    print(list(e.map(look_up, range(3), chunksize=2)))
"""


def test_functions_that_a_fork_inherits_go_by_name(run_script: Any) -> None:
    out, err = run_script(INHERITED)
    assert out.split("\n") == [
        "101 306",
        "False",
        "[100, 101, 102, 103] [100, 101, 102, 103]",
        "True",
        "6",
        "<class 'function'> 0",
        "[1, 0]",
        "Tablechanged",
        "[] 0",
        "[0, 1, 2]",
        "",
    ]
    assert err == ""


# What programs did whose imports met ours: with the doors, after a reload, at the end of the
# program, without descriptors.
LOSSES = {
    "doors opened later": """
        import os
        import trireme
        from trireme.futures import ProcessPoolExecutor
        trireme.install()
        from concurrent.futures import ProcessPoolExecutor as seen
        print(seen is ProcessPoolExecutor)
        with ProcessPoolExecutor(1) as e:
            lost = e.submit(os._exit, 3).exception()
        from concurrent.futures.process import BrokenProcessPool
        print(isinstance(lost, BrokenProcessPool), type(lost) is trireme.WorkerLost)
        """,
    "doors opened before": """
        import os
        import trireme
        trireme.install("multiprocessing")
        import multiprocessing
        from trireme.futures import ProcessPoolExecutor
        queue = multiprocessing.Queue()
        with ProcessPoolExecutor(1) as e:
            lost = e.submit(os._exit, 3).exception()
        from concurrent import futures
        print(issubclass(ProcessPoolExecutor, futures.ProcessPoolExecutor))
        from concurrent.futures.process import BrokenProcessPool
        print(isinstance(lost, BrokenProcessPool), type(lost) is trireme.WorkerLost)
        """,
    "a reload": """
        import importlib, os
        import trireme
        import trireme.futures.process
        again = importlib.reload(trireme.futures.process)
        with again.ProcessPoolExecutor(1) as e:
            lost = e.submit(os._exit, 3).exception()
        from concurrent.futures import process
        print(issubclass(again.ProcessPoolExecutor, process.ProcessPoolExecutor))
        print(isinstance(lost, process.BrokenProcessPool), type(lost) is trireme.WorkerLost)
        """,
    "no descriptors left": """
        import os, resource, sys
        import trireme
        from trireme.futures import ProcessPoolExecutor
        e = ProcessPoolExecutor(1)
        print(e.submit(abs, -1).result() == 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", 0))
        except OSError:
            pass
        lost = e.submit(os._exit, 3).exception()
        for fd in taken:
            os.close(fd)
        print("concurrent.futures.process" not in sys.modules, type(lost) is trireme.WorkerLost)
        e.shutdown()
        """,
    "the end of the program": """
        import os, threading, time
        import trireme
        from trireme.futures import ProcessPoolExecutor
        def die():
            time.sleep(0.3)
            os._exit(3)
        e = ProcessPoolExecutor(1)
        future = e.submit(die)
        def ask():
            lost = future.exception()
            print(True)
            print(isinstance(lost, trireme.WorkerLost), type(lost) is trireme.WorkerLost)
        threading.Thread(target=ask).start()
        """,
}


@pytest.mark.parametrize("when", LOSSES)
def test_a_loss_is_told_as_one_whatever_can_be_imported(when: str, run_script: Any) -> None:
    out, err = run_script(LOSSES[when])
    assert out == "True\nTrue True\n"
    assert err == ""


def dies_at_its_end(i: int) -> int:
    from multiprocessing import util

    if i == 0:
        util.Finalize(None, os.kill, (os.getpid(), signal.SIGKILL), exitpriority=1)
    elif i == 1:
        util.Finalize(None, os._exit, (3,), exitpriority=1)
    return i


def test_how_a_retired_worker_ends_breaks_nothing() -> None:
    with ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1) as e:
        assert [e.submit(dies_at_its_end, i).result(LONG) for i in range(4)] == [0, 1, 2, 3]


def test_a_fork_does_not_keep_the_default_pool(run_script: Any) -> None:
    out, _ = run_script(
        """
        import os
        import trireme
        def descriptors():
            return len(os.listdir("/proc/self/fd"))
        before = descriptors()
        trireme.map(abs, [-1])
        if os.fork() == 0:
            kept = descriptors() - before
            print(kept <= 3, trireme.map(abs, [-1, 2]), flush=True)
            os._exit(0)
        os.wait()
        print(trireme.map(abs, [-3]))
        """
    )
    assert out == "True [1, 2]\n[3]\n"
