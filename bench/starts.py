# SPDX-License-Identifier: BSD-3-Clause
"""How long a pool takes from being made to its first result: the first in a process, then again.

The program around it has imported numpy, the tasks and the system, and nothing else.  What a bench
imports for itself (subprocess, statistics, dataclasses, ...) would be there already for systems
that need the same modules, and a process that is forked would be larger than a user's.  So this
module imports next to nothing, and child.py the other figures only when it is to run one of them.
Nor do variables limit the threads of numpy's libraries, as few programs' do.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from systems import Doors, System
from tasks import plus_one

now = time.perf_counter


def median(values: Sequence[float]) -> float:
    n, ordered = len(values), sorted(values)
    return (ordered[n // 2] + ordered[(n - 1) // 2]) / 2


def right(value: object, i: int) -> None:
    if value != i + 1:
        raise AssertionError("wrong result: first result")


def starts(once: Callable[[int], tuple[float, float]], n: int) -> dict[str, float]:
    """*once* gives the seconds until the first result, and those of the end."""
    times = [once(i) for i in range(n)]
    return {"first_ms": 1e3 * times[0][0], "again_ms": 1e3 * median([t for t, _ in times[1:]]),
            "stop_ms": 1e3 * median([t for _, t in times[1:]])}


def startup(system: System, quick: bool) -> dict[str, float]:
    def once(i: int) -> tuple[float, float]:
        start = now()
        system.open()
        value = system.call(plus_one, i)
        middle = now()
        system.close()
        end = now()
        right(value, i)
        return middle - start, end - middle

    out = starts(once, 4)
    if type(system).__name__ == "Trireme":
        out["import_ms"] = median([import_ms() for _ in range(5)])
    return out


def import_ms() -> float:
    import subprocess

    code = ("import time; start = time.perf_counter(); import trireme; trireme.Pool;"
            "print(1e3 * (time.perf_counter() - start))")
    return float(subprocess.check_output([sys.executable, "-c", code], text=True))


def pool_start(system: Any, quick: bool) -> dict[str, float]:
    """multiprocessing's Pool, or what stands in for it."""
    assert isinstance(system, Doors), "this is for facades and originals"

    def once(i: int) -> tuple[float, float]:
        start = now()
        pool = system.context.Pool(system.workers)
        value = pool.apply(plus_one, (i,))
        middle = now()
        pool.close()
        pool.join()
        end = now()
        right(value, i)
        return middle - start, end - middle

    return starts(once, 3 if quick else 6)


def executor_start(system: Any, quick: bool) -> dict[str, float]:
    """The same for an executor.  `import concurrent.futures` comes before, as in a program."""
    assert isinstance(system, Doors), "this is for facades and originals"
    futures = system.futures

    def once(i: int) -> tuple[float, float]:
        start = now()
        executor = futures.ProcessPoolExecutor(system.workers, mp_context=system.context)
        value = executor.submit(plus_one, i).result()
        middle = now()
        executor.shutdown()
        end = now()
        right(value, i)
        return middle - start, end - middle

    return starts(once, 3 if quick else 6)


RUNS: dict[str, Callable[[Any, bool], dict[str, float]]] = {
    "startup": startup, "facade_pool_start": pool_start, "facade_executor_start": executor_start,
}
