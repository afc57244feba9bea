# SPDX-License-Identifier: BSD-3-Clause
"""The facades against the originals: the same code, once with each, and the table of their ratios.

A figure here gets a `Doors`: two modules, named as in the standard library, and a context of the
first.  Nothing else tells whether they are the original's or Trireme's, so what differs between
two measurements is a module's name.  Workers and partners are forks, the original's quickest kind,
except where starts are measured.  Every value that comes back is checked.  Nobody is bound to a
CPU, except where `either_place` says why.

A ratio says how many times faster Trireme is.  It is taken within each round, where both were
measured one shortly after the other, and its median over the rounds is what the table shows and
the verdicts use.  Below `SLOWER` a row counts as slower than the original, whatever its bar.

A partner is a process that the measuring one talks to.  It ends itself after PARTNER_S whatever
happens; the measuring process is bounded by who started it.
"""
from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from figures import Figure, Numbers, check, cut, now, timed
from starts import executor_start, pool_start
from systems import Doors, FasterFifo, System
from tasks import busy, np, plus_one, square

PARTNER_S = 110         # longer than any figure, shorter than what bounds the measuring process
PARTNERS = 5            # of every round trip, one after the other: each has its own luck
SLOWER = 0.95           # a ratio below it is more than noise between two runs of the same code
MINE, THEIRS = "trireme facade", "original"


def size(full: int, quick: bool) -> int:
    return full // 20 if quick else full


def median_of(times: int, f: Callable[[], float]) -> float:
    return statistics.median(f() for _ in range(times))


@contextmanager
def pool_of(system: Doors) -> Iterator[Any]:
    """A pool whose workers have run something."""
    pool = system.context.Pool(system.workers)
    check([pool.apply(plus_one, (i,)) for i in range(20)] == list(range(1, 21)), "warm-up")
    yield pool
    pool.close()
    pool.join()


@contextmanager
def executor_of(system: Doors) -> Iterator[Any]:
    with system.futures.ProcessPoolExecutor(system.workers, mp_context=system.context) as executor:
        done = [executor.submit(plus_one, i) for i in range(200)]
        check([f.result() for f in done] == list(range(1, 201)), "warm-up")
        yield executor


@contextmanager
def partner_of(system: Doors, work: Callable[[], None], apart: bool = False) -> Iterator[None]:
    """Run *work* in a process of its own, which has ended when the block has.

    With *apart*, each of the two is bound to a CPU of its own, if there are two.
    """
    cpus = os.sched_getaffinity(0)

    def bounded() -> None:
        signal.alarm(PARTNER_S)
        if apart:
            os.sched_setaffinity(0, {max(cpus)})
        work()

    process = system.context.Process(target=bounded, daemon=True)
    process.start()
    if apart:
        os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)
    process.join(PARTNER_S)
    check(process.exitcode == 0, f"the partner ended with {process.exitcode}")


def trips(n: int, there_and_back: Callable[[int], bool]) -> float:
    """The median time of *n* round trips, in microseconds; the partner makes 100 more."""
    for i in range(100):
        check(there_and_back(i), "warm-up")
    times = []
    for i in range(n):
        start = now()
        good = there_and_back(i)
        times.append(now() - start)
        check(good, "round trip")
    return 1e6 * statistics.median(times)


# ------------------------------------------------------------------ pools and executors


def pool_map(system: Doors, quick: bool) -> Numbers:
    """Pool.map with default chunks: x*x over 1,000,000 ints, and 100 tasks of 1 ms each."""
    items = list(range(size(1_000_000, quick)))
    squares = [square(x) for x in items]

    def tiny() -> float:
        t, got = timed(pool.map, square, items)
        check(got == squares, "map")
        return t

    def long() -> float:
        t, got = timed(pool.map, busy, [0.001] * 100)
        check(got == [0.001] * 100, "map of long tasks")
        return t

    with pool_of(system) as pool:
        return {"first_squares_ms": 1e3 * tiny(), "squares_ms": 1e3 * median_of(5, tiny),
                "long_ms": 1e3 * median_of(5, long)}


def pool_apply(system: Doors, quick: bool) -> Numbers:
    """Pool.apply_async of all, then every get(); and Pool.apply, one task after the other."""
    n = cut(50_000, system.per_task, quick)

    def burst() -> float:
        start = now()
        handles = [pool.apply_async(plus_one, (i,)) for i in range(n)]
        values = [handle.get() for handle in handles]
        t = now() - start
        check(values == list(range(1, n + 1)), "apply_async")
        return n / t

    with pool_of(system) as pool:
        return {"first_per_s": burst(), "per_s": median_of(3, burst), "scaled_from": n,
                "apply_us": trips(size(5000, quick),
                                  lambda i: pool.apply(plus_one, (i,)) == i + 1)}


def pool_imap(system: Doors, quick: bool) -> Numbers:
    """Pool.imap_unordered and Pool.imap of 20,000 tiny tasks, chunksize 1."""
    n = size(20_000, quick)

    def unordered() -> float:
        t, got = timed(lambda: list(pool.imap_unordered(plus_one, range(n), 1)))
        check(sorted(got) == list(range(1, n + 1)), "imap_unordered")
        return n / t

    def ordered() -> float:
        t, got = timed(lambda: list(pool.imap(plus_one, range(n), 1)))
        check(got == list(range(1, n + 1)), "imap")
        return n / t

    with pool_of(system) as pool:
        return {"first_unordered_per_s": unordered(), "unordered_per_s": median_of(3, unordered),
                "ordered_per_s": median_of(3, ordered)}


def executor_submit(system: Doors, quick: bool) -> Numbers:
    """submit() of 20,000 calls, then every result(); and one call after the other."""
    n = size(20_000, quick)

    def burst() -> float:
        start = now()
        futures = [executor.submit(plus_one, i) for i in range(n)]
        values = [future.result() for future in futures]
        t = now() - start
        check(values == list(range(1, n + 1)), "submit")
        return n / t

    with executor_of(system) as executor:
        return {"first_per_s": burst(), "per_s": median_of(3, burst),
                "call_us": trips(size(5000, quick),
                                 lambda i: executor.submit(plus_one, i).result() == i + 1)}


def executor_map(system: Doors, quick: bool) -> Numbers:
    """map(chunksize=1) of 100,000 tiny tasks, or of the part that fits, per task."""
    n = size(100_000, quick)
    m = min(n, cut(100_000, system.per_item, quick))

    def run() -> float:
        t, got = timed(lambda: list(executor.map(plus_one, range(m), chunksize=1)))
        check(got == list(range(1, m + 1)), "executor map")
        return m / t

    with executor_of(system) as executor:
        return {"per_s": median_of(3 if m == n else 1, run), "scaled_from": m}


# ------------------------------------------------------------------ between two processes


def stream(system: Doors, items: list[Any], take: Callable[[Any], bool]) -> float:
    """One process puts *items*, this one takes them: messages per second."""
    queue = system.queue()
    ours, theirs = system.context.Pipe()

    def produce() -> None:
        while theirs.recv():
            for item in items:
                queue.put(item)

    def once() -> float:
        start = now()
        ours.send(True)
        good = take(queue)
        t = now() - start
        check(good, "messages")
        return len(items) / t

    with partner_of(system, produce):
        once()      # the first use of memory
        rate = median_of(4, once)
        ours.send(False)
    queue.close()
    return rate


def queue_small(system: Doors, quick: bool) -> Numbers:
    """Queue: small messages from one process to another; faster-fifo also with its get_many()."""
    n = size(50_000, quick)
    ints: list[Any] = list(range(n))
    tuples: list[Any] = [(i, "step", 0.5) for i in range(n)]

    def many(queue: Any) -> bool:
        got: list[Any] = []
        while len(got) < n:
            got += queue.get_many(max_messages_to_get=1000)
        return got == ints

    out = {"ints_per_s": stream(system, ints, lambda q: [q.get() for _ in range(n)] == ints),
           "tuples_per_s": stream(system, tuples,
                                  lambda q: [q.get() for _ in range(n)] == tuples)}
    if isinstance(system, FasterFifo):
        out["ints_many_per_s"] = stream(system, ints, many)
    return out


def queue_arrays(system: Doors, quick: bool) -> Numbers:
    """Queue: arrays of 1 MB from one process to another, each dropped when it was looked at."""
    kinds = [np.arange(131_072, dtype=np.float64) + k for k in range(8)]
    items = [kinds[i % 8] for i in range(size(400, quick))]
    sums = [float(kind.sum()) for kind in kinds]

    def take(queue: Any) -> bool:
        # A sum, for a message counts when it was read; 40 us or so of either's time.
        return all([float(queue.get().sum()) == sums[i % 8] for i in range(len(items))])

    return {"gb_per_s": stream(system, items, take) * kinds[0].nbytes / 1e9}


def either_place(name: str, measure: Callable[[bool], float]) -> Numbers:
    """A round trip with each side on a CPU of its own, and with both on one.

    Left to itself the kernel puts two processes that wake each other now on two CPUs, now on one,
    which changes a round trip tenfold.  *measure* is told whether partner_of shall part them, and
    makes what it measures anew: a queue looks at its making whether there is another CPU.
    """
    cpus = os.sched_getaffinity(0)
    out = {f"{name}_two_cpus_us": median_of(PARTNERS, lambda: measure(True))}
    os.sched_setaffinity(0, {min(cpus)})
    try:
        return out | {f"{name}_one_cpu_us": median_of(PARTNERS, lambda: measure(False))}
    finally:
        os.sched_setaffinity(0, cpus)


def pingpong(system: Doors, quick: bool) -> Numbers:
    """A small int there and back: two queues, two simple queues, a pipe of two directions."""
    n, context = size(4000, quick), system.context

    def over(send: Callable[[int], None], receive: Callable[[], int], put: Callable[[int], None],
             get: Callable[[], int], apart: bool) -> float:
        def answer() -> None:
            for _ in range(n // PARTNERS + 100):
                put(get() + 1)

        def trip(i: int) -> bool:
            send(i)
            return receive() == i + 1

        with partner_of(system, answer, apart):
            return trips(n // PARTNERS, trip)

    def over_pipe(apart: bool) -> float:
        ours, theirs = context.Pipe()
        return over(ours.send, ours.recv, theirs.send, theirs.recv, apart)

    def over_queues(make: Callable[[], Any], apart: bool) -> float:
        there, back = make(), make()
        return over(there.put, back.get, back.put, there.get, apart)

    # The pipe is the same object in both, so its turn comes before anything differs: how deep an
    # idle CPU sleeps depends on what it did shortly before.
    return {**either_place("pipe", over_pipe),
            **either_place("queue", lambda apart: over_queues(context.Queue, apart)),
            **either_place("simple_queue", lambda apart: over_queues(context.SimpleQueue, apart))}


def handover(system: Doors, n: int, apart: bool) -> float:
    """Release a lock for which another process waits, until it runs: half of there and back."""
    ping, pong = system.context.Lock(), system.context.Lock()
    ping.acquire()
    pong.acquire()

    def answer() -> None:
        for _ in range(n + 100):
            ping.acquire()
            pong.release()

    def trip(_: int) -> bool:
        ping.release()
        return bool(pong.acquire())

    with partner_of(system, answer, apart):
        return trips(n, trip) / 2


def locks(system: Doors, quick: bool) -> Numbers:
    """Lock: nobody else wants it; handed from process to process.  Value under its lock: by one
    process, and by two at once."""
    n, times, context = size(100_000, quick), 11, system.context
    lock, value = context.Lock(), context.Value("q", 0)
    ours, theirs = context.Pipe()

    def uncontended() -> float:
        start = now()
        for _ in range(n):
            lock.acquire()
            lock.release()
        return 1e9 * (now() - start) / n

    def increment() -> float:
        start = now()
        for _ in range(n):
            with value.get_lock():
                value.value += 1
        return 1e9 * (now() - start) / n

    def answer() -> None:
        while theirs.recv():
            increment()
            theirs.send(True)

    def together() -> float:
        start = now()
        ours.send(True)
        increment()
        ours.recv()
        return 2 * n / (now() - start)

    out = {"lock_ns": median_of(times, uncontended), "value_ns": median_of(times, increment)}
    with partner_of(system, answer, apart=True):
        out["value_by_two_per_s"] = median_of(times, together)
        ours.send(False)
    check(value.value == 3 * times * n, "increments")
    return out | either_place(
        "handover", lambda apart: handover(system, size(4000, quick) // PARTNERS, apart))


def event_trips(system: Doors, n: int, apart: bool) -> float:
    """Event: set, and wait for the partner's."""
    ping, pong = system.context.Event(), system.context.Event()

    def answer() -> None:
        for _ in range(n + 100):
            ping.wait()
            ping.clear()
            pong.set()

    def trip(_: int) -> bool:
        ping.set()
        good = bool(pong.wait())
        pong.clear()
        return good

    with partner_of(system, answer, apart):
        return trips(n, trip)


def condition_trips(system: Doors, n: int, apart: bool) -> float:
    """Condition: notify, and wait for the answer."""
    condition, turn = system.context.Condition(), system.context.RawValue("i", 0)

    def answer() -> None:
        with condition:
            for _ in range(n + 100):
                while not turn.value:
                    condition.wait()
                turn.value = 0
                condition.notify()

    def trip(_: int) -> bool:
        with condition:
            turn.value = 1
            condition.notify()
            while turn.value:
                condition.wait()
        return True

    with partner_of(system, answer, apart):
        return trips(n, trip)


def events(system: Doors, quick: bool) -> Numbers:
    """An Event, or a Condition with notify(), to another process and back."""
    n = size(4000, quick) // PARTNERS
    return {**either_place("event", lambda apart: event_trips(system, n, apart)),
            **either_place("condition", lambda apart: condition_trips(system, n, apart))}


# ------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Row:
    """One line of the table: a number of a figure, of two systems."""

    figure: str
    number: str
    title: str
    bar: float | None = SLOWER      # the ratio to reach; None: none is asked for
    mine: str = MINE
    theirs: str = THEIRS

    def ratio(self, mine: dict[str, float], theirs: dict[str, float]) -> float:
        a, b = mine[self.number], theirs[self.number]
        return a / b if self.number.endswith("per_s") else b / a

    def text(self, numbers: dict[str, float], other: dict[str, float]) -> str:
        value = numbers[self.number]
        if self.number.endswith("gb_per_s"):
            return f"{value:.3g} GB/s"
        if self.number.endswith("per_s"):
            told = f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"
        else:
            unit = self.number.rpartition("_")[2]
            told = f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
        part = numbers.get("scaled_from", 0)
        return told + (f" (from {part:,.0f})" if part < other.get("scaled_from", 0) else "")


def trip_rows(figure: str, what: str, title: str) -> tuple[Row, ...]:
    return (Row(figure, f"{what}_two_cpus_us", f"{title}, on two CPUs"),
            Row(figure, f"{what}_one_cpu_us", f"{title}, on one CPU"))


def start_rows(figure: str, what: str) -> tuple[Row, ...]:
    return tuple(
        Row(figure, number, f"{what}, {method}: {told}", mine=MINE + suffix, theirs=THEIRS + suffix)
        for method, suffix in (("fork", ""), ("spawn", " spawn"), ("forkserver", " forkserver"))
        for number, told in (("first_ms", "start to first result, first in the process"),
                             ("again_ms", "start to first result, again"), ("stop_ms", "stop")))


ROWS = (
    Row("facade_map", "squares_ms", "Pool.map of x*x over 1,000,000 ints"),
    Row("facade_map", "long_ms", "Pool.map of 100 tasks of 1 ms"),
    Row("facade_apply", "per_s", "Pool.apply_async of 50,000, then get", 10),
    Row("facade_apply", "apply_us", "Pool.apply, one after the other, p50"),
    Row("facade_imap", "unordered_per_s", "Pool.imap_unordered of 20,000, chunksize 1"),
    Row("facade_imap", "ordered_per_s", "Pool.imap of 20,000, chunksize 1"),
    Row("facade_submit", "per_s", "executor: submit of 20,000, then result", 10),
    Row("facade_submit", "call_us", "executor: submit and result, one after the other, p50"),
    Row("facade_executor_map", "per_s", "executor: map(chunksize=1) of 100,000", 30),
    Row("facade_queue", "ints_per_s", "Queue: ints", 5),
    Row("facade_queue", "tuples_per_s", "Queue: tuples of three", 5),
    Row("facade_queue", "ints_per_s", "Queue: ints", None, theirs="faster-fifo"),
    Row("facade_queue", "tuples_per_s", "Queue: tuples of three", None, theirs="faster-fifo"),
    Row("facade_queue_arrays", "gb_per_s", "Queue: arrays of 1 MB", 5),
    Row("facade_queue_arrays", "gb_per_s", "Queue: arrays of 1 MB", None, theirs="faster-fifo"),
    *trip_rows("facade_pingpong", "queue", "Queue there and back, p50"),
    *trip_rows("facade_pingpong", "simple_queue", "SimpleQueue there and back, p50"),
    *trip_rows("facade_pingpong", "pipe", "Pipe there and back, p50"),
    Row("facade_locks", "lock_ns", "Lock that nobody else wants, acquire and release"),
    *trip_rows("facade_locks", "handover", "Lock handed to another process, p50"),
    Row("facade_locks", "value_ns", "Value += 1 under its lock"),
    Row("facade_locks", "value_by_two_per_s", "Value += 1 under its lock, by two processes"),
    *trip_rows("facade_events", "event", "Event there and back, p50"),
    *trip_rows("facade_events", "condition", "Condition there and back, p50"),
    *start_rows("facade_pool_start", "Pool"),
    *start_rows("facade_executor_start", "executor"),
)

BOTH = (MINE, THEIRS)
METHODS = tuple(name + suffix for name in BOTH for suffix in ("", " spawn", " forkserver"))


def figure(name: str, run: Callable[[Any, bool], Numbers], *systems: str) -> Figure:
    def on_doors(system: System, quick: bool) -> Numbers:
        assert isinstance(system, Doors), f"{name} is for facades and originals"
        return run(system, quick)

    return Figure(name, on_doors, systems or BOTH, ())


FIGURES = (
    figure("facade_map", pool_map),
    figure("facade_apply", pool_apply),
    figure("facade_imap", pool_imap),
    figure("facade_submit", executor_submit),
    figure("facade_executor_map", executor_map),
    figure("facade_queue", queue_small, *BOTH, "faster-fifo"),
    figure("facade_queue_arrays", queue_arrays, *BOTH, "faster-fifo"),
    figure("facade_pingpong", pingpong),
    figure("facade_locks", locks),
    figure("facade_events", events),
    figure("facade_pool_start", pool_start, *METHODS),
    figure("facade_executor_start", executor_start, *METHODS),
)


def measured(result: dict[str, Any], number: str) -> dict[str, Any]:
    """*result*, or nothing if it lacks the number."""
    return result if number in result.get("numbers", {}) else {}


def comparisons(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The table's rows, of the figures in *results*; "ratio" is None where one was not measured."""
    out = []
    for row in ROWS:
        if row.figure not in results:
            continue
        mine, theirs = (measured(results[row.figure].get(name, {}), row.number)
                        for name in (row.mine, row.theirs))
        bar = "-" if row.bar is None else "not slower" if row.bar == SLOWER else f">= {row.bar:g}x"
        told: dict[str, Any] = {"measured": row.title, "against": row.theirs, "theirs": "-",
                                "Trireme": "-", "ratio": None, "bar": bar,
                                "reached": "not measured"}
        for cell, result, other in (("theirs", theirs, mine), ("Trireme", mine, theirs)):
            if result:
                told[cell] = row.text(result["numbers"], other.get("numbers", {}))
        if mine and theirs:
            ratio = statistics.median(row.ratio(a, b) for a, b in zip(
                mine["runs"], theirs["runs"], strict=False))
            told["ratio"] = ratio
            if row.bar is None:
                told["reached"] = "-"
            elif ratio < SLOWER:
                told["reached"] = "**slower**"
            else:
                told["reached"] = "yes" if ratio >= row.bar else "**no**"
        out.append(told)
    return out


def ratio_text(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """*rows* as Markdown, and below it all that is slower than the original."""
    if not rows:
        return []
    texts = [row | {"ratio": ratio_text(row["ratio"])} for row in rows]
    slower = [f"{row['measured']} ({row['ratio']})" for row in texts
              if row["reached"] == "**slower**"]
    return ["| " + " | ".join(texts[0]) + " |", "|---|---|---:|---:|---:|---|---|",
            *("| " + " | ".join(row.values()) + " |" for row in texts), "",
            f"Slower than the original (ratio below {SLOWER}): "
            + ("; ".join(slower) if slower else "nothing that was measured") + "."]
