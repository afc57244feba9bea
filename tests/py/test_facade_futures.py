# SPDX-License-Identifier: BSD-3-Clause
"""trireme.futures keeps the contract of concurrent.futures, and the traps of drop-ins are shut."""

from __future__ import annotations

import asyncio
import concurrent.futures as original
import gc
import inspect
import multiprocessing
import os
import sys
import time
import weakref
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.process import _RemoteTraceback as OriginalTraceback
from concurrent.futures.thread import BrokenThreadPool
from pathlib import Path
from typing import Any

import pytest
import trireme as tri
from futureslib import (
    KINDS,
    LONG,
    double,
    fail,
    keywords,
    kill_self,
    lock_then_put,
    open_executor,
    set_state,
    touch,
    try_lock,
    until,
    wait_for_file,
)
from trireme import futures
from trireme.futures import ProcessPoolExecutor, ThreadPoolExecutor, process, thread

pytest_plugins = ("futureslib",)

# ---------------------------------------------------------------------------------------------
# The traps
# ---------------------------------------------------------------------------------------------


def test_trap_a_locks_and_queues_among_initargs_reach_every_worker(start: str) -> None:
    context = multiprocessing.get_context(start)
    lock, queue = context.Lock(), context.Queue()
    with open_executor(start, initializer=set_state, initargs=((lock, queue),)) as e:
        done = [e.submit(lock_then_put, i) for i in range(20)]
        assert sorted(queue.get(timeout=LONG) for _ in done) == list(range(20))
        assert [f.result() for f in done] == [None] * 20


def test_trap_a_a_worker_that_starts_later_gets_them_too(start: str) -> None:
    lock = multiprocessing.get_context(start).Lock()
    with open_executor(start, 1, initializer=set_state, initargs=(lock,), on_crash="isolate") as e:
        assert isinstance(e.submit(kill_self).exception(), tri.WorkerLost)
        assert e.submit(try_lock).result() is True
        assert not lock.acquire(False)


@pytest.mark.parametrize("chunksize", [1, 4])
def test_trap_b_map_calls_submit_once_per_chunk(chunksize: int) -> None:
    with open_executor("fork") as e:
        seen = []
        submit = e.submit

        def counted(fn: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(submit(fn, *args, **kwargs))
            return seen[-1]

        e.submit = counted
        assert list(e.map(double, range(10), chunksize=chunksize)) == [2 * i for i in range(10)]
        assert len(seen) == -(-10 // chunksize)
        assert all(isinstance(f, original.Future) for f in seen)


def test_trap_b_a_subclass_that_overrides_submit_is_asked() -> None:
    class Counting(ProcessPoolExecutor):
        count = 0

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().submit(*args, **kwargs)

    with Counting(1, multiprocessing.get_context("fork")) as e:
        assert list(e.map(double, range(5))) == [0, 2, 4, 6, 8]
        assert e.count == 5


def test_trap_c_wait_and_as_completed_take_futures_of_both_kinds(executor: Any) -> None:
    with original.ThreadPoolExecutor(1) as other:
        mixed = [executor.submit(double, 1), other.submit(double, 2), executor.submit(double, 3)]
        for wait, as_completed in (
            (original.wait, original.as_completed),
            (futures.wait, futures.as_completed),
        ):
            done, pending = wait(mixed, timeout=LONG)
            assert done == set(mixed) and not pending
            assert sorted(f.result() for f in as_completed(mixed, timeout=LONG)) == [2, 4, 6]


def test_trap_c_asyncio_runs_functions_in_it(executor: Any) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, double, i) for i in range(10)]
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [2 * i for i in range(10)]


def test_trap_c_asyncio_takes_the_threads_as_its_default() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))
        return await asyncio.to_thread(double, 4)

    assert asyncio.run(main()) == 8


def test_trap_d_submit_never_waits_for_room_and_keeps_the_order(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    with open_executor("fork", 1) as e:
        first = e.submit(wait_for_file, gate)
        rest = [e.submit(double, i) for i in range(20000)]  # more than a pool's usual slots
        ended: list[int] = []
        for i in (0, 1, 2):
            rest[i].add_done_callback(lambda _, i=i: ended.append(i))
        assert not first.done()
        touch(gate)
        assert [f.result() for f in rest] == [2 * i for i in range(20000)]
        until(lambda: len(ended) == 3)
        assert ended == [0, 1, 2]


def test_trap_e_the_signatures_are_the_originals_plus_keywords() -> None:
    for mine, theirs, extra in (
        (ProcessPoolExecutor, original.ProcessPoolExecutor, {"on_crash", "timeout", "retries"}),
        (ThreadPoolExecutor, original.ThreadPoolExecutor, set()),
    ):
        own = inspect.signature(mine).parameters
        for name, parameter in inspect.signature(theirs).parameters.items():
            if parameter.kind is not parameter.VAR_KEYWORD:
                assert own[name].kind is parameter.kind
                assert own[name].default == parameter.default
        added = set(own) - set(inspect.signature(theirs).parameters)
        assert added == extra
        assert all(own[name].kind is inspect.Parameter.KEYWORD_ONLY for name in added)
        for name in ("map", "shutdown"):
            asked = inspect.signature(getattr(theirs, name)).parameters
            assert set(asked) <= set(inspect.signature(getattr(mine, name)).parameters)


def test_trap_e_keyword_arguments_with_the_names_of_options_are_the_tasks(executor: Any) -> None:
    given = {"timeout": 1, "retries": "two", "priority": None, "fn": 3, "self": 4}
    assert executor.submit(keywords, **given).result() == given


class Refusing:
    """An object whose own method says that it is not to be pickled."""

    def __reduce__(self) -> Any:
        raise KeyError("not I")


def refusing() -> Refusing:
    return Refusing()


def test_trap_f_what_an_object_raises_as_it_is_pickled_is_the_exception(start: str) -> None:
    with open_executor(start) as mine, original.ProcessPoolExecutor(1) as theirs:
        for call in ((double, Refusing()), (refusing,)):
            told = mine.submit(*call).exception()
            if start == "fork":
                asked = theirs.submit(*call).exception()
                assert (type(told), told.args) == (type(asked), asked.args)
                assert type(told.__cause__) is type(asked.__cause__)
            assert type(told) is KeyError and told.args == ("not I",)
            assert 'raise KeyError("not I")' in str(told.__cause__)
        assert mine.submit(double, 2).result() == 4


def test_trap_f_exceptions_and_causes_are_the_originals(start: str) -> None:
    with open_executor(start) as e:
        exc = e.submit(fail).exception()
        assert type(exc) is ValueError and exc.args == ("no 0",)
        assert type(exc.__cause__) is process._RemoteTraceback
        assert "a comment that tracebacks show" in exc.__cause__.tb
        broken = e.submit(kill_self)
        with pytest.raises(BrokenProcessPool) as lost:
            broken.result()
        cause = lost.value.__cause__
        if sys.version_info >= (3, 15):
            assert type(cause) is process._RemoteTraceback
            assert "terminated abruptly with exit code -9" in cause.tb
        else:
            assert cause is None
        with pytest.raises(futures.BrokenExecutor):
            e.submit(double, 1)
    assert process.BrokenProcessPool is BrokenProcessPool
    assert thread.BrokenThreadPool is BrokenThreadPool
    assert futures.TimeoutError is original.TimeoutError
    assert futures.CancelledError is original.CancelledError
    assert process._RemoteTraceback is OriginalTraceback
    assert issubclass(ProcessPoolExecutor, original.ProcessPoolExecutor)
    assert issubclass(ThreadPoolExecutor, original.ThreadPoolExecutor)


def test_trap_g_defaults_are_the_running_pythons() -> None:
    with ProcessPoolExecutor() as e:
        e.submit(double, 1).result()
        assert e._pool.start == multiprocessing.get_start_method()
        assert e._max_workers == tri.cpu_count()
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as e:
        assert e._mp_context.get_start_method() == "spawn"
    with ThreadPoolExecutor() as e:
        assert e._max_workers == min(32, tri.cpu_count() + 4)
    assert hasattr(futures, "InterpreterPoolExecutor") == (sys.version_info >= (3, 14))


class Thing:
    """Something that can be referred to weakly."""

    def method(self) -> int:
        return 5


def test_trap_h_nothing_keeps_arguments_results_or_bound_methods(executor: Any) -> None:
    thing, argument = Thing(), Thing()
    refs = [weakref.ref(thing), weakref.ref(argument)]
    bound = executor.submit(thing.method)
    called = executor.submit(type, argument)
    del thing, argument
    assert bound.result() == 5
    assert called.result() is Thing
    until(lambda: not [r for r in refs if r() is not None])
    result = executor.submit(Thing).result
    ref = weakref.ref(result())
    del result
    until(lambda: ref() is None)
    results = executor.map(lambda _: Thing(), range(3))
    for value in results:
        ref = weakref.ref(value)
        del value
        assert ref() is None
    del results


def test_trap_h_an_executor_that_is_dropped_ends_its_workers(start: str) -> None:
    e = open_executor(start)
    calls = [e.submit(os.getpid) for _ in range(4)]
    workers = list(e._processes.values())
    ref = weakref.ref(e)
    assert {f.result() for f in calls} <= {w.pid for w in workers}
    del e
    gc.collect()
    assert ref() is None
    for worker in workers:
        worker.join(LONG)
        assert not worker.is_alive()


def test_trap_h_results_that_nobody_takes_do_not_pile_up() -> None:
    with open_executor("fork", 1) as e:
        for _ in range(400):
            e.submit(bytes, 200_000)
            until(lambda: e._pool._stats()["slots_free"] > 0)
        last = e.submit(bytes, 1)
        last.result()
        assert e._pool._stats()["arena_peak_bytes"] < 60_000_000


def test_trap_i_the_public_names_are_all_there() -> None:
    assert set(original.__all__) <= set(futures.__all__) | {"InterpreterPoolExecutor"}
    for name in futures.__all__:
        assert getattr(futures, name) is not None
    assert set(futures.__all__) <= set(dir(futures))
    for mine, theirs in (
        (ProcessPoolExecutor, original.ProcessPoolExecutor),
        (ThreadPoolExecutor, original.ThreadPoolExecutor),
    ):
        assert {n for n in dir(theirs) if n[0] != "_"} <= set(dir(mine))
    assert hasattr(ProcessPoolExecutor, "kill_workers")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        futures.nothing  # noqa: B018
    from trireme.futures.process import BrokenProcessPool as _  # noqa: F401
    from trireme.futures.thread import BrokenThreadPool as _  # noqa: F401, F811


# ---------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ProcessPoolExecutor, ThreadPoolExecutor])
def test_arguments_are_refused_in_the_originals_words(cls: Any) -> None:
    theirs = getattr(original, cls.__name__)
    for arguments in ({"max_workers": 0}, {"max_workers": -1}, {"initializer": 5}):
        with pytest.raises((TypeError, ValueError)) as wanted:
            theirs(**arguments)
        with pytest.raises(wanted.type) as got:
            cls(**arguments)
        assert str(got.value) == str(wanted.value)


def test_process_arguments_are_refused_in_the_originals_words() -> None:
    fork = multiprocessing.get_context("fork")
    for arguments in (
        {"max_tasks_per_child": 0},
        {"max_tasks_per_child": "one"},
        {"max_tasks_per_child": 1, "mp_context": fork},
    ):
        with pytest.raises((TypeError, ValueError)) as wanted:
            original.ProcessPoolExecutor(1, **arguments)  # type: ignore[arg-type]
        with pytest.raises(wanted.type) as got:
            ProcessPoolExecutor(1, **arguments)  # type: ignore[arg-type]
        assert str(got.value) == str(wanted.value)
    for wrong in ({"on_crash": "heal"}, {"timeout": 0}, {"retries": -1}):
        with pytest.raises(ValueError):
            ProcessPoolExecutor(1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ProcessPoolExecutor(1, retries=1.5)  # type: ignore[arg-type]


def test_map_refuses_wrong_sizes(executor: Any) -> None:
    if isinstance(executor, ThreadPoolExecutor):  # the original does not look at it
        assert list(executor.map(double, range(3), chunksize=0)) == [0, 2, 4]
    else:
        with pytest.raises(ValueError, match="chunksize must be >= 1."):
            executor.map(double, range(3), chunksize=0)
    with pytest.raises(ValueError, match="buffersize must be None or > 0"):
        executor.map(double, range(3), buffersize=0)
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        executor.map(double, range(3), buffersize="all")


def test_what_cannot_be_called_fails_in_its_future(executor: Any) -> None:
    assert isinstance(executor.submit("text").exception(LONG), TypeError)


# ---------------------------------------------------------------------------------------------
# map
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3, 1000])
def test_map_yields_in_order(executor: Any, chunksize: int) -> None:
    results = executor.map(pow, range(50), [2] * 40, chunksize=chunksize)
    assert iter(results) is results
    assert list(results) == [i * i for i in range(40)]
    assert list(executor.map(double, [])) == []


@pytest.mark.parametrize("chunksize", [1, 4])
def test_map_yields_what_came_before_an_exception(executor: Any, chunksize: int) -> None:
    results = executor.map(lambda i: fail(i) if i == 6 else i, range(10), chunksize=chunksize)
    assert [next(results) for _ in range(6)] == list(range(6))
    with pytest.raises(ValueError, match="no 6"):
        next(results)
    assert list(results) == []


def test_map_runs_everything_though_nobody_looks(executor: Any, tmp_path: Path) -> None:
    executor.map(touch, [str(tmp_path / str(i)) for i in range(40)])
    executor.shutdown()
    assert len(list(tmp_path.iterdir())) == 40


def test_map_times_out_and_cancels_the_rest(executor: Any, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    futures_made = []
    submit = executor.submit
    executor.submit = lambda *a: futures_made.append(submit(*a)) or futures_made[-1]
    results = executor.map(wait_for_file, [gate] * 20, timeout=0.1)
    with pytest.raises(TimeoutError):
        next(results)
    touch(gate)
    executor.shutdown()
    # Workers had one each, and may have claimed another.
    assert sum(f.cancelled() for f in futures_made) >= 16


def test_closing_the_results_cancels_the_rest(executor: Any, tmp_path: Path) -> None:
    gate, made = str(tmp_path / "gate"), []
    submit = executor.submit
    executor.submit = lambda *a: made.append(submit(*a)) or made[-1]
    results = executor.map(lambda i: i == 0 or wait_for_file(gate), range(20))
    assert next(results) is True
    results.close()
    touch(gate)
    executor.shutdown()
    assert sum(f.cancelled() for f in made) >= 14


def test_buffersize_pulls_no_more_than_is_asked_for(executor: Any) -> None:
    pulled = []

    def numbers() -> Iterator[int]:
        i = 0
        while True:  # without end
            pulled.append(i)
            yield i
            i += 1

    results = executor.map(double, numbers(), buffersize=4)
    assert len(pulled) == 4
    assert [next(results) for _ in range(10)] == [2 * i for i in range(10)]
    assert len(pulled) == 14
    results.close()


# ---------------------------------------------------------------------------------------------
# Ending
# ---------------------------------------------------------------------------------------------


def test_submit_after_shutdown_is_refused(executor: Any) -> None:
    executor.submit(double, 1)
    executor.shutdown()
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(double, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(double, range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown_of_an_unused_executor(kind: str) -> None:
    e = open_executor(kind)
    e.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        e.submit(double, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_map", [False, True])
def test_cancel_futures_cancels_what_has_not_started(
    kind: str, by_map: bool, tmp_path: Path
) -> None:
    e = open_executor(kind, 1)
    gate = str(tmp_path / "gate")
    running = e.submit(wait_for_file, gate)
    until(running.running)
    names = [str(tmp_path / f"x{i}") for i in range(10)]
    if by_map:
        e.map(touch, names)
    else:
        rest = [e.submit(touch, name) for name in names]
    e.shutdown(wait=False, cancel_futures=True)
    touch(gate)
    assert running.result(LONG) is True
    if not by_map:
        assert all(f.cancelled() for f in rest)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown_without_waiting_finishes_what_was_submitted(kind: str, tmp_path: Path) -> None:
    e = open_executor(kind, 1)
    gate = str(tmp_path / "gate")
    pending = [e.submit(wait_for_file, gate), e.submit(double, 4)]
    e.shutdown(wait=False)
    assert not pending[1].done()
    touch(gate)
    assert [f.result(LONG) for f in pending] == [True, 8]


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_workers_are_ended_by_force(start: str, method: str) -> None:
    e = open_executor(start, 1)
    running = e.submit(time.sleep, LONG)
    until(running.running)
    waiting = e.submit(double, 1)
    workers = list(e._processes.values())
    getattr(e, method)()
    assert waiting.cancelled()
    assert isinstance(running.exception(LONG), BrokenProcessPool)
    for worker in workers:
        worker.join(LONG)
        assert not worker.is_alive()
    with pytest.raises(RuntimeError):
        e.submit(double, 1)
    getattr(e, method)()


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize("drop", [False, True])
def test_the_interpreter_waits_for_submitted_work(
    run_script: Any, kind: str, drop: bool, tmp_path: Path
) -> None:
    run_script(
        f"""
        import pathlib, time
        from trireme.futures import ProcessPoolExecutor, ThreadPoolExecutor
        executor = {"ProcessPoolExecutor" if kind == "process" else "ThreadPoolExecutor"}(1)
        executor.submit(time.sleep, 0.3)
        executor.submit(pathlib.Path({str(tmp_path / "done")!r}).touch)
        {"del executor" if drop else ""}
        """,
    )
    assert (tmp_path / "done").exists()


def test_a_script_without_a_guard_may_use_its_own_functions(run_script: Any, start: str) -> None:
    out, _ = run_script(
        f"""
        import multiprocessing
        from trireme.futures import ProcessPoolExecutor
        def square(x):
            return x * x + offset
        def begin(value):
            global offset
            offset = value
        context = multiprocessing.get_context({start!r})
        with ProcessPoolExecutor(2, context, begin, (1,)) as executor:
            print(list(executor.map(square, range(4))), executor.submit(lambda: 7).result())
        """,
    )
    assert out == "[1, 2, 5, 10] 7\n"


def test_in_a_fork_of_the_owner_it_raises(executor: Any) -> None:
    assert executor.submit(double, 1).result() == 2
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            executor.submit(double, 1)
        except RuntimeError:
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert executor.submit(double, 2).result() == 4
