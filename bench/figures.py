# SPDX-License-Identifier: BSD-3-Clause
"""What is measured: one function per figure, and the bar each must reach.

A figure's function gets an opened-by-itself `System`, runs in a fresh process and returns numbers
by name.  It checks every value that comes back: a wrong answer is no measurement.  Numbers whose
name ends in `_s` are seconds, `_us` microseconds, `_per_s` rates.  A run whose full size would
take too long is cut to `SECONDS` by the system's expected cost and scaled; `scaled_from` tells.
"""
from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starts import startup
from systems import System, Unsupported
from tasks import array_double, array_sum, linger, np, plus_one, random_square, square

SECONDS = 4.0           # about how long one system may take over one measurement
Numbers = dict[str, float]
now = time.perf_counter


def check(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(f"wrong result: {what}")


def cut(full: int, cost: float, quick: bool) -> int:
    """How many of *full* units at *cost* seconds each fit."""
    return max(50, min(full // (20 if quick else 1), int(SECONDS / cost)))


def lasting(full: int, cost: float, quick: bool) -> int:
    """The same, but enough of them for half a second.

    Two processes that answer each other at once are often on one CPU at first, and the kernel takes
    some 50 ms to see that another one is idle.
    """
    return max(cut(full, cost, quick), 0 if quick else int(0.5 / cost))


def timed(f: Callable[..., Any], *args: Any, **options: Any) -> tuple[float, Any]:
    start = now()
    value = f(*args, **options)
    return now() - start, value


def opened(system: System) -> System:
    """Open, and let both workers have run something."""
    system.open()
    for i in range(20):
        check(system.call(plus_one, i) == i + 1, "warm-up")
    return system


# ------------------------------------------------------------------ one function per figure


def latency_busy(system: System, quick: bool) -> Numbers:
    """One task at a time, back to back."""
    opened(system)
    n = lasting(5000, system.per_task, quick)
    times = []
    for i in range(n):
        start = now()
        value = system.call(plus_one, i)
        times.append(now() - start)
        check(value == i + 1, "plus_one")
    system.close()
    times.sort()
    return {"p50_us": 1e6 * times[n // 2], "p99_us": 1e6 * times[n * 99 // 100]}


def latency_idle(system: System, quick: bool) -> Numbers:
    """One task after 5 ms in which nobody did anything.

    Where the workers are known also with caller and workers bound to one CPU, or to one each, where
    the kernel's choice makes no difference.  Of Trireme also: after 5 ms in which its workers did
    nothing, when the caller has just run a task on a pool of threads, so that its own code is in
    the caches.
    """
    opened(system)
    n = 40 if quick else 200

    def after_idleness(before: Callable[[], object]) -> list[float]:
        times = []
        for i in range(n):
            time.sleep(0.005)
            before()
            start = now()
            value = system.call(plus_one, i)
            times.append(now() - start)
            check(value == i + 1, "plus_one")
        return sorted(times)

    times = after_idleness(int)
    out = {"p10_us": 1e6 * times[n // 10], "p50_us": 1e6 * times[n // 2],
           "p99_us": 1e6 * times[n * 99 // 100]}
    if system.needs == "trireme":
        with system.module.Pool(1, kind="thread") as other:
            times = after_idleness(lambda: other.submit(plus_one, 1).result())
        out |= {"warm_caller_p10_us": 1e6 * times[n // 10],
                "warm_caller_p50_us": 1e6 * times[n // 2]}
    if system.pids():
        allowed = os.sched_getaffinity(0)
        places = {"one_cpu_p50_us": min(allowed), "two_cpus_p50_us": max(allowed)}
        try:
            os.sched_setaffinity(0, {min(allowed)})
            for name, cpu in places.items() if len(allowed) > 1 else ():
                for pid in system.pids():
                    os.sched_setaffinity(pid, {cpu})
                out[name] = 1e6 * after_idleness(int)[n // 2]
        finally:
            os.sched_setaffinity(0, allowed)
    system.close()
    return out


def futures(system: System, quick: bool) -> Numbers:
    """Submit all, then take all results: 50,000 for those that can."""
    opened(system)
    n = cut(50_000, system.per_task, quick)
    rates, submits = [], []
    for _ in range(3):
        start = now()
        handles = [system.submit(plus_one, i) for i in range(n)]
        middle = now()
        values = [system.result(h) for h in handles]
        rates.append(n / (now() - start))
        submits.append(1e6 * (middle - start) / n)
        check(values == list(range(1, n + 1)), "futures")
        del handles
    system.close()
    return {"first_per_s": rates[0], "per_s": statistics.median(rates),
            "submit_us": statistics.median(submits), "scaled_from": n}


def small_maps(system: System, quick: bool) -> Numbers:
    """map of 16 items that cost next to nothing, one such map after the other."""
    opened(system)
    items, times = list(range(16)), []
    expected = [square(i) for i in items]  # not plus_one: MPIRE mixes up apply and map of one
    for _ in range(lasting(1000, 16 * system.per_task, quick)):
        start = now()
        got = system.map(square, items)
        times.append(now() - start)
        check(got == expected, "a small map")
    system.close()
    times.sort()
    n = len(times)
    return {"p50_us": 1e6 * times[n // 2], "p90_us": 1e6 * times[n * 9 // 10], "maps": n}


def map_squares(system: System, quick: bool) -> Numbers:
    """map of x*x over a list of ints with default chunks, against [f(x) for x in items]."""
    opened(system)
    n = 50_000 if quick else 1_000_000
    m = min(n, max(2000, int(SECONDS / system.per_item)))
    rounds = 6 if m == n and system.per_item < 1e-6 else 2
    items = list(range(n))
    part = items if m == n else items[:m]
    expected = [square(x) for x in items]
    ratios, helped = [], []
    for _ in range(rounds):     # the first warms memory and is told apart
        serial, _ = timed(lambda: [square(x) for x in items])
        t, got = timed(system.map, square, part)
        check(got == expected[:m], "map")
        ratios.append(t * n / m / serial)
        if type(system).__name__ == "Trireme":
            t, got = timed(system.map, square, items, caller=True)
            check(got == expected, "map with caller")
            helped.append(t / serial)
    system.close()
    out = {"ratio": statistics.median(ratios[1:]), "first_ratio": ratios[0], "serial_s": serial,
           "scaled_from": m}
    if helped:
        out["caller_ratio"] = statistics.median(helped[1:])
    return out


def arrays(system: System, quick: bool) -> Numbers:
    """40 arrays of 8 MB: to their sums, and to arrays of the same size.  GB/s of input."""
    opened(system)
    count, length = (8, 1 << 17) if quick else (40, 1_000_000)
    gigabytes = count * length * 8 / 1e9
    sums, same, shared, fresh, put = [], [], [], [], []
    for r in range(4):
        # New arrays each time: some systems remember those they have sent.
        data = [np.arange(length, dtype=np.float64) + (r * count + i) for i in range(count)]
        expected = [float(a.sum()) for a in data]
        t, got = timed(system.map, array_sum, data)
        sums.append(gigabytes / t)
        check(got == expected, "sums")
        t, got = timed(system.map, array_double, data)
        same.append(gigabytes / t)
        check(all(np.array_equal(g, a + a) for g, a in zip(got, data, strict=True)), "arrays")
        del got
        try:
            t, references = timed(list, map(system.share, data))
            put.append(gigabytes / t)
            # Shared once, used often: the first use maps the memory into each worker.
            for rates in (fresh, shared):
                t, got = timed(system.map, array_sum, references)
                rates.append(gigabytes / t)
                check(got == expected, "sums of shared arrays")
            del references
        except Unsupported:
            pass
    system.close()
    out = {"sums_gb_per_s": statistics.median(sums[1:]),
           "arrays_gb_per_s": statistics.median(same[1:]), "first_sums_gb_per_s": sums[0],
           "first_arrays_gb_per_s": same[0]}
    if shared:
        out |= {"shared_gb_per_s": statistics.median(shared[1:]),
                "fresh_shared_gb_per_s": statistics.median(fresh[1:]),
                "put_gb_per_s": statistics.median(put[1:])}
    return out


def memory(system: System, quick: bool) -> Numbers:
    """Unique memory (USS: private pages) of a worker that has run a few tasks and now idles."""
    opened(system)
    pids: set[int] = set()
    for _ in range(20):
        pids |= set(system.map(linger, range(2 * system.workers), 1))
        if len(pids) >= system.workers:
            break
    time.sleep(0.3)
    unique, proportional = [], []
    for pid in pids:
        fields = {}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, kilobytes = line.split()[:2]
            fields[name.rstrip(":")] = int(kilobytes) / 1000 * 1.024
        unique.append(fields["Private_Clean"] + fields["Private_Dirty"])
        proportional.append(fields["Pss"])
    system.close()
    return {"uss_mb": statistics.median(unique), "pss_mb": statistics.median(proportional),
            "workers": len(pids)}


def random_squares(system: System, quick: bool) -> Numbers:
    """The tutorials' random_square over 1,000,000 seeds; the serial time is of every 5th seed.

    Each map has its own serial time, taken just before: both move with the machine.
    """
    opened(system)
    n = 20_000 if quick else 1_000_000
    m = min(n, max(2000, int(2 * SECONDS / max(system.per_item, 2e-6))))
    sample = range(0, n, 5)
    chunks = (None, 1000, 10_000, 50_000) if type(system).__name__ == "PoolFork" else (None,)
    serials, defaults = [], []
    speedups: dict[int | None, list[float]] = {chunk: [] for chunk in chunks}
    for _ in range(3 if m == n else 1):
        for chunk in chunks:
            serial, expected = timed(lambda: [random_square(s) for s in sample])
            t, got = timed(system.map, random_square, range(m), chunk)
            check(got[::5] == expected[:len(got[::5])], "random_square")
            speedups[chunk].append(5 * serial / (t * n / m))
            serials.append(5 * serial)
            if chunk is None:
                defaults.append(t * n / m)
    medians = {chunk: statistics.median(values) for chunk, values in speedups.items()}
    out = {"speedup": medians[None], "serial_s": statistics.median(serials),
           "default_s": statistics.median(defaults), "scaled_from": m}
    if len(chunks) > 1:
        best = max(medians, key=medians.__getitem__)
        out |= {"best_speedup": medians[best], "best_chunk": best or 0}
    system.close()
    return out


def run_program(program: Path, quick: bool) -> Numbers:
    """A C program of bench/c prints "name value" lines."""
    done = subprocess.run([str(program), "quick" if quick else "full"], capture_output=True,
                          text=True, check=True)
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}


# ------------------------------------------------------------------ what must be reached

Medians = dict[str, Numbers]    # of one figure, by system


@dataclass(frozen=True)
class Bar:
    """One row of the published table; both texts and the verdict come from the same medians."""

    title: str
    number: str                                  # which of the figure's numbers is shown
    unit: str
    bar: str
    reached: Callable[[Medians], bool]
    shown: tuple[str, ...] = ("trireme",)        # the systems that are Trireme


@dataclass(frozen=True)
class Figure:
    name: str
    run: Callable[[System, bool], Numbers] | None
    systems: tuple[str, ...]
    bars: tuple[Bar, ...]
    programs: tuple[str, ...] = ()               # of bench/c


def of(system: str, number: str, factor: float = 1.0) -> Callable[[Medians], float]:
    return lambda m: factor * m[system][number]


def at_most(number: str, limit: Callable[[Medians], float] | float,
            system: str = "trireme") -> Callable[[Medians], bool]:
    return lambda m: m[system][number] <= (limit(m) if callable(limit) else limit)


def at_least(number: str, limit: Callable[[Medians], float] | float,
             system: str = "trireme") -> Callable[[Medians], bool]:
    return lambda m: m[system][number] >= (limit(m) if callable(limit) else limit)


def idle_reached(m: Medians) -> bool:
    mine, bare = m["trireme"]["p50_us"], m["futex_wake"]["p50_us"]
    return mine <= m["Pool fork"]["p50_us"] / 5 and mine <= 1.5 * bare


PROCESSES = ("Pool fork", "executor", "joblib", "MPIRE", "Pebble", "Ray")
STARTS = ("Pool fork", "Pool spawn", "Pool forkserver", "executor", "joblib", "MPIRE", "Pebble",
          "Ray")

FIGURES = (
    Figure("latency_busy", latency_busy, ("trireme", *PROCESSES, "threads"), (
        Bar("round trip of one task, busy pool, p50", "p50_us", "us", "<= 1/80 of Pool",
            at_most("p50_us", of("Pool fork", "p50_us", 1 / 80))),)),
    Figure("latency_idle", latency_idle, ("trireme", *PROCESSES, "threads", "eventfd"), (
        Bar("round trip after 5 ms of idleness, p50", "p50_us", "us",
            "<= 1/5 of Pool, <= 1.5x bare futexes", idle_reached),
        Bar("the same, all on one CPU", "one_cpu_p50_us", "us", "<= 1.5x bare futexes there",
            at_most("one_cpu_p50_us", of("futex_wake", "one_cpu_p50_us", 1.5))),
        Bar("the same, each side on a CPU of its own", "two_cpus_p50_us", "us",
            "<= 1.5x bare futexes there",
            at_most("two_cpus_p50_us", of("futex_wake", "two_cpus_p50_us", 1.5)))),
        ("futex_wake",)),
    Figure("futures", futures, ("trireme", "Pool fork", "executor", "MPIRE", "Pebble", "Ray",
                                "threads"), (
        Bar("submit + result of 50,000 futures", "per_s", "/s", ">= 25x Pool",
            at_least("per_s", of("Pool fork", "per_s", 25))),)),
    Figure("map_squares", map_squares, ("trireme", *PROCESSES, "threads"), (
        Bar("map of x*x over 1,000,000 ints, default chunk, time / list comprehension", "ratio",
            "x", "<= 0.9", at_most("ratio", 0.9)),
        Bar("the same with caller=True", "caller_ratio", "x", "<= 0.7",
            at_most("caller_ratio", 0.7)))),
    Figure("small_maps", small_maps, ("trireme", *PROCESSES, "threads"), (
        Bar("map of 16 ints, again and again, p50", "p50_us", "us", "<= 1/10 of Pool",
            at_most("p50_us", of("Pool fork", "p50_us", 1 / 10))),)),
    Figure("arrays", arrays, ("trireme", *PROCESSES, "threads"), (
        Bar("40 arrays of 8 MB to sums", "sums_gb_per_s", "GB/s", ">= 0.4 of threads",
            at_least("sums_gb_per_s", of("threads", "sums_gb_per_s", 0.4))),
        Bar("40 arrays of 8 MB to arrays", "arrays_gb_per_s", "GB/s", ">= 0.7 of threads",
            at_least("arrays_gb_per_s", of("threads", "arrays_gb_per_s", 0.7))),
        Bar("40 shared arrays of 8 MB to sums", "shared_gb_per_s", "GB/s",
            ">= 1/1.2 of threads' sums",
            at_least("shared_gb_per_s", of("threads", "sums_gb_per_s", 1 / 1.2))),
        Bar("the same, when the workers meet them for the first time", "fresh_shared_gb_per_s",
            "GB/s", ">= 0.4 of threads' sums",
            at_least("fresh_shared_gb_per_s", of("threads", "sums_gb_per_s", 0.4))))),
    Figure("startup", startup, ("trireme", "trireme fork", "trireme spawn", *STARTS), (
        Bar("open pool, first result, warm warden", "again_ms", "ms", "<= Pool fork",
            at_most("again_ms", of("Pool fork", "again_ms"))),
        Bar('open pool, first result, start="fork", first in the process', "first_ms", "ms",
            "<= Pool fork",
            at_most("first_ms", of("Pool fork", "first_ms"), "trireme fork"), ("trireme fork",)),
        Bar("open pool, first result, first forkserver ever", "first_ms", "ms",
            "<= Pool forkserver", at_most("first_ms", of("Pool forkserver", "first_ms"))),
        Bar("import trireme", "import_ms", "ms", "<= 30 ms", at_most("import_ms", 30)))),
    Figure("memory", memory, ("trireme", "trireme fork", *STARTS), (
        Bar("unique memory per idle worker", "uss_mb", "MB", "<= 1.5 MB",
            at_most("uss_mb", 1.5)),
        Bar('the same, start="fork"', "uss_mb", "MB", "<= 1.5 MB",
            at_most("uss_mb", 1.5, "trireme fork"), ("trireme fork",)))),
    Figure("c_core", None, (), (
        Bar("C, thread kind: tri_submit + wait of an empty task", "submit_per_s", "/s", ">= 5 M/s",
            at_least("submit_per_s", 5e6, "core"), ("core",)),
        Bar("C, thread kind: tri_map of an empty task, per item", "map_per_s", "/s",
            ">= 50 M/s", at_least("map_per_s", 50e6, "core"), ("core",))), ("core",)),
    Figure("random_squares", random_squares, ("trireme", *PROCESSES), (
        Bar("random_square of 1,000,000 seeds, default settings, speed-up", "speedup", "x",
            ">= Pool's best chunk",
            at_least("speedup", of("Pool fork", "best_speedup"))),)),
)
