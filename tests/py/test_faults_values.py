# SPDX-License-Identifier: BSD-3-Clause
"""The fault matrix, first part: what a task raises, its arguments and its result.

Each row breaks one thing in the middle of other work and then asks for three things: the guilty
future has one precise exception, every other future its value, and the pool is whole again with
not a byte of its arena lost.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading

import trireme as tri
from faultlib import failure, healthy, live_bytes, matrix, pids_of, results, square, within

# ---------------------------------------------------------------------------------------------
# A task raises what it should not
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_exits_and_interrupts_are_results(start: str) -> None:
    def leave(code: object) -> None:
        sys.exit(code)

    def interrupt() -> None:
        raise KeyboardInterrupt("in a task")

    class Odd(BaseException):
        pass

    def odd() -> None:
        raise Odd("base")

    def generator() -> None:
        raise GeneratorExit

    with tri.Pool(2, start=start) as pool:
        pids = pids_of(pool)
        for call, name in (
            (lambda: pool.submit(leave, 3).result(5), "SystemExit"),
            (lambda: pool.map(leave, [0, 1]), "SystemExit"),
            (lambda: pool.submit(interrupt).result(5), "KeyboardInterrupt"),
            (lambda: pool.submit(odd).result(5), "Odd"),
            (lambda: pool.submit(generator).result(5), "GeneratorExit"),
        ):
            exc = failure(call)
            assert type(exc) is tri.RemoteError, (name, exc)
            assert name in str(exc), exc
            assert name in str(exc.__cause__), exc.__cause__
        assert isinstance(exc.original, GeneratorExit)
        healthy(pool)
        assert pids_of(pool) == pids, "a worker was lost"


@matrix()
def test_exceptions_that_travel_badly(start: str) -> None:
    class TwoArguments(Exception):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(f"{code}: {text}")
            self.code = code

    class HoldsLock(Exception):
        def __init__(self) -> None:
            super().__init__("holds one")
            self.lock = threading.Lock()

    class Cyclic(Exception):
        pass

    class NoText(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    class ExitsAtPickle(Exception):
        def __reduce__(self) -> object:
            raise SystemExit(5)

    class ExitsAtUnpickle(Exception):
        def __reduce__(self) -> object:
            return sys.exit, (5,)

    class WrongAtUnpickle(Exception):
        def __reduce__(self) -> object:
            return int, ("7",)

    def two() -> None:
        raise TwoArguments(7, "seven")

    def lock() -> None:
        raise HoldsLock

    def cyclic() -> None:
        exc = Cyclic("round")
        exc.me = exc  # type: ignore[attr-defined]
        raise exc from exc

    def deep() -> None:
        exc = None
        for i in range(2000):
            new = ValueError(i)
            new.__cause__ = exc
            exc = new
        raise exc

    def huge() -> None:
        raise ValueError("x" * 5_000_000)

    def raise_it(kind: type[BaseException]) -> None:
        raise kind

    with tri.Pool(2, start=start) as pool:
        pids = pids_of(pool)
        exc = failure(lambda: pool.submit(two).result(5))
        assert type(exc).__name__ == "TwoArguments" and str(exc) == "7: seven", repr(exc)
        assert exc.code == 7
        assert "raise TwoArguments" in str(exc.__cause__) or "in two" in str(exc.__cause__)
        for task, name in ((lock, "HoldsLock"), (cyclic, "Cyclic"), (deep, "ValueError")):
            exc = failure(lambda t=task: pool.submit(t).result(within(5)))
            assert isinstance(exc, (tri.RemoteError, Exception)), exc
            assert name in (type(exc).__name__, getattr(exc, "type_name", "").split(".")[-1]), exc
        exc = failure(lambda: pool.submit(huge).result(within(5)))
        assert type(exc) is ValueError
        for kind in (NoText, ExitsAtPickle, ExitsAtUnpickle, WrongAtUnpickle):
            exc = failure(lambda k=kind: pool.submit(raise_it, k).result(within(5)))
            assert isinstance(exc, Exception), exc
            assert kind.__name__ in repr(exc) + type(exc).__name__, repr(exc)
        healthy(pool)
        assert pids_of(pool) == pids, "a worker was lost"


# ---------------------------------------------------------------------------------------------
# Pickling
# ---------------------------------------------------------------------------------------------


@matrix("fork", "forkserver", "spawn")
def test_what_cannot_be_pickled_fails_alone(start: str) -> None:
    class RaisesAtPickle:
        def __reduce__(self) -> object:
            raise ZeroDivisionError("at pickle")

    class ExitsAtPickle:
        def __reduce__(self) -> object:
            raise SystemExit(4)

    def lock_result() -> object:
        return {"deep": [1, threading.Lock()]}

    def generator_result() -> object:
        return (i for i in range(3))

    def raises_result() -> object:
        return RaisesAtPickle()

    def exits_result() -> object:
        return ExitsAtPickle()

    with tri.Pool(2, start=start) as pool:
        pids = pids_of(pool)
        good = [pool.submit(square, i) for i in range(10)]
        for bad in ({"deep": [1, threading.Lock()]}, (i for i in range(3)), RaisesAtPickle()):
            exc = failure(lambda b=bad: pool.submit(len, b).result(5))
            assert isinstance(exc, Exception), exc
            assert not isinstance(exc, tri.WorkerLost)
            failure(lambda b=bad: pool.map(len, [1, b, 2]))
            failure(lambda b=bad: list(pool.imap(len, [[1], b, [2]])))
        exc = failure(lambda: pool.submit(len, {"deep": [1, threading.Lock()]}).result(5))
        assert "['deep'][1]" in str(exc), exc
        for task in (lock_result, generator_result, raises_result, exits_result):
            exc = failure(lambda t=task: pool.submit(t).result(5))
            assert isinstance(exc, Exception), (task.__name__, exc)
            assert not isinstance(exc, tri.WorkerLost), exc
        assert [f.result(5) for f in good] == [i * i for i in range(10)]
        healthy(pool)
        assert pids_of(pool) == pids, "a worker was lost"


@matrix("fork", "forkserver", "spawn")
def test_arguments_that_fail_at_unpickling(start: str) -> None:
    def boom() -> None:
        raise ZeroDivisionError("at unpickle")

    class Reduces:
        def __init__(self, *how: object) -> None:
            self.how = how

        def __reduce__(self) -> object:
            return self.how[0], tuple(self.how[1:])

    with tri.Pool(2, start=start) as pool:
        good = [pool.submit(square, i) for i in range(10)]
        exc = failure(lambda: pool.submit(repr, Reduces(boom)).result(5))
        assert type(exc) is ZeroDivisionError and "at unpickle" in str(exc), exc
        exc = failure(lambda: pool.map(repr, [1, Reduces(boom), 2], chunk=1))
        assert type(exc) is ZeroDivisionError, exc
        exc = failure(lambda: pool.submit(repr, Reduces(sys.exit, 4)).result(5))
        assert type(exc) is tri.RemoteError and "SystemExit" in str(exc), exc
        assert pool.stats()["deaths"] == 0
        exc = failure(lambda: pool.submit(repr, Reduces(os._exit, 7)).result(5))
        assert type(exc) is tri.WorkerLost and exc.exitcode == 7, exc
        exc = failure(lambda: pool.map(repr, [1, Reduces(os._exit, 8), 2], chunk=1))
        assert type(exc) is tri.WorkerLost and exc.exitcode == 8, exc
        assert [f.result(5) for f in good] == [i * i for i in range(10)]
        healthy(pool)


@matrix()
def test_functions_that_fail_at_unpickling(start: str) -> None:
    class Task:
        def __init__(self, how: object, *args: object) -> None:
            self.how = how
            self.args = args

        def __call__(self, x: int) -> int:
            return x

        def __reduce__(self) -> object:
            return self.how, self.args

    def boom() -> None:
        raise ZeroDivisionError("function at unpickle")

    with tri.Pool(2, start=start) as pool:
        for _ in range(2):
            exc = failure(lambda: pool.submit(Task(boom), 1).result(5))
            assert type(exc) is ZeroDivisionError, exc
        exc = failure(lambda: pool.map(Task(os._exit, 6), range(4)))
        assert type(exc) is tri.WorkerLost and exc.exitcode == 6, exc
        healthy(pool)


@matrix("fork", "forkserver", "spawn")
def test_results_that_fail_at_unpickling_in_the_owner(start: str) -> None:
    owner = os.getpid()

    def only_here(how: str) -> object:
        if os.getpid() != owner:
            return "made in a worker"
        if how == "exit":
            raise SystemExit(5)
        raise ZeroDivisionError("in the owner")

    class Bad:
        def __init__(self, how: str) -> None:
            self.how = how

        def __reduce__(self) -> object:
            return only_here, (self.how,)

    def make(how: str) -> object:
        return Bad(how) if how else 11

    with tri.Pool(2, start=start) as pool:
        good = [pool.submit(square, i) for i in range(10)]
        for how in ("raise", "exit"):
            bad = pool.submit(make, how)
            later = pool.submit(make, "")
            assert later.result(5) == 11, "somebody else's bad result is not mine"
            exc = failure(lambda f=bad: f.result(5))
            assert isinstance(exc, Exception), f"{exc!r} would end the program"
            assert ("ZeroDivisionError" if how == "raise" else "SystemExit") in repr(exc), repr(exc)
            exc = failure(lambda h=how: pool.map(make, ["", h, ""]))
            assert isinstance(exc, Exception), exc
            exc = failure(lambda h=how: list(pool.imap(make, ["", h, ""])))
            assert isinstance(exc, Exception), exc
            exc = failure(lambda h=how: pool.map_async(make, ["", h, ""]).get(5))
            assert isinstance(exc, Exception), exc
        assert [f.result(5) for f in good] == [i * i for i in range(10)]
        healthy(pool)
        assert pool.stats()["deaths"] == 0


@matrix()
def test_bad_items_of_an_iterator_do_not_take_their_neighbours(start: str) -> None:
    def boom() -> None:
        raise ZeroDivisionError("at unpickle")

    class Bad:
        def __reduce__(self) -> object:
            return boom, ()

    def task(x: object) -> object:
        return threading.Lock() if x == 5 else (x,)

    def drain(iterator: object) -> list[object]:
        return list(itertools.islice(results(iterator), 13))

    with tri.Pool(2, start=start) as pool:
        for chunk in (1, 4, None):
            got = drain(pool.imap(task, range(12), chunk=chunk))
            assert len(got) == 12
            assert isinstance(got[5], TypeError), got[5]
            assert [g for i, g in enumerate(got) if i != 5] == [(i,) for i in range(12) if i != 5]
        items = [0, 1, Bad(), 3, 4, 6, 7, 8]
        got = drain(pool.imap(task, items, chunk=1))
        assert type(got[2]) is ZeroDivisionError
        others = [g for i, g in enumerate(got) if i != 2]
        assert others == [(0,), (1,), (3,), (4,), (6,), (7,), (8,)]
        got = drain(pool.imap(task, items, chunk=4))
        assert len(got) == 8 and all(type(g) is ZeroDivisionError for g in got[:4]), got
        assert got[4:] == [(4,), (6,), (7,), (8,)]


# ---------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------


@matrix()
def test_results_and_arguments_of_any_size(start: str) -> None:
    def give(n: int = 1) -> bytes:
        return b"x" * n

    arena = 8 << 20
    with tri.Pool(2, start=start, arena_bytes=arena) as pool:
        pool.submit(len, b"").result(within(5))
        live = live_bytes(pool, give)
        sizes = (0, 1, 255, 256, 65535, 65536, arena // 2, arena - 4096, arena, arena + 1)
        for n in (*sizes, 3 * arena):
            got = pool.submit(give, n).result(within(10))
            assert len(got) == n and bytes(got[-1:]) == b"x" * min(n, 1), n
            if n <= arena // 2:
                assert pool.submit(len, b"y" * n).result(within(10)) == n
            elif n >= arena:  # the owner's own part of the arena is the limit of what it sends
                exc = failure(lambda k=n: pool.submit(len, b"y" * k).result(within(10)))
                assert type(exc) is MemoryError and str(n)[:3] in str(exc), exc
            assert [len(x) for x in pool.map(give, [n, 1, n])] == [n, 1, n]
            del got
        healthy(pool, live)
        assert pool.stats()["deaths"] == 0
