# SPDX-License-Identifier: BSD-3-Clause
"""The facades answer what they are asked as the originals do, good arguments and bad ones.

Each expression is evaluated once with the originals' modules and once with ours, and must give the
same value or raise the same class of exception.  Not in the lists is what the original hangs on,
where it does nothing in silence, and what ours can do and the original cannot (test_differences_on_
purpose has those); texts of exceptions are each library's own.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from facadelib import ORIGINAL, OURS, module

FUTURES = {ORIGINAL: "concurrent.futures", OURS: "trireme.futures"}

POOL = """
p.map() | p.map(abs) | p.map(abs, 5) | p.map(5, [1]) | p.map(abs, [], 0) | p.map(abs, [], -1)
p.map(abs, [1, 2, 3], "x") | p.map(abs, [1, -2], chunksize=None) | p.map(abs, iter([1, -2]))
p.map(abs, {1: 2}) | p.map(abs, "ab") | p.map(abs, None) | p.map(abs, fails())
p.map(abs, range(3)) | p.map(abs, itertools.chain([1], [2]))
p.map(func=abs, iterable=[-1], chunksize=1) | p.starmap(pow, [1]) | p.starmap(pow, 5)
p.starmap(pow, [(2, 3), (3, 2)]) | p.starmap(pow, ["ab"])
p.starmap(pow, [[2, 3]]) | p.starmap(abs, [(1, 2)]) | p.starmap(pow, fails())
p.apply(abs) | p.apply(abs, 5) | p.apply(abs, (5,)) | p.apply(abs, [5]) | p.apply(abs, "5")
p.apply(int, ("12",), {"base": 8}) | p.apply(int, ("12",), {"bogus": 8}) | p.apply(abs, None)
p.apply(int, ("12",), [("base", 8)]) | p.apply(int, ("12",), None) | p.apply(5) | p.apply(None)
p.apply(func=abs, args=(1,), kwds={}) | p.apply(time.sleep, ("x",))
p.apply_async(abs, (1,)).get(5) | p.apply_async(abs, (1,)).get(timeout=None)
p.apply_async(time.sleep, (0.2,)).get(0) | p.apply_async(time.sleep, (0.2,)).get(-1)
p.apply_async(time.sleep, (0.2,)).get(0.01) | p.apply_async(time.sleep, (0.2,)).get("x")
p.apply_async(time.sleep, (0.2,)).wait("x") | p.apply_async(time.sleep, (0.2,)).wait(0)
p.apply_async(time.sleep, (0.2,)).successful() | p.apply_async(time.sleep, (0.2,)).ready()
p.apply_async(abs, (1,)).wait() | p.apply_async(abs, 1).get(5) | p.apply_async(abs, ("x",)).get(5)
p.apply_async(abs, (1,), bogus=1) | p.apply_async(abs, (1,)).get(5, 6)
p.map_async(abs, 5) | p.map_async(abs, [1, -2]).get(5) | p.map_async(abs, [1, "x"]).get(5)
p.map_async(abs, [1, -2], 1, None, None).get(5) | p.map_async(abs, []).get(5)
p.map_async(abs, []).ready() | p.map_async(abs, []).successful() | p.map_async(abs, fails()).get(5)
p.starmap_async(pow, [(2, 3)]).get(5) | p.starmap_async(pow, 5)
p.imap(abs, 5) and 1 | list(p.imap(abs, [1, -2])) | list(p.imap(abs, [1, -2], 2))
list(p.imap(abs, [1, -2], 0)) | list(p.imap(abs, [1, -2], -1)) | list(p.imap(abs, [1, -2], "x"))
list(p.imap(abs, [1, "x"])) | list(p.imap(abs, [])) | list(p.imap_unordered(abs, 5))
list(p.imap(abs, fails())) | list(p.imap_unordered(abs, [1, -2], 0)) | p.imap(abs, []).next(0.1)
sorted(p.imap_unordered(abs, [1, -2], 2)) | list(p.imap_unordered(abs, fails()))
p.imap(abs, [1]).next(5) | p.imap(time.sleep, [0.2]).next("x") | p.imap(abs, []).next()
p.imap(time.sleep, [0.2]).next(0.01) | p.imap(time.sleep, [0.2]).next(0)
p.imap(time.sleep, [0.2]).next(-1) | p.imap(abs, [1]).next(timeout=None)
p.imap(func=abs, iterable=[1]).next(5) | p.join() | pickle.dumps(p) | copy.copy(p) | p.bogus
p == p | hash(p) == hash(p) | p.__enter__() is p | p._processes | p._state | len(p._pool)
isinstance(p.apply_async(abs, (1,)), mp.pool.AsyncResult) | type(p.map_async(abs, [1])).__name__
isinstance(p.imap(abs, [1]), mp.pool.IMapIterator) | type(p.imap(abs, [1], 2)).__name__
isinstance(p, mp.pool.Pool) | isinstance(p.map_async(abs, [1]), mp.pool.MapResult)
tp.map(abs, 5) | tp.map(lambda x: x, [1]) | tp.apply(abs, 5) | list(tp.imap(abs, [1], 0))
tp.apply_async(abs, (1,)).get(5) | isinstance(tp, mp.pool.Pool) | tp.join() | pickle.dumps(tp)
"""

ENDED_POOL = """
p.close() or p.map(abs, [1]) | p.terminate() or p.map(abs, [1]) | p.close() or p.imap(abs, [1])
p.close() or p.apply_async(abs, (1,)) | (p.close(), p.join(), p.join()) | (p.close(), p.close())
(p.terminate(), p.join()) | (p.terminate(), p.close()) | p.close() or p.__enter__()
p.terminate() or p.__enter__() | p.__exit__(None, None, None) | p.close() or p._state
"""

OPENING = """
mp.Pool(0) | mp.Pool(-1) | mp.Pool("2") | mp.Pool(1.5) | mp.Pool(1, 5) | mp.Pool(1, initializer=3)
mp.Pool(1, maxtasksperchild=0) | mp.Pool(1, maxtasksperchild=1.5) | mp.Pool(bogus=1)
mp.Pool(1, maxtasksperchild="x") | mp.pool.ThreadPool(0) | mp.pool.ThreadPool("x")
mp.pool.ThreadPool(1, 5) | cf.ProcessPoolExecutor(0) | cf.ProcessPoolExecutor(-1)
cf.ProcessPoolExecutor("x") | cf.ProcessPoolExecutor(1, initializer=5)
cf.ProcessPoolExecutor(1, max_tasks_per_child=0) | cf.ProcessPoolExecutor(1, max_tasks_per_child=-1)
cf.ProcessPoolExecutor(1, max_tasks_per_child=1.5) | cf.ProcessPoolExecutor(1, mp_context=5)
cf.ProcessPoolExecutor(1, max_tasks_per_child="x") | cf.ProcessPoolExecutor(1, bogus=5)
cf.ProcessPoolExecutor(1, mp, max_tasks_per_child=1) | cf.ThreadPoolExecutor(0)
cf.ThreadPoolExecutor(-1) | cf.ThreadPoolExecutor("x") | cf.ThreadPoolExecutor(1, "x", 5)
"""

EXECUTORS = """
x.submit() | x.submit(fn=abs) | x.submit(abs, -1).result(5) | x.submit(abs, "x").result(5)
x.submit(abs).result(5) | x.submit(5).result(5) | x.submit(int, "12", base=8).result(5)
x.map() | list(x.map(abs)) | list(x.map(abs, [])) | list(x.map(abs, [1], [2])) | x.map(abs, 5)
list(x.map(5, [1])) | list(x.map(abs, [1], timeout="x"))
list(x.map(time.sleep, [0.2], timeout=0)) | list(x.map(time.sleep, [0.2], timeout=-1))
list(x.map(abs, [1, -2], chunksize=0)) | list(x.map(abs, [1, -2], chunksize=-1))
list(x.map(abs, [1, -2], chunksize="x")) | list(x.map(abs, [1, -2], chunksize=2))
list(x.map(abs, [1, -2], bogus=2)) | list(x.map(pow, [1, 2], [3])) | list(x.map(abs, fails()))
list(x.map(abs, [1, "x", 3])) | type(x.map(abs, [1])).__name__ | x._max_workers | x.bogus
isinstance(x, cf.Executor) | isinstance(x.submit(abs, 1), cf.Future)
x.submit(sys.exit, 3).result(5) | type(x.submit(abs, 1)).__name__
f.result() | f.result(timeout=0) | f.cancel() | f.cancelled() | f.running() | f.done()
f.exception() | f.add_done_callback(lambda g: None) | f.set_result(5)
f.set_exception(ValueError()) | f
f.set_running_or_notify_cancel() | pickle.dumps(f) | failed | failed.set_result(5) | f.bogus
g.result(0) | g.result(-1) | g.result(0.01) | g.exception(0) | g.done() | g.bogus
cf.wait([]) | cf.wait([f])[0] == {f} | cf.wait([f, 5]) | cf.wait(5) | cf.wait([f], return_when="x")
cf.wait([f], timeout=0)[1] | cf.wait([g], timeout=0)[0] | cf.wait([f, f])[0] == {f}
cf.wait({f: 1})[0] == {f} | list(cf.as_completed([])) | list(cf.as_completed([f])) == [f]
list(cf.as_completed([f, f])) == [f] | list(cf.as_completed([5])) | list(cf.as_completed(5))
list(cf.as_completed([g], timeout=0)) | list(cf.as_completed([f], timeout=0)) == [f]
"""

ENDED_EXECUTOR = """
x.shutdown() or x.submit(abs, 1) | x.shutdown() or list(x.map(abs, [1])) | x.shutdown(True, True)
(x.shutdown(), x.shutdown()) | x.shutdown(False) or x.submit(abs, 1) | x.__exit__(None, None, None)
x.shutdown(wait=True, cancel_futures=True) | x.shutdown() or x.__enter__() is x
"""

QUEUES = """
mp.Queue(-1).empty() | mp.Queue("x") | mp.Queue(None) | mp.Queue(0).full() | mp.Queue(bogus=1)
q.get(False) | q.get(True, 0.01) | q.get(True, -1) | q.get(True, 0) | q.get(timeout="x")
q.get(block=False, timeout=5) | q.get_nowait() | q.put() | q.put(1, 2, 3, 4) | q.qsize() | q.empty()
(q.put(1), q.get(timeout=5)) | (q.put(1, False), q.get(timeout=5)) | (q.put(1, True, "x"))
(q.put(obj=1, block=True, timeout=None), q.get(timeout=5)) | (q.put(1, True, -1), q.get(timeout=5))
q.full() | q.join_thread() | (q.close(), q.join_thread()) | q.close() or q.put(1) | q._maxsize
q.close() or q.get(timeout=0.1) | q.close() or q.get(False) | (q.close(), q.close()) | len(q)
q.cancel_join_thread() | pickle.dumps(q) | q.bogus | q.task_done | bool(q) | iter(q)
q2.put(1) or q2.put(2, False) | q2.put(1) or q2.put(2, True, 0.01)
q2.put(1) or q2.put(2, True, -1) | q2.put(1) or q2.put_nowait(2) | q2.put(1) or q2.full()
q2._maxsize | (q2.put(1), q2.get(timeout=5), q2.full())
(sq.put(1), sq.get()) | (sq.put(None), sq.get()) | sq.empty() | (sq.put(1), sq.empty()) | sq.qsize
sq.close() or sq.put(1) | sq.close() or sq.get() | (sq.close(), sq.close()) | sq.get(False)
sq.put(1, 2) | sq.put(lambda: 1) | pickle.dumps(sq) | mp.SimpleQueue(5)
jq.task_done() | (jq.put(1), jq.get(timeout=5), jq.task_done(), jq.join()) | jq.join()
(jq.put(1), jq.get(timeout=5), jq.task_done(), jq.task_done()) | jq.get_nowait()
mp.JoinableQueue("x")
"""

LOCKS = """
mp.Lock(1) | l.acquire() | l.acquire(False) | l.acquire(True, 0) | (l.acquire(), l.acquire(False))
(l.acquire(), l.acquire(True, 0.01)) | (l.acquire(), l.acquire(True, -1)) | l.acquire(True, None)
(l.acquire(), l.acquire(timeout=0.01)) | (l.acquire(), l.acquire(False, None))
l.acquire(timeout="x") | l.acquire(bogus=1) | l.acquire(True, 1, 2) | l.release()
(l.acquire(), l.release(), l.release()) | l.__enter__() | l.__exit__() | repr(l)
(l.__enter__(), l.__exit__(None, None, None)) | (l.acquire(), repr(l)) | pickle.dumps(l) | l.bogus
getattr(l, "locked", int)() | (l.acquire(), getattr(l, "locked", int)()) | l == l
l._semlock.maxvalue | l._semlock.kind | l._semlock._count() | l._semlock._is_mine()
l._semlock._get_value() | l._semlock._is_zero() | (l.acquire(), l._semlock._count())
rl.acquire() | (rl.acquire(), rl.acquire()) | rl.release() | repr(rl) | mp.RLock(1)
(rl.acquire(), rl.acquire(), rl.release(), rl.release(), rl.release())
(rl.acquire(), rl.acquire(), repr(rl)) | (rl.acquire(), rl._semlock._count(), rl._semlock.kind)
mp.Semaphore(-1) | mp.Semaphore("x") | mp.Semaphore(1.5) | mp.Semaphore(None)
mp.Semaphore(2**31) | mp.Semaphore(2**31 - 1).get_value() | mp.Semaphore(2**31 - 1).release()
s.acquire() | (s.acquire(), s.acquire(), s.acquire(False)) | s.get_value() | repr(s)
(s.release(), s.get_value()) | (s.acquire(), repr(s)) | s.acquire(False, 5)
s.acquire(timeout=-1) | mp.Semaphore(0).acquire(timeout=0.01) | mp.Semaphore(0).get_value()
bs.release() | (bs.acquire(), bs.release(), bs.release()) | repr(bs) | bs.get_value()
mp.BoundedSemaphore(0).release() | mp.BoundedSemaphore(-1)
c.wait() | c.wait(0) | c.notify() | c.notify_all() | (c.acquire(), c.wait(0.01)) | repr(c)
(c.acquire(), c.wait(0)) | (c.acquire(), c.wait(-1)) | (c.acquire(), c.wait("x"))
(c.acquire(), c.notify()) | (c.acquire(), c.notify(5)) | (c.acquire(), c.notify(0))
(c.acquire(), c.notify("x")) | (c.acquire(), c.notify_all()) | (c.acquire(), c.acquire(), repr(c))
(c.acquire(), c.wait_for(lambda: True)) | (c.acquire(), c.wait_for(lambda: False, 0.01))
(c.acquire(), c.wait_for(lambda: 5, 0)) | (c.acquire(), c.wait_for(5, 0)) | c.release()
mp.Condition(5) | mp.Condition(mp.Lock()).acquire() | c.__enter__() | pickle.dumps(c)
e.is_set() | (e.set(), e.is_set()) | (e.set(), e.clear(), e.is_set()) | e.wait(0) | e.wait(0.01)
e.wait(-1) | e.wait("x") | (e.set(), e.wait()) | (e.set(), e.wait(timeout=5)) | e.set(1)
pickle.dumps(e) | mp.Event(1) | repr(e) | (e.set(), repr(e))
mp.Barrier(0) and 1 | mp.Barrier("x") | mp.Barrier(1).wait() | mp.Barrier(1, lambda: 3).wait()
mp.Barrier(1, 5).wait() | mp.Barrier(2).wait(0.01) | mp.Barrier(2).wait(0)
mp.Barrier(2, timeout=0.01).wait() | repr(mp.Barrier(2))
"""

SHARED = """
mp.Value("i", 5).value | mp.Value("i", "x") | mp.Value("i") | mp.Value("q", 2**40).value
mp.Value("i", 2**40).value | mp.Value("?") | mp.Value(5) | mp.Value("i", 1, 2)
mp.Value("i", lock=5) | mp.Value("i", lock=False) | mp.Value("i", lock=None).value
mp.Value("i", lock=mp.RLock()).get_lock() | repr(mp.Value("i", 5)) | mp.Value("i", 5).get_obj()
mp.Value("i", 5).acquire() | mp.Value("i", 5).release() | mp.Value("d", 5).value
mp.Value("c", b"x").value | mp.Value(ctypes.c_double, 3).value | mp.Value("i").bogus
setattr(mp.Value("i"), "value", "x") | pickle.dumps(mp.Value("i"))
mp.Array("i", 5)[:] | mp.Array("i", [1, 2])[:] | mp.Array("i", -1) | mp.Array("i", "x")
mp.Array("i", 0)[:] | mp.Array("c", 5).raw | mp.Array("c", b"abc").value | mp.Array("c", b"abc")[:]
mp.Array("i", [1, "x"]) | mp.Array("i", 3)[5] | mp.Array("i", 3)[-1] | mp.Array("i", 3)["x"]
mp.Array("i", range(6))[::2] | mp.Array("i", 3, lock=False)[:] | mp.Array("i", 3, lock=5)
len(mp.Array("i", 3)) | list(mp.Array("i", 3)) | mp.Array("i", 3.5) | mp.Array("i", None)
mp.Array("i", 3).get_lock() | mp.RawValue("i", 5) | mp.RawArray("i", 3)[:] | mp.RawArray("i", -1)
mp.RawValue("x")
"""


def fails() -> Iterator[int]:
    yield 1
    raise ZeroDivisionError("of the input")


def shown(value: object) -> str:
    """repr(), without what differs from object to object and the names of the packages."""
    text = re.sub(r" at 0x[0-9a-f]+|0x[0-9a-f]+", "", repr(value))
    return text.replace("trireme.", "").replace("concurrent.", "").replace("_results.", "pool.")


class Names(dict[str, Any]):
    """What an expression may speak of, made when it does."""

    def __init__(self, door: str, kind: str = "ProcessPoolExecutor") -> None:
        mp = module(door).get_context("fork")
        for sub in ("pool", "queues"):
            setattr(mp, sub, module(door, sub))
        cf = module(FUTURES[door])
        super().__init__(globals(), mp=mp, cf=cf)
        self.end: list[Callable[[], object]] = []
        self.makers: dict[str, Callable[[], Any]] = {
            "p": lambda: mp.Pool(1),
            "tp": lambda: mp.pool.ThreadPool(1),
            "x": lambda: getattr(cf, kind)(1),
            "f": lambda: self.ended(self["x"].submit(abs, -1)),
            "failed": lambda: self.ended(self["x"].submit(abs, "x")),
            "g": lambda: self["x"].submit(time.sleep, 0.2),
            "q": mp.Queue,
            "q2": lambda: mp.Queue(1),
            "sq": mp.SimpleQueue,
            "jq": mp.JoinableQueue,
            "l": mp.Lock,
            "rl": mp.RLock,
            "s": lambda: mp.Semaphore(2),
            "bs": lambda: mp.BoundedSemaphore(2),
            "c": mp.Condition,
            "e": mp.Event,
        }

    @staticmethod
    def ended(future: Any) -> Any:
        future.exception(20)
        return future

    def __missing__(self, name: str) -> Any:
        if name not in self.makers:
            raise KeyError(name)
        self[name] = made = self.makers[name]()
        if name in ("p", "tp"):
            self.end += [made.terminate, made.join]
        elif name == "x":
            self.end.append(made.shutdown)
        return made

    def answer(self, expression: str) -> str:
        try:
            return shown(eval(expression, {}, self))  # noqa: S307
        except BaseException as exc:
            return f"raises {type(exc).__name__}"

    def close(self) -> None:
        for function in self.end:
            function()


def expressions(text: str) -> list[str]:
    return [one.strip() for line in text.strip().splitlines() for one in line.split(" | ")]


def compare(text: str, kind: str = "ProcessPoolExecutor", fresh: tuple[str, ...] = ()) -> None:
    """All of them on the same pool, but for the names in fresh, which each has for itself."""
    answers: dict[str, list[str]] = {}
    for door in (ORIGINAL, OURS):
        names = Names(door, kind)
        for expression in expressions(text):
            for name in fresh:
                names.pop(name, None)
            answers.setdefault(expression, []).append(names.answer(expression))
        names.close()
    different = [f"{e}: {a[0]}, ours: {a[1]}" for e, a in answers.items() if a[0] != a[1]]
    assert not different, "\n" + "\n".join(different)


def test_pools_answer_alike() -> None:
    compare(POOL)


def test_ended_pools_answer_alike() -> None:
    compare(ENDED_POOL, fresh=("p",))


def test_openings_answer_alike() -> None:
    compare(OPENING)


@pytest.mark.parametrize("kind", ["ProcessPoolExecutor", "ThreadPoolExecutor"])
def test_executors_answer_alike(kind: str) -> None:
    compare(EXECUTORS, kind, fresh=("g",))
    compare(ENDED_EXECUTOR, kind, fresh=("x",))


def test_queues_answer_alike() -> None:
    compare(QUEUES, fresh=("q", "q2", "sq", "jq"))


def test_locks_answer_alike() -> None:
    compare(LOCKS, fresh=("l", "rl", "s", "bs", "c", "e"))


def test_shared_objects_answer_alike() -> None:
    compare(SHARED)


def test_differences_on_purpose() -> None:
    ours = Names(OURS)
    # The original gives [None] for each item and calls nothing.
    assert ours.answer("p.map(abs, [1], 0)") == "raises ValueError"
    assert ours.answer("tp.map(abs, [1], 0)") == "raises ValueError"
    # The original loses its worker, and waits for ever.
    assert ours.answer("tp.apply(sys.exit, (3,))") == "raises SystemExit"
    assert ours.answer("p.apply(abs, (1,))") == "1"
    # Futures of a pool are completed by the pool: the original lets both do it, and one fails.
    assert ours.answer("g.set_result(1)") == "raises RuntimeError"
    ours.close()


assert copy and ctypes and itertools and os and pickle and sys  # the expressions use them
