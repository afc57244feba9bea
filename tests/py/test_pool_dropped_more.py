# SPDX-License-Identifier: BSD-3-Clause
"""Pools that end where nobody expects it: in cycles, in their own threads, while others ask."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from typing import Any

import pytest
import trireme as tri
from conftest import open_pool, pids_of, until
from faultlib import alive
from tasklib import nap, square

# ------------------------------------------------------------------ cycles


def gone_after(owner: list[Any]) -> None:
    """Drop *owner*'s one item, which has a pool: the collector must find that."""
    gone = weakref.ref(owner[0].pool)
    owner.clear()

    def collected() -> bool:
        gc.collect()
        return gone() is None

    until(collected)


def test_a_pool_goes_with_the_object_whose_method_sets_up_its_threads() -> None:
    class Owner:
        def __init__(self) -> None:
            self.pool = open_pool("thread", initializer=self.set_up)

        def set_up(self) -> None:
            pass

    owner = Owner()
    assert owner.pool.submit(square, 3).result(20) == 9
    owners = [owner]
    del owner
    gone_after(owners)


def test_a_pool_goes_with_the_object_whose_failed_setup_it_remembers() -> None:
    class Owner:
        def __init__(self) -> None:
            self.pool = open_pool("thread", initializer=self.set_up)

        def set_up(self) -> None:
            raise KeyError("setup")

    owner = Owner()
    with pytest.raises(KeyError):
        owner.pool.submit(square, 3).result(20)
    owners = [owner]
    del owner
    gone_after(owners)


@pytest.mark.parametrize("kept", [False, True])
def test_a_pool_goes_with_the_object_whose_method_it_has_run(kept: bool) -> None:
    class Owner:
        def __init__(self) -> None:
            self.pool = open_pool("thread")
            self.ran = threading.Event()

        def run(self) -> None:
            self.ran.set()

    owner = Owner()
    future = owner.pool.submit(owner.run)  # whose result nobody takes
    if kept:
        owner.future = future  # type: ignore[attr-defined]
    assert owner.ran.wait(20)
    owners = [owner]
    del owner, future
    gone_after(owners)


def test_a_pool_goes_with_a_result_that_nobody_has_read() -> None:
    pool = open_pool("fork")
    pool.owner = pool
    pool.last = pool.submit(dict, kind=object)  # arrives as a pickle
    while pool._pending():
        pool._step(0.1)
    pids, gone = pids_of(pool), weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    until(lambda: not any(alive(pid) for pid in pids))


class Stops:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_an_iterator_that_could_not_be_made_does_not_keep_the_pool() -> None:
    pool = open_pool("fork")
    pids = pids_of(pool)

    def items() -> Any:
        yield from (0.3, 0.3)
        until(lambda: pool.stats()["workers_alive"] == 2 and pool._pending() == 2)
        time.sleep(0.1)  # they are to have started: what has not is cancelled
        yield Stops()

    with pytest.raises(KeyboardInterrupt):
        pool.imap(nap, items(), chunk=1)
    gone = weakref.ref(pool)
    del pool, items
    until(lambda: gone() is None)
    until(lambda: not any(alive(pid) for pid in pids))


# ------------------------------------------------------------------ its own threads


def test_a_pool_collected_by_its_own_thread(run_script: Any) -> None:
    out, err = run_script("""
        import gc, threading, time, weakref, trireme as tri
        gc.disable()
        class Owner:
            pass
        def initializer(ready, gone):
            assert ready.wait(20)
            while gone[0]() is not None and time.monotonic() < end:
                gc.collect()  # nothing happens where another thread is at it
                time.sleep(0.001)
        end = time.monotonic() + 20
        for _ in range(10):
            ready, gone = threading.Event(), []
            owner = Owner()
            owner.itself = owner
            owner.pool = tri.Pool(
                2, kind="thread", initializer=initializer, initargs=(ready, gone)
            )
            gone.append(weakref.ref(owner))
            del owner
            ready.set()
            while gone[0]() is not None:
                assert time.monotonic() < end
                time.sleep(0.001)
        while any(t.name == "trireme-watch" for t in threading.enumerate()):
            assert time.monotonic() < end
            time.sleep(0.001)
        print("done")
    """)
    assert (out.split(), err) == (["done"], "")


def test_a_task_may_end_the_pool_whose_thread_runs_it() -> None:
    ended: list[bool] = []

    class Slow:
        def __del__(self) -> None:
            time.sleep(0.2)
            ended.append(True)

    of_thread = threading.local()
    pool = open_pool("thread", 1)

    def end() -> None:
        of_thread.slow = Slow()  # it goes with the thread
        pool.terminate()

    assert pool.submit(end).result(20) is None
    until(lambda: pool._joined)
    assert ended == [True]  # the memory that the thread works in may be freed now


def test_but_not_wait_for_it() -> None:
    with open_pool("thread") as pool:

        def wait() -> None:
            pool.close()
            pool.join()

        with pytest.raises(RuntimeError, match="cannot wait"):
            pool.submit(wait).result(20)


def test_a_subclass_that_forgets_to_let_go_costs_its_futures_only(run_script: Any) -> None:
    out, err = run_script("""
        import threading, time, trireme as tri
        class Mine(tri.Pool):
            def __del__(self):
                pass
        pool = Mine(2, kind="thread")
        started = threading.Event()
        def work():
            started.set()
            time.sleep(0.5)
        future = pool.submit(work)
        assert started.wait(20)
        pools = [pool]
        del pool
        dropping = threading.Thread(target=pools.clear)
        dropping.start()
        end = time.monotonic() + 20
        while pools and time.monotonic() < end:
            pass
        for ask in (lambda: future.result(20), future.done, future.cancel, lambda: repr(future),
                    lambda: future.add_done_callback(print)):
            try:
                ask()
            except RuntimeError as exc:
                print(exc)
        dropping.join()
        print(repr(future.exception(20)))
    """)
    said = "the pool was freed before the task had ended"
    assert out.splitlines() == [said, f"RuntimeError({said!r})"]
    assert err == ""


# ------------------------------------------------------------------ in the middle of something


def test_a_fork_does_not_wait_for_ever_for_a_callback_that_waits_for_it(run_script: Any) -> None:
    out, err = run_script("""
        import os, threading, time, trireme as tri, warnings
        warnings.simplefilter("ignore")  # from 3.12 on of threads at a fork, and there are some
        pool = tri.Pool(1, kind="thread")
        lock, inside = threading.Lock(), threading.Event()
        def callback(_):
            inside.set()
            with lock:
                print("called", flush=True)
        with lock:
            pool.submit(time.sleep, 0.01).add_done_callback(callback)
            assert inside.wait(20)
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            print("forked", flush=True)
        pool.close()
        pool.join()
    """)
    assert (out.split(), err) == (["forked", "called"], "")


def test_pools_may_be_opened_while_others_are_walked_over() -> None:
    """At a fork or the program's end; other threads open some, and collections put some back."""
    from trireme import _attend

    with open_pool("thread") as first:
        walk = iter(_attend._open_pools)
        seen = [next(walk)]
        with open_pool("thread"):
            seen += walk
        assert first in seen


def test_a_dropped_executor_takes_no_lock_of_the_runtimes() -> None:
    """A collection may begin anywhere, also in a thread that the holder of the lock waits for."""
    import trireme.futures as tf
    from trireme import _attend

    executor: Any = tf.ProcessPoolExecutor(1)
    assert executor.submit(square, 3).result(20) == 9
    pids = list(executor._processes)
    executor.itself = executor
    done = threading.Event()

    def collect() -> None:
        gc.collect()
        done.set()

    del executor
    with _attend._serving:
        threading.Thread(target=collect, daemon=True).start()
        assert done.wait(20)
    until(lambda: not any(alive(pid) for pid in pids))


# ------------------------------------------------------------------ multiprocessing's


def test_callbacks_of_a_dropped_pool_leave_no_thread(monkeypatch: Any) -> None:
    import trireme.multiprocessing as mp
    from trireme.multiprocessing import _results

    monkeypatch.setattr(_results, "_LINGER", 0.1)
    told: list[int] = []
    pool = mp.get_context("fork").Pool(2)
    for _ in range(3):
        pool.apply_async(square, (3,), callback=told.append).wait(20)
        until(lambda: not [t for t in threading.enumerate() if t.name == "trireme-callbacks"])
    pool.apply_async(square, (3,), callback=told.append)
    with pytest.warns(ResourceWarning):
        del pool
    until(lambda: told == [9] * 4)
    until(lambda: not [t for t in threading.enumerate() if t.name == "trireme-callbacks"])


# ------------------------------------------------------------------ one result, several readers


class Slow:
    """Takes its time to be unpickled, and lets other threads run meanwhile."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __reduce__(self) -> Any:
        return nap, (self.seconds,)


class SlowError(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        nap(seconds if os.getpid() == self.owner else 0)

    owner = os.getpid()


def raise_slowly(seconds: float) -> None:
    raise SlowError(seconds)


def read(future: tri.Future, into: list[Any]) -> None:
    try:
        into.append(future.result(20))
    except BaseException as exc:
        into.append(exc)


@pytest.mark.parametrize("fails", [False, True])
def test_threads_that_ask_while_another_one_unpickles_wait_for_it(fails: bool) -> None:
    with open_pool("fork") as pool:
        future = pool.submit(raise_slowly if fails else Slow, 0.3)
        while pool._pending():
            pool._step(0.1)
        got: list[Any] = []
        threads = [threading.Thread(target=read, args=(future, got)) for _ in range(4)]
        for thread in threads:
            thread.start()
        if not fails:
            time.sleep(0.05)
            with pytest.raises(TimeoutError):
                future.result(0.01)
        seen = future._exception if fails else future._result  # type: ignore[attr-defined]
        for thread in threads:
            thread.join(20)
    if fails:
        assert isinstance(seen, SlowError)
        assert got == [seen] * 4
    else:
        assert (seen, got) == (0.3, [0.3] * 4)


asked: list[tri.Future] = []


class Asks:
    def __reduce__(self) -> Any:
        return ask, ()


def ask() -> Any:
    return asked[0].result(20)


def test_a_result_that_asks_for_itself_is_told_so() -> None:
    with open_pool("fork") as pool:
        asked[:] = [pool.submit(Asks)]
        with pytest.raises(RuntimeError, match="asks for it"):
            asked[0].result(20)
    asked.clear()


def test_what_could_not_be_watched_is_watched_by_the_next_who_asks(monkeypatch: Any) -> None:
    with open_pool("fork") as pool:
        future = pool.submit(nap, 0.3)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="no thread"):
                future.add_done_callback(lambda _: None)
        pool._server = None
        told = threading.Event()
        future.add_done_callback(lambda _: told.set())
        assert told.wait(20)


def refuse(_: Any) -> None:
    raise RuntimeError("no thread can be started")
