# SPDX-License-Identifier: BSD-3-Clause
"""`--report`: what ran where, and what was left to the originals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from doorslib import DOORS, run

pytest_plugins = ("doorslib",)

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
    assert "no pool was opened" in err
    assert "ThreadPoolExecutor 1" in err
    assert err.count("Queue 1") == 1 and "Lock" not in err


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
