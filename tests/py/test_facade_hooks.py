# SPDX-License-Identifier: BSD-3-Clause
"""What a program has put around the life of a process is around that of a worker.

Coverage.py and tracers put a function in the place of BaseProcess._bootstrap, and send it to fresh
processes in what these are prepared with; others derive from Process and override run().  The
programs run by Python and through the doors, and must say the same.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import trireme
from doorslib import both, program, run, write  # noqa: F401
from facadelib import METHODS, STARTS
from tasklib import square
from trireme import futures
from trireme import multiprocessing as ours

HOOK = """
    import multiprocessing, os
    from multiprocessing import process, spawn

    doing = None  # in a process of multiprocessing: what came before it

    def say(*words):
        with open("said", "a") as file:  # O_APPEND: whole lines, whoever writes
            print(*words, file=file)

    def bootstrap(self, *args, **kwargs):
        global doing
        doing = "begun"
        try:
            return before(self, *args, **kwargs)
        finally:
            doing = None
            say(self.name.split("-")[0], "has ended")

    class Stowaway:
        def __init__(self, text):
            self.text = text

        def __setstate__(self, state):
            self.__dict__.update(state)
            install()

    def prepare(name):
        data = prepare_before(name)
        data["stowaway"] = Stowaway("from " + name.split("-")[0])
        return data

    before, prepare_before = process.BaseProcess._bootstrap, spawn.get_preparation_data

    def install():
        if process.BaseProcess._bootstrap is before:
            process.BaseProcess._bootstrap = bootstrap
            spawn.get_preparation_data = prepare
"""

HOOKED = """
    import multiprocessing as mp, sys
    from concurrent.futures import ProcessPoolExecutor
    import hook

    def start():
        hook.say("initializer", hook.doing)

    def task(x):
        return x, hook.doing

    if __name__ == "__main__":
        hook.install()
        context = mp.get_context(sys.argv[1])
        pool = context.Pool(1, start, maxtasksperchild=2)
        print(pool.map(task, range(3), 1))
        pool.close()
        pool.join()
        with ProcessPoolExecutor(1, context, start) as executor:
            print(list(executor.map(task, range(2))))
        process = context.Process(target=task, args=(1,))
        process.start()
        process.join()
        print(sorted(open("said")))
        print(hook.doing)
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_lives_inside_of_a_changed_bootstrap(
    program: Any,  # noqa: F811
    write: Any,  # noqa: F811
    tmp_path: Path,
    method: str,
) -> None:
    write("hook.py", HOOK)
    (tmp_path / "said").touch()
    # Both runs append to it: each takes what it has said.
    source = HOOKED.replace('sorted(open("said"))', "taken()")
    taken = """
    def taken():
        with open("said", "r+") as file:
            lines = sorted(file)
            file.truncate(0)
        return lines
"""
    out = program(source.replace("\n    if __name__", taken + "\n    if __name__"), method)
    assert "(0, 'begun'), (1, 'begun'), (2, 'begun')" in out
    # The pool's worker was replaced once; of the executor's the name is Process.
    kind = {"fork": "Fork", "forkserver": "ForkServer", "spawn": "Spawn"}[method]
    assert out.count(f"{kind}PoolWorker has ended") == 2
    assert out.count(f"{kind}Process has ended") == 2
    assert out.count("initializer begun") == 3


RUN = """
    import multiprocessing as mp, multiprocessing.pool, sys
    from concurrent.futures import ProcessPoolExecutor

    context = mp.get_context(sys.argv[1])
    who = "nobody"

    class P(context.Process):
        def run(self):
            global who
            who = "set by run()"
            super().run()
            print("run() ends", flush=True)

    class Context(type(context)):
        Process = P

    class MyPool(mp.pool.Pool):
        @staticmethod
        def Process(ctx, *args, **kwds):
            print(ctx is context, args, sorted(kwds), kwds["target"].__name__, len(kwds["args"]))
            print(kwds["args"][2:], flush=True)
            return P(*args, **kwds)

    class Wrapped(mp.pool.Pool):
        @staticmethod
        def Process(ctx, target, args):
            return ctx.Process(target=around, args=(target, *args))

    def around(target, *args):
        global who
        who = "set around"
        target(*args)
        print("around ends", flush=True)

    def begin(x):
        print("initializer", x, who, flush=True)

    def task(x):
        return who

    if __name__ == "__main__":
        pools = [
            lambda: mp.pool.Pool(1, begin, (1,), context=Context()),
            lambda: MyPool(1, context=context, initargs=(1, 2), maxtasksperchild=5),
            lambda: Wrapped(1, context=context),
        ]
        for make in pools:
            pool = make()
            print(pool.map(task, [1]), flush=True)
            pool.close()
            pool.join()
        with ProcessPoolExecutor(1, Context(), begin, (2,)) as executor:
            print(list(executor.map(task, [1])), flush=True)
"""


def test_run_and_target_of_a_process_are_around_the_tasks(program: Any) -> None:  # noqa: F811
    out = program(RUN, "fork")
    assert "['set by run()']" in out and "['set around']" in out
    assert out.count("run() ends") == 3 and "around ends" in out
    assert "initializer 1 set by run()" in out and "initializer 2 set by run()" in out


class Own(multiprocessing.get_context("fork").Process):  # type: ignore[misc, name-defined]
    """run() without its target."""

    def run(self) -> None:
        pass


class Noted(multiprocessing.get_context("spawn").Process):  # type: ignore[misc, name-defined]
    def run(self) -> None:
        try:
            super().run()
        finally:
            with open(os.environ["NOTES"], "a") as file:
                print(os.environ.get("RAISED"), file=file)


def context_of(process: Any, method: str) -> Any:
    kind: Any = type(multiprocessing.get_context(method))
    return type("Context", (kind,), {"Process": process})()


def fail() -> None:
    os.environ["RAISED"] = "yes"
    raise KeyError("the initializer")


@STARTS
def test_what_fails_inside_is_raised_by_tasks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    context = context_of(Noted, method)
    with ours.pool.Pool(1, fail, context=context) as pool:
        with pytest.raises(KeyError, match="the initializer"):
            pool.apply(square, (3,))
    assert set((tmp_path / "notes").read_text().split()) == {"yes"}
    with futures.ProcessPoolExecutor(1, context, fail) as executor:
        with pytest.raises(BrokenProcessPool):
            executor.submit(square, 3).result(60)


def test_a_run_without_its_target_fails_the_tasks() -> None:
    context = context_of(Own, "fork")
    with ours.pool.Pool(1, context=context) as pool:
        with pytest.raises(RuntimeError, match="did not call its target"):
            pool.apply(square, (3,))


def test_an_idle_worker_ends_by_itself_when_its_pool_is_terminated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(notes))
    with ours.pool.Pool(2, context=context_of(Noted, "spawn")) as pool:
        assert pool.map(square, range(4)) == [0, 1, 4, 9]
        assert len(pool._pool) == 2
    assert notes.read_text().split() == ["None", "None"]


LEFT = """
    from trireme.multiprocessing import get_context, pool
    from trireme.futures import ProcessPoolExecutor

    context = get_context("fork")

    class P(context.Process):
        def run(self):
            super().run()
            print("run() ends", flush=True)

    class Context(type(context)):
        Process = P

    if __name__ == "__main__":
        executor = ProcessPoolExecutor(1, Context())
        print(executor.submit(abs, -1).result())
        del executor
        left = pool.Pool(2, context=Context())
        print(left.map(abs, [-1, -2], 1), len(left._pool))
"""


def test_workers_of_what_is_dropped_or_left_open_end_by_themselves(
    write: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    write("program.py", LEFT)
    code, out, err = run("program.py", cwd=tmp_path)
    assert (code, out.count("run() ends")) == (0, 3), err


def crash() -> None:
    os.abort()


def test_a_crash_inside_shows_the_task_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    with ours.pool.Pool(1, context=context_of(Noted, "fork")) as pool:
        with pytest.raises(trireme.WorkerLost) as caught:
            pool.apply(crash)
        assert " in run" not in (caught.value.stack or "")
        assert pool.apply(square, (3,)) == 9


# As those of OpenTelemetry and ddtrace, which are made by wrapt: a wrapper of a method that shows
# whatever attributes that has.
WRAPPED = """
    import concurrent.futures as cf

    class Wrapper:
        def __init__(self, wrapped, executor=None):
            self.wrapped, self.executor = wrapped, executor

        def __get__(self, executor, cls):
            return Wrapper(self.wrapped.__get__(executor, cls), executor)

        def __getattr__(self, name):
            return getattr(self.wrapped, name)

        def __call__(self, *args, **kwargs):
            seen.append("wrapped")
            return self.wrapped(*args, **kwargs)

    def plain(self, *args, **kwargs):
        seen.append("plain")
        return before(self, *args, **kwargs)

    seen = []
    if __name__ == "__main__":
        for cls in cf.ThreadPoolExecutor, cf.ProcessPoolExecutor:
            before = cls.submit
            for wrapper in Wrapper(before), plain:
                cls.submit = wrapper
                with cls(1) as executor:
                    print(list(executor.map(abs, range(5))), executor.submit(abs, -1).result())
                print(cls.__name__, seen)
                seen.clear()
"""


def test_map_calls_a_wrapped_submit_for_each_task(program: Any) -> None:  # noqa: F811
    out = program(WRAPPED)
    assert out.count(str(['wrapped'] * 6)) == 2
    assert out.count(str(['plain'] * 6)) == 2


@pytest.mark.parametrize("name", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_what_is_put_in_the_place_of_the_base_classs_submit_is_called(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cls = getattr(futures, name)
    base = next(one for one in cls.__mro__ if "submit" in vars(one))
    seen = []
    before = base.submit

    def submit(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(args[1:])
        return before(self, *args, **kwargs)

    monkeypatch.setattr(base, "submit", submit)
    with cls(1) as executor:
        assert list(executor.map(square, range(3))) == [0, 1, 4]
    assert seen == [(0,), (1,), (2,)]
