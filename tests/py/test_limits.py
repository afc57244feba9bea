# SPDX-License-Identifier: BSD-3-Clause
"""Workers keep their BLAS and OpenMP libraries to their share; the user's own limits win."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from trireme import _limits
from trireme._limits import thread_env


def test_all_variables_are_given_when_none_is_set() -> None:
    assert thread_env(3, {}) == {
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "BLIS_NUM_THREADS": "3",
        "VECLIB_MAXIMUM_THREADS": "3",
        "NUMBA_NUM_THREADS": "3",
        "NUMEXPR_NUM_THREADS": "3",
    }
    assert set(thread_env(0, {}).values()) == {"1"}


def test_what_the_user_set_wins_also_through_the_fallback() -> None:
    given = thread_env(1, {"MKL_NUM_THREADS": "8"})
    assert "MKL_NUM_THREADS" not in given and given["OPENBLAS_NUM_THREADS"] == "1"
    given = thread_env(1, {"OMP_NUM_THREADS": "4"})
    assert set(given) == {"VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS"}


def test_libraries_are_recognised_by_file_name() -> None:
    maps = (
        b"7f00-7f01 r-xp 0 08:01 1 /lib/libc.so.6\n"
        b"7f02-7f03 r-xp 0 08:01 2 /v/numpy.libs/libscipy_openblas64_-ff651d7f.so\n"
        b"7f03-7f04 r--p 0 08:01 2 /v/numpy.libs/libscipy_openblas64_-ff651d7f.so\n"
        b"7f05-7f06 r-xp 0 08:01 3 /usr/lib/libgomp.so.1.0.0\n"
        b"7f07-7f08 rw-p 0 00:00 0 [heap]\n"
        b"7f09-7f0a r-xp 0 08:01 4 /home/openblas/other.so\n"
        b"7f0b-7f0c r--p 0 08:01 5 /data/openblas-results.csv\n"
    )
    found = _limits._loaded_libraries(maps)
    assert [(path.rpartition("/")[2], variable) for path, variable, _ in found] == [
        ("libscipy_openblas64_-ff651d7f.so", "OPENBLAS_NUM_THREADS"),
        ("libgomp.so.1.0.0", "OMP_NUM_THREADS"),
    ]


GET_THREADS = """
import ctypes, json, os, sys
import numpy
from trireme import _limits
def threads():
    with open("/proc/self/maps", "rb") as f:
        for path, _, names in _limits._loaded_libraries(f.read()):
            lib = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            for name in names:
                get = getattr(lib, name.replace("_set_", "_get_"), None)
                if get is not None:
                    return get()
    return None
def set_threads(n):
    _limits.limit_loaded(n, {})
"""


def run_with_numpy(body: str, **env: str) -> object:
    pytest.importorskip("numpy")
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    clean["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", GET_THREADS + body + "\nprint(json.dumps(result))"],
        capture_output=True,
        text=True,
        env={**clean, **env},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_loaded_blas_is_limited() -> None:
    before, one, after = run_with_numpy(  # type: ignore[misc]
        "before = threads(); set_threads(2); two = threads(); set_threads(1)\n"
        "result = [before, two, threads()]"
    )
    if before is None:
        pytest.skip("this numpy has no BLAS that we know")
    assert (one, after) == (2, 1)


def test_apply_covers_what_is_loaded_and_what_will_be() -> None:
    got, omp = run_with_numpy(  # type: ignore[misc]
        "set_threads(2); _limits.apply(1); result = [threads(), os.environ['OMP_NUM_THREADS']]"
    )
    assert got in (1, None) and omp == "1"


def test_apply_leaves_the_users_limit() -> None:
    got, omp = run_with_numpy(  # type: ignore[misc]
        "set_threads(2); _limits.apply(1); result = [threads(), os.environ['OMP_NUM_THREADS']]",
        OMP_NUM_THREADS="2",
    )
    assert got in (2, None) and omp == "2"


def test_nothing_loaded_costs_no_import() -> None:
    code = (
        "import sys; from trireme import _limits; assert _limits.limit_loaded(1) == 0;"
        "assert 'ctypes' not in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)


def test_a_system_without_proc_is_no_hindrance() -> None:
    before, after = run_with_numpy(  # type: ignore[misc]
        "import builtins; set_threads(2); before = threads(); keep = builtins.open\n"
        "def refuse(*_, **__): raise FileNotFoundError\n"
        "_limits._found = b'', []; builtins.open = refuse; set_threads(1); builtins.open = keep\n"
        "result = [before, threads()]"
    )
    if before is None:
        pytest.skip("this numpy has no BLAS that we know")
    assert (before, after) == (2, 1)


@pytest.mark.parametrize("given", [1, 2])
def test_a_forked_worker_is_limited_without_threads_of_its_blas(given: int) -> None:
    # To tell OpenBLAS in a fork how many threads to use would start them all.
    limit, tasks, product, owner = run_with_numpy(  # type: ignore[misc]
        f"import trireme as tri\nset_threads(2)\n"
        "def task():\n"
        "    limit, tasks = threads(), len(os.listdir('/proc/self/task'))\n"
        "    return limit, tasks, float((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum())\n"
        f"with tri.Pool(2, start='fork', threads_per_worker={given}) as pool:\n"
        "    result = [*pool.submit(task).result(), threads()]"
    )
    if limit is None:
        pytest.skip("this numpy has no BLAS that we know")
    assert (limit, tasks, product, owner) == (given, 1, 300.0**3, 2)


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("users", [{}, {"OMP_NUM_THREADS": "1"}, {"MKL_NUM_THREADS": "2"}])
def test_workers_and_their_children_have_the_owners_variables_and_the_limits(
    start: str, users: dict[str, str]
) -> None:
    # Pools before and after the owner changed its environment, with a fork server that has the old.
    body = f"""
import trireme as tri
def variables():
    child = subprocess.run(["env", "-0"], capture_output=True, text=True).stdout
    return dict(os.environ), dict(line.split("=", 1) for line in child.split("\\0") if line)
result = []
for change in ({{}}, {{"MINE": "1"}}, {{"MINE": None, "NUMBA_NUM_THREADS": "5"}}):
    for name, value in change.items():
        os.environ.pop(name) if value is None else os.environ.update({{name: value}})
    for threads in (1, 3, 1):
        with tri.Pool(1, start={start!r}, threads_per_worker=threads) as pool:
            seen = pool.submit(variables).result()
            assert pool.submit(variables).result() == seen
        expected = {{**os.environ, **_limits.thread_env(threads)}}
        for got in seen:
            got.pop("_", None), expected.pop("_", None)
            if got != expected:
                result.append([threads, sorted(got.items() ^ expected.items())])
"""
    code = "import json, os, subprocess; from trireme import _limits\n" + body
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    clean["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code + "print(json.dumps(result))"],
        capture_output=True,
        text=True,
        env={**clean, **users},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
