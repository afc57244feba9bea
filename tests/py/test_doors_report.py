# SPDX-License-Identifier: BSD-3-Clause
"""`--report`: what ran where, and what was left to the originals."""

from __future__ import annotations

import multiprocessing
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from doorslib import DOORS, run

pytest_plugins = ("doorslib",)

# By what way a program may come to a pool: its import and the pool; whose door it is, and how the
# report calls it here and as an original.
MP, PLAIN, FUTURES = "multiprocessing", "multiprocess", "futures"
WAYS = [
    ("from multiprocessing import Pool", "Pool(2)", MP, "multiprocessing.Pool", "Pool"),
    ("import multiprocessing as mp", "mp.Pool(2)", MP, "multiprocessing.Pool", "Pool"),
    (
        "import multiprocessing as mp",
        "mp.get_context('spawn').Pool(2)",
        MP,
        "multiprocessing.Pool",
        "Pool",
    ),
    ("from multiprocessing.pool import Pool", "Pool(2)", MP, "multiprocessing.Pool", "Pool"),
    (
        "import multiprocessing.pool",
        "multiprocessing.pool.ThreadPool(2)",
        MP,
        "multiprocessing.pool.ThreadPool",
        "ThreadPool",
    ),
    (
        "from multiprocessing.dummy import Pool",
        "Pool(2)",
        MP,
        "multiprocessing.pool.ThreadPool",
        "ThreadPool",
    ),
    ("from multiprocess import Pool", "Pool(2)", PLAIN, "multiprocess.Pool", "Pool"),
    (
        "import multiprocess as mp",
        "mp.get_context('fork').Pool(2)",
        PLAIN,
        "multiprocess.Pool",
        "Pool",
    ),
    ("from multiprocess.pool import Pool", "Pool(2)", PLAIN, "multiprocess.Pool", "Pool"),
    (
        "from concurrent.futures import ProcessPoolExecutor",
        "ProcessPoolExecutor(2)",
        FUTURES,
        "futures.ProcessPoolExecutor",
        "ProcessPoolExecutor",
    ),
    (
        "import concurrent.futures.thread",
        "concurrent.futures.thread.ThreadPoolExecutor(2)",
        FUTURES,
        "futures.ThreadPoolExecutor",
        "ThreadPoolExecutor",
    ),
]
EACH_ONLY = pytest.mark.parametrize("only", [None, MP, PLAIN, FUTURES])

REPORTED = """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
    from multiprocessing.pool import ThreadPool

    if __name__ == "__main__":
        for _ in range(2):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map(abs, range(100), 1)
        with ThreadPool(3) as pool:
            pool.map(abs, range(10), 1)
        with ProcessPoolExecutor(1) as executor:
            for future in [executor.submit(abs, i) for i in range(50)]:
                future.result()
        executor = ThreadPoolExecutor(2)
        executor.submit(abs, 1)
        process = multiprocessing.Process(target=print, args=("child",))
        process.start()
        process.join()
        a, b = multiprocessing.Pipe()
        with multiprocessing.Manager() as manager:
            manager.list()
"""


def test_the_report_says_what_ran_where(write: Any, tmp_path: Path) -> None:
    write("program.py", REPORTED)
    code, out, err = run(*DOORS, "--report", "program.py", cwd=tmp_path)
    assert (code, out) == (0, "child\n")
    lines = [re.sub(r", [\d,]+ tasks/s while open", "", line) for line in err.splitlines()]
    assert re.fullmatch(r"trireme: what ran where, in \d+\.\d s", lines[0])
    assert "  multiprocessing.Pool: 2 pools of up to 2 workers (fork), 200 tasks" in lines, err
    assert "  multiprocessing.pool.ThreadPool: 1 pool of up to 3 workers (threads), 10 tasks" in (
        lines
    )
    assert any(
        re.fullmatch(
            r"  futures.ProcessPoolExecutor: 1 pool of up to 1 worker \(\w+\), 50 tasks", line
        )
        for line in lines
    )
    assert "  futures.ThreadPoolExecutor: 1 pool of up to 2 workers (threads), 1 task" in lines
    assert "    about 0.002 s of overhead saved, an estimate: 12 us for each task" in lines
    left = lines[-1]
    assert left.startswith("  left to the originals: ")
    assert "Manager 1" in left and "Process 1" in left
    assert err.count("what ran where") == 1


def test_the_report_counts_what_the_originals_made(run_script: Any) -> None:
    _, err = run_script(
        """
        from concurrent.futures import ThreadPoolExecutor  # before: the original
        import trireme
        trireme.install(report=True)
        trireme.install(report=True)
        with ThreadPoolExecutor(1) as executor:
            executor.submit(abs, 1)
        import multiprocessing
        multiprocessing.Queue()
        """
    )
    assert err.count("what ran where") == 1
    assert "no pool of Trireme's was opened" in err
    assert "ThreadPoolExecutor 1" in err
    assert err.count("Queue: 1 queue, 0 messages") == 1 and "Lock" not in err


def test_a_report_is_told_once_whatever_the_program_forks(tmp_path: Path, write: Any) -> None:
    write(
        "program.py",
        """
        import os, sys
        pid = os.fork()
        if pid == 0:
            sys.exit(0)  # runs what is registered for the end
        os.waitpid(pid, 0)
        1 / 0
        """,
    )
    code, _, err = run(*DOORS, "--report", "program.py", cwd=tmp_path)
    assert code == 1
    assert err.count("what ran where") == 1 and "ZeroDivisionError" in err


def reported(cwd: Path, source: str, only: str | None) -> tuple[list[str], str]:
    """What a program's report says of pools, and what of the originals."""
    options = [] if only is None else ["--only", only]
    (cwd / "program.py").write_text(source)
    code, _, err = run(*DOORS, "--report", *options, "program.py", cwd=cwd)
    assert code == 0, err
    lines = err.splitlines()
    assert lines[0].startswith("trireme: what ran where"), err
    kinds = [line.split(" of up to ")[0].strip() for line in lines if " of up to " in line]
    assert lines[-1].startswith("  left to the originals: "), err
    return kinds, lines[-1].partition(": ")[2]


@EACH_ONLY
@pytest.mark.parametrize(
    ("imported", "pool", "door", "ours", "theirs"), WAYS, ids=[f"{w[0]}: {w[1]}" for w in WAYS]
)
def test_a_pool_is_reported_by_whatever_way_it_came(
    tmp_path: Path, imported: str, pool: str, door: str, ours: str, theirs: str, only: str | None
) -> None:
    if door == PLAIN:
        # The package need not be installed: its modules are these under another name.
        folder = Path(multiprocessing.__file__).parent
        shutil.copytree(folder, tmp_path / PLAIN, ignore=shutil.ignore_patterns("__pycache__"))
        imported += "\nimport multiprocess\nmultiprocess.set_start_method('fork')"
    source = f"{imported}\nif __name__ == '__main__':\n"
    source += f"    with {pool} as pool:\n        list(pool.map(abs, [1, 2]))\n"
    expected = ([f"{ours}: 1 pool"], "nothing") if only in (None, door) else ([], f"{theirs} 1")
    assert reported(tmp_path, source, only) == expected


@EACH_ONLY
def test_each_thing_is_said_to_be_of_whoever_made_it(tmp_path: Path, only: str | None) -> None:
    source = """
from concurrent.futures import ThreadPoolExecutor
import multiprocessing as mp

if __name__ == "__main__":
    with mp.Pool(1) as pool, ThreadPoolExecutor(1) as executor:
        pool.map(abs, [1])
        executor.submit(abs, 1)
    mp.Queue(), mp.JoinableQueue(), mp.SimpleQueue(), mp.Lock(), mp.Event(), mp.Condition()
    mp.Value("i"), mp.Array("i", 3, lock=False), mp.RawArray("i", 3), mp.Pipe()
    process = mp.Process(target=abs, args=(1,))
    process.start()
    process.join()
    mp.Manager().shutdown()
"""
    never = {"Manager", "Pipe", "Process"}
    made = {"Array", "Condition", "Event", "JoinableQueue", "Lock", "Queue", "RawArray"}
    made |= {"SimpleQueue", "Value"}
    left = set(never)
    kinds = []
    if only in (None, FUTURES):
        kinds += ["futures.ThreadPoolExecutor: 1 pool"]
    else:
        left |= {"ThreadPoolExecutor"}
    if only in (None, MP):
        kinds += ["multiprocessing.Pool: 1 pool"]
    else:
        left |= made | {"Pool"}
    assert reported(tmp_path, source, only) == (kinds, ", ".join(f"{x} 1" for x in sorted(left)))


def test_workers_of_the_originals_are_no_processes_of_the_program(tmp_path: Path) -> None:
    source = """
from multiprocessing import Pool
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    with Pool(1, maxtasksperchild=1) as pool:  # a thread of its own starts the others
        pool.map(abs, range(3), 1)
    with ProcessPoolExecutor(2) as executor:
        list(executor.map(abs, range(3)))
"""
    assert reported(tmp_path, source, PLAIN) == ([], "Pool 1, ProcessPoolExecutor 1")


def test_what_another_thread_makes_meanwhile_is_counted(tmp_path: Path) -> None:
    source = """
import ctypes, multiprocessing, threading

class Slow(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int)]

    def __init__(self):  # called while the Value is made
        thread = threading.Thread(target=multiprocessing.Lock)
        thread.start()
        thread.join()

multiprocessing.Value(Slow)
"""
    assert reported(tmp_path, source, FUTURES) == ([], "Lock 1, Value 1")


def test_names_taken_before_the_report_are_reported_on(run_script: Any) -> None:
    _, err = run_script(
        """
        from multiprocessing import Lock, Pool, Queue
        import trireme
        trireme.install()
        Queue()
        trireme.install(report=True)
        Queue(), Lock()
        with Pool(1) as pool:
            pool.map(abs, [1])
        """
    )
    assert "  multiprocessing.Pool: 1 pool of up to 1 worker" in err
    assert "  multiprocessing.Queue: 1 queue, 0 messages\n" in err
    assert "  also Trireme's: Lock 1\n  left to the originals: nothing" in err


def test_a_report_imports_nothing_that_the_program_does_not(tmp_path: Path) -> None:
    source = """
import sys
heavy = ("multiprocessing", "multiprocess", "concurrent", "trireme._pool", "trireme._core")
print([name for name in sys.modules if name.startswith(heavy)], "trireme._report" in sys.modules)
"""
    (tmp_path / "program.py").write_text(source)
    assert run(*DOORS, "program.py", cwd=tmp_path)[:2] == (0, "[] False\n")
    assert run(*DOORS, "--report", "program.py", cwd=tmp_path)[:2] == (0, "[] True\n")


@pytest.mark.parametrize("door", [MP, PLAIN])
def test_messages_of_queues_are_counted_wherever_they_are_put(door: str, tmp_path: Path) -> None:
    source = f"""
import {door} as mp

def put(queue):
    for i in range(100):
        queue.put(i)
    mp.Queue().put(1)  # the child's own

if __name__ == "__main__":
    context = mp.get_context("fork")
    for make in (context.Queue, context.Queue, context.SimpleQueue):  # dropped but for the last
        queue = make()
        process = context.Process(target=put, args=(queue,))
        process.start()
        for i in range(50):
            queue.put(i)
        for i in range(150):
            queue.get()
        process.join()
    mp.JoinableQueue()
"""
    (tmp_path / "program.py").write_text(source)
    code, _, err = run(*DOORS, "--report", "program.py", cwd=tmp_path)
    assert code == 0, err
    saved = " s of overhead saved, an estimate: 2 us for each message"
    assert err.splitlines()[1:] == [
        "  no pool of Trireme's was opened",
        f"  {door}.JoinableQueue: 1 queue, 0 messages",
        f"    about 0.000{saved}",
        f"  {door}.Queue: 2 queues, 300 messages",
        f"    about 0.001{saved}",
        f"  {door}.SimpleQueue: 1 queue, 150 messages",
        f"    about 0.000{saved}",
        "  left to the originals: Process 3",
    ]
