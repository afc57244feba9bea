# SPDX-License-Identifier: BSD-3-Clause
"""The tour: the workloads of parallel-Python tutorials, three ways, in one table.

    python tour.py [--quick] [--workers N] [--out DIR]

Each workload runs as a plain loop, on Trireme and on the standard library, with the same functions
and the same data; all results are compared.  Times include opening and closing the pool, because
that is how the tutorials are written.  The table is printed as it grows, and tour.html holds it
with a picture.

Nothing here is guarded by ``if __name__ == "__main__"`` for Trireme's sake: functions of a script
travel by value.  The standard library gets its ``fork`` start method, the only one that runs a
script written like this.
"""
from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]
try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

import trireme as tri
from tour_report import Row, Table, write_html

HERE = Path(__file__).resolve().parent
PRIME = 489133282872437279

# ------------------------------------------------------------------ the functions of the tutorials


def random_square(seed: int) -> int:
    """A random digit, squared; the argument seeds the generator."""
    np.random.seed(seed)
    return np.random.randint(0, 10) ** 2


def no_divisor(n: int, first: int, last: int) -> bool:
    """True when no odd number from *first* (odd) to *last* divides *n*."""
    for d in range(first, last + 1, 2):
        if n % d == 0:
            return False
    return True


def prime_factors(n: int) -> list[int]:
    """The prime factors of *n* in rising order, by trial division."""
    factors, d = [], 2
    while d * d <= n:
        while n % d == 0:
            factors.append(d)
            n //= d
        d += 1
    return factors + [n] if n > 1 else factors


def distance(pair: tuple[float, float, float, float]) -> float:
    """Kilometres between two places given as (latitude, longitude, latitude, longitude)."""
    lat1, lon1, lat2, lon2 = map(math.radians, pair)
    h = (math.sin((lat2 - lat1) / 2) ** 2
         + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2)
    return 2 * 6371 * math.atan2(math.sqrt(h), math.sqrt(1 - h))


def churn(a: Any, rounds: int) -> Any:
    """Some arithmetic on an array that costs more than moving it."""
    for _ in range(rounds):
        a = (np.sin(a) + np.cos(a)) ** (a * a)
    return a


def churn_to_sum(a: Any) -> float:
    return float(churn(a, 3).sum())


def churn_to_array(a: Any) -> Any:
    return churn(a, 1)


def run_script(path: str) -> str:
    """Run a Python script and return what it printed."""
    return subprocess.run([sys.executable, path], capture_output=True, text=True, check=True,
                          cwd=os.path.dirname(path)).stdout


def fragile(i: int) -> int:
    """An honest task, except number 7, which is killed as the out-of-memory killer would do."""
    if i == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(range(i * 1000))


# ------------------------------------------------------------------ the three ways


class Tour:
    """What every workload needs: the options, the table and a stopwatch."""

    def __init__(self, workers: int, quick: bool, table: Table) -> None:
        self.workers, self.quick, self.table = workers, quick, table

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def std_pool(self) -> Any:
        return multiprocessing.get_context("fork").Pool(self.workers)

    def compare(self, name: str, note: str, serial: Callable[[], Any],
                trireme: Callable[[Any], Any], standard: Callable[[Any], Any],
                same: Callable[[Any, Any], bool] = lambda a, b: a == b, repeat: int = 1) -> None:
        """One row: run the three, *repeat* times each in turn, and keep the medians."""
        seconds: list[list[float]] = [[], [], []]

        def with_trireme() -> Any:
            with tri.Pool(self.workers) as pool:
                return trireme(pool)

        def with_standard() -> Any:
            with self.std_pool() as pool:
                return standard(pool)

        equal = True
        for _ in range(repeat):
            results = []
            for times, run in zip(seconds, (serial, with_trireme, with_standard), strict=True):
                start = time.perf_counter()
                results.append(run())
                times.append(time.perf_counter() - start)
            equal = equal and same(results[0], results[1]) and same(results[0], results[2])
            del results
        s, t, m = (sorted(times)[len(times) // 2] for times in seconds)
        self.table.add(Row(name, note, s, t, m, equal))


def squares(tour: Tour) -> None:
    """Many tiny tasks with default settings."""
    seeds = range(tour.size(1_000_000, 20_000))
    tour.compare(f"random_square, {len(seeds):,} seeds", "map with default settings",
                 lambda: [random_square(s) for s in seeds],
                 lambda pool: pool.map(random_square, seeds),
                 lambda pool: pool.map(random_square, seeds))


def prime(tour: Tour) -> None:
    """One long loop, cut into sub-ranges by hand; as much of it as fits the time."""
    root = math.isqrt(PRIME)
    start = time.perf_counter()
    no_divisor(PRIME, 3, 400_003)
    rate = 400_000 / (time.perf_counter() - start)
    last = min(root, int(rate * (0.3 if tour.quick else 15)))
    step = last // 16 // 2 * 2 + 2
    parts = [(PRIME, a, min(a + step - 2, last)) for a in range(3, last + 1, step)]
    tour.compare("is_prime(489133282872437279)",
                 f"divisors up to {last:,} of {root:,} ({100 * last / root:.3g} % of the whole), "
                 f"{len(parts)} sub-ranges, starmap",
                 lambda: all([no_divisor(*p) for p in parts]),
                 lambda pool: all(pool.starmap(no_divisor, parts)),
                 lambda pool: all(pool.starmap(no_divisor, parts)))


def prime_in_c(tour: Tour) -> None:
    """The same question in full, by examples/c/prime_check.c."""
    name = "is_prime in full, in C"
    program = find_program("prime_check", "TRIREME_C_EXAMPLES")
    if program is None:
        tour.table.add(Row.skipped(name, "examples/c/prime_check has not been built"))
        return
    seconds, answers = [], []
    for workers in (1, tour.workers):
        start = time.perf_counter()
        answers.append(subprocess.run([program, str(PRIME), str(workers)], capture_output=True,
                                      text=True, timeout=120).stdout)
        seconds.append(time.perf_counter() - start)
    tour.table.add(Row(name, f"one worker, then {tour.workers}, on <trireme.h>", seconds[0],
                       seconds[1], None, answers == [f"{PRIME} is prime\n"] * 2,
                       standard_text="has no C"))


def factors(tour: Tour) -> None:
    """Uneven tasks, watched through a progress bar."""
    draw = random.Random(1)
    numbers = [draw.randrange(10**10, 10**12) for _ in range(tour.size(100, 20))]

    def standard(pool: Any) -> list[list[int]]:
        done = pool.imap(prime_factors, numbers)
        return list(tqdm(done, total=len(numbers), desc="Pool.imap") if tqdm else done)

    tour.compare(f"prime factors of {len(numbers)} numbers", "10^10 to 10^12, with a progress bar",
                 lambda: [prime_factors(n) for n in numbers],
                 lambda pool: pool.map(prime_factors, numbers, progress=bool(tqdm)), standard)


def cities(tour: Tour) -> None:
    """All pairs of a real table: a short float function on tuples."""
    with open(HERE.parent / "data" / "cities.csv", encoding="utf-8", newline="") as f:
        places = [(float(c["latitude"]), float(c["longitude"])) for c in csv.DictReader(f)]
    places = places[:tour.size(1000, 200)]
    pairs = [a + b for i, a in enumerate(places) for b in places[:i]]
    tour.compare(f"distances of {len(pairs):,} pairs", f"{len(places)} cities, GeoNames",
                 lambda: [distance(p) for p in pairs],
                 lambda pool: pool.map(distance, pairs),
                 lambda pool: pool.map(distance, pairs), repeat=3)


def floats(tour: Tour) -> None:
    """Large arrays in; numbers, then arrays, out."""
    n = tour.size(40_000_000, 400_000)
    x = np.random.default_rng(1).random(n)
    chunks = [x[i:i + n // 4] for i in range(0, n, n // 4)]
    tour.compare(f"{n / 1e6:g} million floats to sums", "4 arrays in, 4 numbers out",
                 lambda: [churn_to_sum(c) for c in chunks],
                 lambda pool: pool.map(churn_to_sum, chunks),
                 lambda pool: pool.map(churn_to_sum, chunks))
    tour.compare(f"{n / 1e6:g} million floats to floats", "4 arrays in, 4 arrays out",
                 lambda: [churn_to_array(c) for c in chunks],
                 lambda pool: pool.map(churn_to_array, chunks),
                 lambda pool: pool.map(churn_to_array, chunks),
                 same=lambda a, b: all(map(np.array_equal, a, b)))


def scripts(tour: Tour) -> None:
    """Whole programs side by side, by `trireme run` when the command is there."""
    command = find_program("trireme", "TRIREME_CLI")
    text = ("import os\n"
            "count = sum(all(n % d for d in range(2, int(n ** 0.5) + 1)) for n in range(2, {n}))\n"
            "open('{file}', 'w').write(str(count))\n"
            "print('script {i}:', count, 'primes below {n}')\n")
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i in (1, 2, 3):
            paths.append(f"{folder}/script{i}.py")
            Path(paths[-1]).write_text(text.format(i=i, n=tour.size(150_000, 5_000) + i,
                                                   file=f"file{i}.txt"))

        def trireme(pool: Any) -> str:
            if command is None:
                return "".join(pool.map(run_script, paths))
            env = dict(os.environ, PATH=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
            return subprocess.run([command, "run", "-j", str(tour.workers), *paths], cwd=folder,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                  check=True, env=env).stdout

        tour.compare("three scripts", "trireme run" if command else "map of subprocess.run",
                     lambda: "".join([run_script(p) for p in paths]), trireme,
                     lambda pool: "".join(pool.map(run_script, paths)))


def lost_worker(tour: Tour) -> None:
    """A worker is killed in the middle.  Who notices, and what is lost?"""
    limit = tour.size(10, 2)
    try:
        child = subprocess.Popen([sys.executable, __file__, "--standard-library-loses-a-worker"],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                 start_new_session=True)
        standard = f"ended with exit code {child.wait(limit)}"
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        standard = f"hangs (stopped after {limit} s)"

    expected = [None if i == 7 else sum(range(i * 1000)) for i in range(20)]
    start = time.perf_counter()
    with tri.Pool(tour.workers) as pool:
        got, errors = [], []
        for future in [pool.submit(fragile, i) for i in range(20)]:
            try:
                got.append(future.result(timeout=30))
            except tri.WorkerLost as lost:
                got.append(None)
                errors.append(lost)
        healed = pool.map(abs, range(-100, 0)) == list(range(100, 0, -1))
        seconds = time.perf_counter() - start
    ok = got == expected and len(errors) == 1 and healed
    tour.table.add(Row("a worker killed in 1 of 20 tasks",
                       f"Trireme: {len(errors)} task lost, {len(got) - got.count(None)} results, "
                       f"the pool {'works on' if healed else 'is broken'}; it said: "
                       f"{' '.join(str(e) for e in errors)[:160]}", None, seconds, None, ok,
                       standard_text=standard))


def standard_library_loses_a_worker(workers: int) -> None:
    """The same with multiprocessing.Pool; run in a process of its own, which has to be killed."""
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        print(pool.map(fragile, range(20), chunksize=1))


def find_program(name: str, variable: str) -> str | None:
    """A program built beside the sources, installed beside this Python, or on the PATH.

    The environment *variable*, a program or a folder, comes first.
    """
    root, found = HERE.parents[1], os.environ.get(variable)
    places = [Path(found), Path(found) / name] if found else []
    places += [Path(sys.executable).parent / name, *sorted(root.glob(f"build*/*/{name}")),
               *sorted(root.glob(f"build*/*/*/{name}"))]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    return shutil.which(name)


# ------------------------------------------------------------------ the whole

STOPS: list[tuple[Callable[[Tour], None], bool]] = [  # (what, needs numpy)
    (squares, True), (prime, False), (prime_in_c, False), (factors, False), (cities, False),
    (floats, True), (scripts, False), (lost_worker, False)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds in all")
    parser.add_argument("--workers", type=int, default=max(2, tri.cpu_count()))
    parser.add_argument("--out", type=Path, default=Path.cwd(), help="folder for tour.html")
    parser.add_argument("--only", help="one stop: " + ", ".join(f.__name__ for f, _ in STOPS))
    parser.add_argument("--standard-library-loses-a-worker", action="store_true",
                        help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.standard_library_loses_a_worker:
        standard_library_loses_a_worker(args.workers)
        return 0

    # Newer Pythons warn when a process with threads forks; that is what the peer's row is about.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    start = time.perf_counter()
    table = Table(args.workers)
    tour = Tour(args.workers, args.quick, table)
    for stop, needs_numpy in STOPS:
        if args.only in (None, stop.__name__):
            if needs_numpy and np is None:
                table.add(Row.skipped(stop.__name__, "numpy is not installed"))
            else:
                stop(tour)
    table.finish(time.perf_counter() - start)
    args.out.mkdir(parents=True, exist_ok=True)
    print("written:", write_html(table, args.out / "tour.html"))
    return 0 if table.all_same() else 1


sys.exit(main())
