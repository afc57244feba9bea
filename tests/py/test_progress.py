# SPDX-License-Identifier: BSD-3-Clause
"""Every form of progress= ends at the exact count and is not called for each task."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import trireme as tri
from conftest import WAYS, open_pool
from trireme import _progress
from trireme._progress import PlainBar, make_progress


class Clock:
    """Stands for the time module; moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(_progress, "time", found)
    return found


@pytest.mark.parametrize("nothing", [None, False])
def test_no_progress(nothing: Any) -> None:
    assert make_progress(nothing, 5) is None


def test_a_callable_is_called_now_and_then_and_at_the_end(clock: Clock) -> None:
    calls: list[tuple[int, int | None]] = []
    progress = make_progress(lambda done, total: calls.append((done, total)), 10_000)
    assert progress is not None
    for i in range(9_000):
        if i % 1000 == 999:
            clock.now += 0.051
        progress.update()
    assert calls == [(1000 * i, 10_000) for i in range(1, 10)]
    progress.update(1000)
    assert calls[9:] == [(10_000, 10_000)], "the last one does not wait"
    progress.close()
    progress.close()
    assert len(calls) == 10


def test_close_passes_on_what_was_held_back(clock: Clock) -> None:
    calls: list[tuple[int, int | None]] = []
    progress = make_progress(lambda done, total: calls.append((done, total)), None)
    assert progress is not None
    progress.update(3)
    progress.update(4)
    assert calls == []
    progress.close()
    assert calls == [(7, None)]


def test_an_exception_of_the_callable_comes_out(clock: Clock) -> None:
    def stop(done: int, total: int | None) -> None:
        raise InterruptedError

    progress = make_progress(stop, 1)
    assert progress is not None
    with pytest.raises(InterruptedError):
        progress.update()


def test_a_bar_of_the_user_is_updated_and_left_open(clock: Clock) -> None:
    class Bar:
        n = 0
        closed = refreshed = False

        def update(self, n: int) -> None:
            self.n += n

        def refresh(self) -> None:
            self.refreshed = True

        def close(self) -> None:
            self.closed = True

    bar = Bar()
    progress = make_progress(bar, 10)
    assert progress is not None
    for _ in range(7):
        progress.update()
    progress.close()
    assert bar.n == 7 and bar.refreshed and not bar.closed


def test_a_bar_of_tqdm_shows_the_exact_count_and_starts_no_thread() -> None:
    pytest.importorskip("tqdm")
    out = io.StringIO()
    threads = threading.active_count()
    progress = make_progress({"file": out, "desc": "rows", "ncols": 80}, 50)
    assert progress is not None
    for _ in range(50):
        progress.update()
    progress.close()
    assert threading.active_count() == threads
    assert "rows" in out.getvalue() and "50/50" in out.getvalue()


def test_true_makes_a_bar_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress(True, 3, "work")
    assert progress is not None
    progress.update(3)
    progress.close()
    assert "3/3" in capsys.readouterr().err


def test_without_tqdm_a_plain_bar_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.std", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    progress = make_progress({"leave": True}, 4, "plain")
    assert progress is not None
    progress.update(4)
    progress.close()
    err = capsys.readouterr().err
    assert "plain: 100%" in err and "4/4" in err and err.endswith("\n")

    out = io.StringIO()
    bar = PlainBar(file=out)
    bar.update(2)
    bar.close()
    assert "2 " in out.getvalue()
    out.close()
    bar.update(1)  # a closed file is no reason to fail


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="progress must be True, a dict"):
        make_progress(5, 3)


def test_tqdm_is_imported_late() -> None:
    code = "import sys, trireme._progress; assert 'tqdm' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
        check=True,
        timeout=60,
    )


def quarter_second(x: int) -> int:
    time.sleep(0.25 if x == 0 else 0.001)
    return -x


@pytest.mark.parametrize("way", WAYS)
def test_a_map_in_the_background_tells_of_its_progress(way: str) -> None:
    calls: list[tuple[int, Any]] = []
    with open_pool(way) as pool:
        result = pool.map_async(
            quarter_second, range(50), chunk=1, progress=lambda *told: calls.append(told)
        )
        assert result.get(60) == [-x for x in range(50)]
        assert calls[-1] == (50, 50) and calls == sorted(calls)
        assert len(calls) > 1 or way == "serial"
        told: list[Any] = []
        bar = io.StringIO()
        result = pool.starmap_async(
            divmod, [(7, 2)] * 9, progress={"file": bar, "mininterval": 0}, callback=told.append
        )
        # Nobody waits, and yet it ends: the bar first.
        until = time.monotonic() + 60
        while not told and time.monotonic() < until:
            time.sleep(0.01)
        assert told == [[(3, 1)] * 9] and "9/9" in bar.getvalue()
        with pytest.raises(TypeError, match="progress must be"):
            pool.map_async(abs, [1], progress=5)


@pytest.mark.parametrize("way", ["forkserver", "thread"])
def test_what_progress_raises_in_the_background_is_the_results(way: str) -> None:
    def refuse(done: int, total: int) -> None:
        raise LookupError(f"at {done}")

    with open_pool(way) as pool:
        result = pool.map_async(abs, range(10), progress=refuse)
        with pytest.raises(LookupError, match="at "):
            result.get(60)
        assert result.ready() and not result.successful()
        assert pool.map(abs, [-1]) == [1]


def test_a_serial_pool_and_its_futures_are_instances_of_the_public_classes() -> None:
    with tri.Pool(kind="serial") as pool:
        assert isinstance(pool, tri.Pool)
        assert isinstance(pool.submit(abs, -1), tri.Future)
    assert not isinstance(5, tri.Pool)
