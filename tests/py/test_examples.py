# SPDX-License-Identifier: BSD-3-Clause
"""Every example runs as its reader would run it: as a script, in an empty folder.

So does each figure of the bench, in its quick form on Trireme alone, and on the originals where it
compares with these: it checks every value.
"""
from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "examples" / "python"
C = ROOT / "examples" / "c"
CITIES = ROOT / "examples" / "data" / "cities.csv"
FARTHEST = {"Quito", "Pekanbaru", "19983 km"}


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    return pytest.mark.skipif(bool(missing), reason="not installed: " + ", ".join(missing))


def run(command: list[object], folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run, demand success, and give back what was printed."""
    done = subprocess.run([str(c) for c in command], cwd=folder, env=os.environ | extra,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def example(name: str, folder: Path, *args: object) -> str:
    done = run([sys.executable, "-W", "error", PYTHON / name, *args], folder)
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(("number", "answer"), [
    (1_000_000_016_531, "is prime"), (1_000_000_016_533, "is not prime"), (2, "is prime"),
    (3, "is prime"), (9, "is not prime"), (1, "is not prime"), (0, "is not prime")])
def test_prime_check_knows_primes(tmp_path: Path, number: int, answer: str) -> None:
    assert example("prime_check.py", tmp_path, number) == f"{number} {answer}\n"


def test_city_distances_finds_the_farthest_pair(tmp_path: Path) -> None:
    out = example("city_distances.py", tmp_path)
    assert all(word in out for word in FARTHEST), out


def test_no_guard_runs_the_main_program_once(tmp_path: Path) -> None:
    assert example("no_guard.py", tmp_path) == (
        "this line is printed once\n"
        "forkserver [100, 101, 102, 103, 104] [0, 1, 4, 9, 16]\n"
        "fork [200, 201, 202, 203, 204] [0, 1, 4, 9, 16]\n"
        "spawn [300, 301, 302, 303, 304] [0, 1, 4, 9, 16]\n")


def test_progress_reports_the_end_and_streams(tmp_path: Path) -> None:
    assert example("progress.py", tmp_path) == "40 of 40\n10000000019 is prime\n"


@needs("numpy")
def test_share_is_read_in_place(tmp_path: Path) -> None:
    assert example("share.py", tmp_path) == "same means: True\n"


def test_timeout_retry_costs_only_the_failed(tmp_path: Path) -> None:
    lines = example("timeout_retry.py", tmp_path).splitlines()
    assert lines[0] == "stopped after its time limit"
    assert lines[1].startswith("lost: ")
    assert lines[2:] == ["done at the second try", "and the pool works: [1, 2, 3]"]


def test_tour_agrees_everywhere_and_writes_one_page(tmp_path: Path) -> None:
    done = run([sys.executable, PYTHON / "tour.py", "--quick", "--out", tmp_path], tmp_path)
    assert " NO\n" not in done.stdout
    assert done.stdout.count(" yes\n") >= 5
    page = (tmp_path / "tour.html").read_text(encoding="utf-8")
    assert "<table>" in page and ("data:image/png;base64," in page or "<svg" in page)
    assert "http://" not in page and "https://" not in page


def test_tour_needs_neither_numpy_nor_matplotlib(tmp_path: Path) -> None:
    """Stand-ins that fail to import hide the real ones; their rows say so, the rest is run."""
    for name in ("numpy", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is hidden')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run([sys.executable, PYTHON / "tour.py", "--quick", "--out", tmp_path], tmp_path,
               PYTHONPATH=path)
    assert done.stdout.count("skipped: numpy is not installed") == 2
    assert " NO\n" not in done.stdout
    assert "<svg" in (tmp_path / "tour.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------ the bench


@pytest.mark.parametrize("figure", [
    "latency_busy", "latency_idle", "futures", "map_squares", "startup", "memory",
    pytest.param("arrays", marks=needs("numpy")),
    pytest.param("random_squares", marks=needs("numpy"))])
def test_bench_measures_trireme(tmp_path: Path, figure: str) -> None:
    out = tmp_path / "out.json"
    run([sys.executable, ROOT / "bench" / "child.py", figure, "trireme", 2, 1, out], tmp_path)
    answer = json.loads(out.read_text())
    assert answer.get("numbers"), answer.get("traceback")
    assert all(value >= 0 for value in answer["numbers"].values())


@pytest.mark.parametrize("figure", [
    "map", "apply", "imap", "submit", "executor_map", "queue", "pingpong", "locks", "events",
    "pool_start", "executor_start", pytest.param("queue_arrays", marks=needs("numpy"))])
def test_bench_measures_facades_and_originals(tmp_path: Path, figure: str) -> None:
    numbers = []
    for system in ("trireme facade", "original"):
        out = tmp_path / "out.json"
        out.unlink(missing_ok=True)
        run([sys.executable, ROOT / "bench" / "child.py", f"facade_{figure}", system, 2, 1, out],
            tmp_path)
        answer = json.loads(out.read_text())
        assert answer.get("numbers"), answer.get("traceback")
        assert all(value > 0 for value in answer["numbers"].values())
        numbers.append(answer["numbers"])
    assert numbers[0].keys() == numbers[1].keys()


def test_bench_tells_what_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are the median of those within a round, and no slower row escapes the list."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    facades = importlib.import_module("facades")

    def result(number: str, *runs: float) -> dict[str, object]:
        median = sorted(runs)[len(runs) // 2]
        return {"numbers": {number: median}, "runs": [{number: value} for value in runs]}

    def of(number: str, mine: list[float], theirs: list[float]) -> dict[str, object]:
        return {"trireme facade": result(number, *mine), "original": result(number, *theirs)}

    rows = facades.comparisons({
        "facade_executor_map": of("per_s", [300.0, 3000.0, 610.0], [10.0, 20.0, 20.0]),
        "facade_submit": of("per_s", [99.0], [10.0]),
        "facade_queue": {"trireme facade": result("ints_per_s", 5.0), "faster-fifo": {"error": "?"},
                         "original": {"error": "?"}},
        "facade_pool_start": of("again_ms", [2.0, 2.0, 2.0], [1.0, 1.9, 9.0])})
    told = {(row["measured"], row["against"]): (row["ratio"], row["reached"]) for row in rows}
    assert told["executor: map(chunksize=1) of 100,000", "original"] == (30.5, "yes")
    assert told["executor: submit of 20,000, then result", "original"] == (9.9, "**no**")
    assert told["Queue: ints", "faster-fifo"] == (None, "not measured")
    assert told["Pool, fork: start to first result, again", "original"] == (0.95, "yes")
    slow = facades.comparisons({"facade_pool_start": of("again_ms", [2.0], [1.8])})
    assert facades.table(slow)[-1].endswith(": Pool, fork: start to first result, again (0.9x).")
    assert facades.table(rows)[-1].endswith(": nothing that was measured.")


# ------------------------------------------------------------------ C, outside the tree


@pytest.fixture(scope="module")
def c_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C examples, compiled away from the tree with what pkg-config says of an installation.

    TRIREME_PREFIX names the installation; otherwise the tree's build folder is installed into a
    temporary place.
    """
    folder = tmp_path_factory.mktemp("c")
    compiler = os.environ.get("CC") or shutil.which("cc")
    if not compiler or not shutil.which("pkg-config"):
        pytest.skip("no C compiler or no pkg-config")
    prefix, env = os.environ.get("TRIREME_PREFIX"), dict(os.environ)
    if prefix:
        root = Path(prefix)
    else:
        if not (ROOT / "build" / "build.ninja").exists() or not shutil.which("meson"):
            pytest.skip("TRIREME_PREFIX is not set and there is no build folder to install")
        root = folder / "root"
        done = subprocess.run(["meson", "install", "-C", ROOT / "build", "--no-rebuild", "--quiet",
                               "--destdir", root], capture_output=True, text=True)
        if done.returncode:
            pytest.skip("the build folder is not complete: " + done.stderr.strip()[-200:])
        env["PKG_CONFIG_SYSROOT_DIR"] = str(root)
    found = sorted(root.rglob("trireme.pc"))
    if not found:
        pytest.skip(f"no trireme.pc under {root}")
    env["PKG_CONFIG_PATH"] = str(found[0].parent)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "trireme"], env=env, check=True,
                           capture_output=True, text=True).stdout.split()
    for source in sorted(C.glob("*.c")):
        run([compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", source, "-o",
             folder / source.stem, *flags, f"-Wl,-rpath,{found[0].parents[1]}", "-lm"], folder)
    return folder


@pytest.mark.parametrize("source", sorted(C.glob("*.c")), ids=lambda p: p.name)
def test_c_examples_stay_short(source: Path) -> None:
    assert len(source.read_text().splitlines()) < 60


@pytest.mark.parametrize(("args", "answer"), [
    ([489133282872437279, 2], "489133282872437279 is prime\n"),
    ([489133282872437277, 2], "489133282872437277 is not prime: 3 divides it\n"),
    ([9, 1], "9 is not prime: 3 divides it\n"), ([2], "2 is prime\n"), ([1], "1 is not prime\n")])
def test_c_prime_check(c_examples: Path, args: list[int], answer: str) -> None:
    assert run([c_examples / "prime_check", *args], c_examples).stdout == answer


def test_c_city_distances(c_examples: Path) -> None:
    out = run([c_examples / "city_distances", CITIES], c_examples).stdout
    assert all(word in out for word in FARTHEST), out


def test_c_random_squares(c_examples: Path) -> None:
    out = run([c_examples / "random_squares", 20_000, 2], c_examples).stdout
    assert out == "20000 seeds, sum of squares 570239: done\n"


@needs("numpy")
def test_c_random_squares_are_those_of_numpy(c_examples: Path) -> None:
    import numpy as np

    total = 0
    for seed in range(500):
        np.random.seed(seed)
        total += int(np.random.randint(0, 10)) ** 2
    out = run([c_examples / "random_squares", 500, 2], c_examples).stdout
    assert out == f"500 seeds, sum of squares {total}: done\n"
