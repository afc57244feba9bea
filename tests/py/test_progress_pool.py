# SPDX-License-Identifier: BSD-3-Clause
"""progress= moves as results arrive, ends exactly at the total, and harms nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
from conftest import until


def square(x: int) -> int:
    return x * x


def nap(x: float) -> float:
    time.sleep(x)
    return x


def test_callable_gets_done_and_total_up_to_the_end(pool: Any) -> None:
    for method in (pool.map, lambda *a, **o: list(pool.imap(*a, **o)),
                   lambda *a, **o: list(pool.imap_unordered(*a, **o))):  # fmt: skip
        seen: list[tuple[int, int | None]] = []
        got = method(square, range(200), progress=lambda d, t, s=seen: s.append((d, t)))
        assert sorted(got) == [x * x for x in range(200)]
        assert seen[-1] == (200, 200)
        assert [d for d, _ in seen] == sorted({d for d, _ in seen})


def test_it_moves_while_the_map_runs(workers: Any) -> None:
    seen: list[tuple[int, float]] = []
    start = time.monotonic()
    workers.map(nap, [0.06] * 12, progress=lambda d, t: seen.append((d, time.monotonic() - start)))
    assert len(seen) >= 3
    assert seen[0][0] < 12
    assert seen[0][1] < seen[-1][1] - 0.15


def test_total_is_unknown_for_a_generator(workers: Any) -> None:
    seen: list[tuple[int, int | None]] = []
    list(workers.imap(square, iter(range(30)), progress=lambda d, t: seen.append((d, t))))
    assert seen[-1] == (30, None)


def test_failures_count_as_done_in_imap(workers: Any) -> None:
    def task(x: int) -> int:
        return 1 // (x % 3)

    seen: list[Any] = []
    results = workers.imap(task, range(9), progress=lambda d, t: seen.append((d, t)))
    for _ in range(9):
        try:
            next(results)
        except ZeroDivisionError:
            pass
    assert next(results, None) is None
    assert seen[-1] == (9, 9)


def test_callable_that_raises_ends_the_map_with_that(workers: Any) -> None:
    def bad(done: int, total: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        workers.map(square, range(100), progress=bad)
    assert workers.map(square, [3]) == [9]


def test_bar_reaches_the_total_and_is_closed(workers: Any, capfd: Any) -> None:
    pytest.importorskip("tqdm")
    workers.map(square, range(500), progress=True)
    err = capfd.readouterr().err
    assert "500/500" in err
    assert err.endswith("\n")
    list(workers.imap(square, range(50), progress=True))
    err = capfd.readouterr().err
    assert "50/50" in err
    assert err.endswith("\n")


def test_users_own_bar_is_updated_and_left_open(fast: Any) -> None:
    tqdm = pytest.importorskip("tqdm")
    with tqdm.tqdm(total=120, disable=False, file=open("/dev/null", "w")) as bar:
        fast.map(square, range(60), progress=bar)
        assert bar.n == 60
        fast.starmap(pow, [(i, 2) for i in range(60)], progress=bar)
        assert bar.n == 120
        bar.fp.close()


def test_bar_of_an_empty_map_is_harmless(pool: Any, capfd: Any) -> None:
    assert pool.map(square, [], progress=True) == []
    assert pool.map(square, [], progress=lambda d, t: None) == []


def test_wrong_progress_is_refused(pool: Any) -> None:
    with pytest.raises(TypeError, match="progress"):
        pool.map(square, [1], progress=3)


def test_no_thread_is_started_for_a_bar(fast: Any, capfd: Any) -> None:
    import threading

    until(lambda: "trireme-watch" not in [t.name for t in threading.enumerate()])
    before = threading.active_count()
    counts: list[int] = []
    fast.map(nap, [0.06] * 4, progress=lambda d, t: counts.append(threading.active_count()))
    assert set(counts) == {before}
