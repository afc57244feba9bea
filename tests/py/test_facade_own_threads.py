# SPDX-License-Identifier: BSD-3-Clause
"""Executors of threads that a program makes itself, by overriding what the original calls.

The programs run by Python and through the doors, and must say the same.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor
from concurrent.futures.thread import ThreadPoolExecutor as Original
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from doorslib import both, program, run, write  # noqa: F401
from trireme.futures import ThreadPoolExecutor

# As ansible-core has it: the original's own function, with another module threading.
DAEMONS = """
    import concurrent.futures, threading, time, types

    class Daemon(threading.Thread):
        def __init__(self, *args, daemon=None, **kwargs):
            super().__init__(*args, daemon=True, **kwargs)

        def join(self, timeout=None):
            pass

    names = types.SimpleNamespace(**{**vars(threading), "Thread": Daemon})

    class Daemons(concurrent.futures.ThreadPoolExecutor):
        count = concurrent.futures.ThreadPoolExecutor._adjust_thread_count
        _adjust_thread_count = types.FunctionType(
            count.__code__, {**count.__globals__, "threading": names}, count.__name__,
            count.__defaults__, count.__closure__,
        )

    class More(Daemons):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.submitted = []

        def submit(self, fn, /, *args, **kwargs):
            self.submitted.append(fn)
            return super().submit(fn, *args, **kwargs)

        def shutdown(self, wait=True, **kwargs):
            print("shutdown", len(self._threads))
            concurrent.futures.ThreadPoolExecutor.shutdown(self, wait, **kwargs)

    if __name__ == "__main__":
        with More(2, "named") as executor:
            print(list(executor.map(abs, [-1, -2])), executor.submit(str.upper, "x").result())
            print(executor.submit(lambda: threading.current_thread().daemon).result())
            print(len(executor.submitted), executor._work_queue.empty(), type(executor).__name__)
            print(isinstance(executor, More))
            print(isinstance(executor, concurrent.futures.ThreadPoolExecutor))
            print({thread.name.split("_")[0] for thread in executor._threads})
            print(concurrent.futures.ThreadPoolExecutor.submit(executor, pow, 2, 5).result())
        try:
            executor.submit(abs, 1)
        except RuntimeError as exc:
            print(exc)
        Daemons().submit(time.sleep, 1000)  # holds up nothing
        print("end of main", flush=True)
"""


def test_threads_that_the_program_makes_are_used(program: Any) -> None:  # noqa: F811
    assert "end of main" in program(DAEMONS)


QUEUE = """
    import queue
    from concurrent.futures import ThreadPoolExecutor

    class Bounded(ThreadPoolExecutor):
        def __init__(self, workers, size):
            super().__init__(workers, initializer=print, initargs=("begun",))
            self._work_queue = queue.Queue(size)

    if __name__ == "__main__":
        with Bounded(1, 2) as executor:
            print(list(executor.map(abs, range(20), timeout=60)), executor._work_queue.maxsize)
"""


def test_the_report_says_whose_they_are(write: Any, tmp_path: Path) -> None:  # noqa: F811
    write("program.py", QUEUE)
    code, _, said = run("-m", "trireme", "--report", "program.py", cwd=tmp_path)
    assert code == 0 and "left to the originals: ThreadPoolExecutor 1" in said


def test_a_queue_of_the_programs_own_is_used(program: Any) -> None:  # noqa: F811
    program(QUEUE)


def test_a_function_put_into_the_class_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    before = Original._adjust_thread_count  # type: ignore[attr-defined]

    def count(self: Any) -> None:
        before(self)
        made.append(len(self._threads))

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(abs, -1).result(60) == 1
    for cls in ThreadPoolExecutor, Original:
        with monkeypatch.context() as patch:
            patch.setattr(cls, "_adjust_thread_count", count, raising=False)
            with ThreadPoolExecutor(1) as executor:
                assert executor.submit(abs, -2).result(60) == 2
                assert isinstance(executor, ThreadPoolExecutor)
                assert isinstance(executor, Original) and isinstance(executor, Executor)
        assert made == [1]
        made.clear()
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(abs, -3).result(60) == 3
        assert not made and type(executor) is ThreadPoolExecutor


def test_its_threads_know_who_they_are() -> None:
    def me() -> tuple[str, int | None, int | None, bool]:
        time.sleep(0.05)
        thread = threading.current_thread()
        return thread.name, thread.ident, thread.native_id, thread.daemon

    with ThreadPoolExecutor(2, "them") as executor:
        seen = {future.result(60) for future in [executor.submit(me) for _ in range(4)]}
        threads: Any = executor._threads
        assert seen <= {(t.name, t.ident, t.native_id, t.daemon) for t in threads}
        assert len(threads) == 2 and all(thread.is_alive() for thread in threads)
    assert not any(thread.is_alive() for thread in threads)


GREEN = """
    import sys, threading, types

    started = []
    before = threading.Thread.start

    def start(self):
        started.append(type(self).__name__)
        before(self)

    def has_patched(name):
        return name == sys.argv[3]

    package, _, name = sys.argv[1].rpartition(".")
    sys.modules[package] = types.ModuleType(package)
    sys.modules[sys.argv[1]] = types.ModuleType(sys.argv[1])
    setattr(sys.modules[sys.argv[1]], sys.argv[2], has_patched)
    threading.Thread.start = start

    from concurrent.futures import ThreadPoolExecutor, as_completed, wait
    from multiprocessing import dummy
    from multiprocessing.pool import ThreadPool

    class Own(ThreadPoolExecutor):
        pass

    if __name__ == "__main__":
        for make in ThreadPoolExecutor, Own:
            with make(2) as executor:
                futures = [executor.submit(abs, -i) for i in range(3)]
                print([len(done) for done in wait(futures)], len(list(as_completed(futures))))
                print(list(executor.map(abs, range(3))), isinstance(executor, make))
        for make in ThreadPool, dummy.Pool:
            with make(1, print, ("begun",)) as pool:
                print(pool.map(abs, range(-3, 0)), pool.apply(abs, (-1,)))
        print(len(started) > 8, sorted(set(started)))
"""


@pytest.mark.parametrize(
    "words",
    [
        ("gevent.monkey", "is_module_patched", "threading"),
        ("eventlet.patcher", "is_monkey_patched", "thread"),
    ],
)
def test_where_threads_are_green_they_are_pythons(
    program: Any,  # noqa: F811
    words: tuple[str, ...],
) -> None:
    assert "True ['DummyProcess', 'Thread']" in program(GREEN, *words)


@pytest.mark.skipif(not find_spec("gevent"), reason="gevent is not installed")
def test_other_greenlets_run_while_one_waits(program: Any) -> None:  # noqa: F811
    source = """
        from gevent import monkey

        monkey.patch_all()
        import gevent, threading
        from concurrent.futures import ThreadPoolExecutor
        from multiprocessing.pool import ThreadPool

        for make in ThreadPoolExecutor, ThreadPool:
            event = threading.Event()
            gevent.spawn_later(0.1, event.set)
            with make(1) as pool:
                print(list(pool.map(event.wait, [60])))
    """
    assert program(source) == "[True]\n[True]\n"
