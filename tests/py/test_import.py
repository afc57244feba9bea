# SPDX-License-Identifier: BSD-3-Clause
"""Importing the package starts nothing, opens nothing and costs little."""

from __future__ import annotations

from typing import Any

import pytest

STATE = """
import os, threading, sys
def state():
    tasks = sorted(os.listdir("/proc/self/task"))
    fds = sorted(os.listdir("/proc/self/fd"))
    with open("/proc/self/task/%d/children" % os.getpid()) as f:
        children = f.read()
    return len(tasks), len(fds), children, threading.active_count()
"""


@pytest.mark.parametrize(
    "names", ["", "tri.Pool", "tri.Future, tri.share, tri.map, tri.WorkerLost, tri.cpu_count"]
)
def test_import_starts_no_thread_no_process_and_opens_no_file(run_script: Any, names: str) -> None:
    out, err = run_script(
        STATE
        + f"""
import concurrent.futures, signal
before = state(), [signal.getsignal(s) for s in (2, 15, 17)]
import trireme as tri
{names}
print(before == (state(), [signal.getsignal(s) for s in (2, 15, 17)]))
"""
    )
    assert out == "True\n"
    assert err == ""


def test_import_brings_in_little_and_nothing_heavy(run_script: Any) -> None:
    out, _ = run_script(  # how long it takes is measured in bench/
        """
        import sys
        import threading  # and what that needs
        there = set(sys.modules)
        import trireme as tri
        tri.Pool
        heavy = {"asyncio", "multiprocessing", "numpy", "cloudpickle", "tqdm", "subprocess",
                 "ctypes", "socket", "inspect", "typing"}
        new = set(sys.modules) - there
        ours = {name for name in new if name.startswith("trireme")}
        print(sorted(heavy & new), len(ours) < 18 or sorted(ours), len(new) < 40 or sorted(new))
        """
    )
    assert out == "[] True True\n"


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_no_future_is_imported_before_one_is_needed(run_script: Any, start: str) -> None:
    out, err = run_script(
        f"""
        import sys
        import trireme as tri
        import trireme.multiprocessing as mp

        def known():
            return sorted({{"concurrent.futures", "logging"}} & set(sys.modules))

        if __name__ == "__main__":
            seen = []
            pool = mp.get_context({start!r}).Pool(1)
            print(pool.map(abs, [-1]), pool.apply(abs, (-2,)), *pool.imap(abs, [-3]), known())
            native = tri.Pool(1, start={start!r})
            print(native.map(abs, [-5]), "concurrent.futures" in known())
            done = pool.apply_async(abs, (-4,), callback=seen.append)
            failed = pool.apply_async(abs, ("x",), error_callback=seen.append)
            done.wait()
            failed.wait()
            print(seen[0], type(seen[1]).__name__, failed.ready(), "concurrent.futures" in known())
            future = native.submit(abs, -6)
            import concurrent.futures
            print(isinstance(future, concurrent.futures.Future), future.result())
            pool.terminate()
            native.terminate()
        """
    )
    assert err == ""
    before = start == "fork"  # the import is made before the fork, so that nobody makes it twice
    assert out.splitlines() == [
        "[1] 2 3 []",
        f"[5] {before}",  # logging is cloudpickle's
        f"4 TypeError True {before}",
        "True 6",
    ]


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_opening_a_pool_brings_in_nothing_heavy(run_script: Any, start: str) -> None:
    out, _ = run_script(
        f"""
        import sys
        import trireme as tri
        there = set(sys.modules)
        with tri.Pool(2, start={start!r}):
            pass
        heavy = {{"pickle", "re", "inspect", "multiprocessing", "cloudpickle", "subprocess"}}
        print(sorted(heavy & set(sys.modules) - there))
        """
    )
    assert out == "[]\n"


def test_every_public_name_is_there(run_script: Any) -> None:
    out, _ = run_script(
        """
        import trireme as tri
        for name in tri.__all__:
            assert getattr(tri, name).__doc__, name
        assert set(tri.__all__) <= set(dir(tri))
        try:
            tri.nothing
        except AttributeError as exc:
            print(exc)
        """
    )
    assert out == "module 'trireme' has no attribute 'nothing'\n"


def test_every_public_method_has_a_docstring_and_a_signature() -> None:
    import inspect

    import trireme as tri
    from trireme._serial import SerialPool

    for cls in (tri.Pool, tri.Future, tri.Shared, SerialPool):
        for name, value in inspect.getmembers(cls):
            if name.startswith("_") or not callable(value):
                continue
            assert inspect.getdoc(value), (cls, name)
            if name not in ("submit",):
                inspect.signature(value)


def test_what_is_generic_to_type_checkers_is_so_at_run_time() -> None:
    import trireme as tri
    from trireme.multiprocessing.pool import ApplyResult, IMapIterator, MapResult

    with tri.Pool(1, kind="thread") as pool:
        background = type(pool.map_async(abs, [1]))
    for cls in (tri.Future, tri.Shared, background, ApplyResult, MapResult, IMapIterator):
        assert str(cls[int]).endswith(f"{cls.__name__}[int]")


def test_serial_pool_has_every_method_of_a_pool() -> None:
    import trireme as tri
    from trireme._serial import SerialPool

    public = {n for n in dir(tri.Pool) if not n.startswith("_")}
    assert public <= set(dir(SerialPool)), public - set(dir(SerialPool))
    assert isinstance(tri.Pool(kind="serial"), SerialPool)


def test_errors_are_what_they_say() -> None:
    import concurrent.futures.process

    import trireme as tri

    assert issubclass(tri.WorkerLost, concurrent.futures.process.BrokenProcessPool)
    assert issubclass(tri.TaskTimeout, TimeoutError)
    assert issubclass(tri.RemoteError, Exception)
    assert issubclass(tri.Future, concurrent.futures.Future)
