# SPDX-License-Identifier: BSD-3-Clause
"""Calls, maps, results, callbacks and failures of a pool of trireme.multiprocessing.

All of it must agree with the original, so each test runs against both, with workers that are
forked, spawned, and threads.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from facadelib import ORIGINAL, OURS, fail, module, return_lambda, touch
from tasklib import square, wait_for


def add(x: int, y: int = 0, timeout: int = 0) -> int:
    return x + y + timeout


def fail_on_odd(x: int) -> int:
    if x % 2:
        raise ValueError(x)
    return x


class Unpicklable(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Refuses:
    def __reduce__(self) -> Any:
        raise RuntimeError("cannot pickle")


def raise_unpicklable() -> None:
    raise Unpicklable("here")


def return_lock() -> Any:
    return threading.Lock()


@pytest.fixture(
    params=[f"{door} {way}" for door in (ORIGINAL, OURS) for way in ("fork", "spawn", "thread")],
    scope="module",
)
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One pool of two for the tests that leave it as it was."""
    door, way = request.param.split()
    threads = way == "thread"
    p = module(door, "pool").ThreadPool(2) if threads else module(door).get_context(way).Pool(2)
    with p:
        p.way = way
        yield p
    p.join()


def test_calls_and_maps(pool: Any) -> None:
    assert pool.apply(square, (5,)) == 25
    assert pool.apply(add, (1,), {"y": 2, "timeout": 3}) == 6
    assert pool.map(square, range(10)) == [x * x for x in range(10)]
    assert pool.map(square, iter(range(10)), chunksize=3) == [x * x for x in range(10)]
    assert pool.map(str.upper, "abc") == ["A", "B", "C"]
    assert pool.map(square, {3: 0, 4: 0}) == [9, 16]
    assert pool.map(square, []) == [] and list(pool.imap(square, [])) == []
    pairs = list(zip(range(9), range(9), strict=True))
    assert pool.starmap(add, pairs) == [x + y for x, y in pairs]
    assert pool.starmap_async(add, pairs, 2).get() == [x + y for x, y in pairs]
    assert pool.map_async(square, range(5)).get(timeout=20) == [0, 1, 4, 9, 16]
    assert list(pool.imap(square, iter(range(100)))) == [x * x for x in range(100)]
    assert list(pool.imap(square, range(100), 7)) == [x * x for x in range(100)]
    assert sorted(pool.imap_unordered(square, range(100))) == [x * x for x in range(100)]
    assert sorted(pool.imap_unordered(square, range(100), 7)) == [x * x for x in range(100)]


def test_a_map_over_an_empty_input_calls_no_callback(pool: Any) -> None:
    called: list[Any] = []
    result = pool.map_async(square, [], 1, called.append, called.append)
    assert result.get(20) == [] and result.ready() and result.successful()
    assert called == []


def test_chunk_sizes_are_checked(pool: Any) -> None:
    for method in (pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="Chunksize must be 1"):
            method(square, [1], 0)
        assert isinstance(method(square, [1], 2), type(x for x in ()))


def test_the_result_of_a_call_that_has_not_ended(pool: Any, tmp_path: Path) -> None:
    call, chunks, first, some = (tmp_path / name for name in ("call", "chunks", "first", "some"))
    result = pool.apply_async(wait_for, (str(call),))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    assert result.wait(0.01) is None
    call.touch()
    assert result.get() is None and result.successful()
    mapped = pool.map_async(wait_for, [str(chunks)] * 2, 1)
    with pytest.raises(multiprocessing.TimeoutError):
        mapped.get(timeout=0.01)
    assert not mapped.ready()
    chunks.touch()
    assert mapped.get() == [None, None]
    iterator = pool.imap(wait_for, [str(first)])
    with pytest.raises(multiprocessing.TimeoutError):
        iterator.next(timeout=0.01)
    first.touch()
    assert iterator.next(20) is None
    with pytest.raises(StopIteration):
        iterator.next()
    unordered = pool.imap_unordered(wait_for, [str(some)])
    with pytest.raises(multiprocessing.TimeoutError):
        unordered.next(timeout=0.01)
    some.touch()
    assert next(unordered) is None
    with pytest.raises(StopIteration):
        next(unordered)


def raise_timeout() -> None:
    raise TimeoutError("mine")


def test_a_tasks_own_timeout_error_is_its_own(pool: Any) -> None:
    with pytest.raises(TimeoutError, match="mine") as caught:
        pool.apply_async(raise_timeout).get(timeout=20)
    assert type(caught.value) is TimeoutError


def test_callbacks_come_before_get_returns(pool: Any) -> None:
    for _ in range(20):
        seen: list[Any] = []
        assert pool.apply_async(square, (3,), {}, seen.append).get(20) == 9
        assert seen == [9]
        result = pool.apply_async(fail, (1,), {}, None, seen.append)
        with pytest.raises(KeyError):
            result.get(20)
        assert type(seen[1]) is KeyError and not result.successful()
        pool.map_async(square, [1, 2], 1, seen.append, seen.append).wait(20)
        assert seen[2] == [1, 4]
        pool.map_async(fail_on_odd, [1, 2], 1, seen.append, seen.append).wait(20)
        assert type(seen[3]) is ValueError


def test_a_result_is_not_ready_before_its_callback_has_returned(pool: Any) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        begun.set()
        assert go.wait(20)

    result = pool.apply_async(square, (3,), {}, slow)
    assert begun.wait(20)
    assert not result.ready()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    go.set()
    assert result.get(20) == 9


def test_callbacks_may_wait_for_who_submits_and_run_one_by_one(pool: Any) -> None:
    lock = threading.Lock()
    begun = threading.Event()
    threads: list[Any] = []

    def locked(_: object) -> None:
        begun.set()
        with lock:
            threads.append(threading.current_thread())

    with lock:  # whoever submits holds what the callback wants
        results = [pool.apply_async(square, (i,), {}, locked) for i in range(5)]
        assert begun.wait(20)
        results.append(pool.apply_async(square, (5,), {}, locked))
        assert not threads
    for i, result in enumerate(results):
        assert result.get(20) == i * i
    assert len(threads) == 6 and len(set(threads)) == 1
    assert threading.current_thread() not in threads


def test_an_exception_carries_the_workers_traceback(pool: Any) -> None:
    with pytest.raises(KeyError) as caught:
        pool.apply(fail, (7,))
    assert caught.value.args == (7,)
    if pool.way == "thread":
        assert caught.value.__cause__ is None
        return
    cause: Any = caught.value.__cause__
    assert type(cause) is multiprocessing.pool.RemoteTraceback  # type: ignore[attr-defined]
    assert "raise KeyError(x)" in cause.tb and cause.tb.startswith('\n"""\nTraceback')
    for failing in (pool.map, pool.imap, pool.imap_unordered):
        with pytest.raises(KeyError) as caught:
            list(failing(fail, [7]))
        assert type(caught.value.__cause__) is type(cause)


def test_a_map_that_fails_runs_the_other_chunks(pool: Any, tmp_path: Any) -> None:
    paths = [str(tmp_path / str(i)) for i in range(20)]
    with pytest.raises(ValueError, match="0$"):
        pool.map(touch, paths, 1)
    assert len(os.listdir(tmp_path)) == 20


def test_an_iterator_goes_on_behind_a_failure(pool: Any) -> None:
    iterator = pool.imap(fail_on_odd, range(4))
    assert next(iterator) == 0
    with pytest.raises(ValueError):
        next(iterator)
    assert next(iterator) == 2
    with pytest.raises(ValueError):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


class Said(Exception):
    pass


def saying(total: int, when: int) -> Iterator[int]:
    for i in range(total):
        if i == when:
            raise Said
        yield i


def test_an_input_that_fails(pool: Any) -> None:
    with pytest.raises(Said) as caught:
        pool.map(square, saying(5, 2))
    assert caught.value.__cause__ is None
    iterator = pool.imap(square, saying(5, 2))
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(Said):
        next(iterator)
    # In chunks, what was gathered for the chunk that failed goes with it.
    iterator = pool.imap(square, saying(9, 3), 2)
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(Said):
        next(iterator)
    got = []
    with pytest.raises(Said):
        for value in pool.imap_unordered(square, saying(5, 2)):
            got.append(value)
    assert set(got) <= {0, 1}

    class Special:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            raise Said

    with pytest.raises(Said):
        pool.map_async(square, Special(), 1).get(20)


def test_what_cannot_be_called_fails_where_the_result_is_asked_for(pool: Any) -> None:
    result = pool.apply_async(square, 5)
    with pytest.raises(TypeError):
        result.get(20)
    result = pool.apply_async(5, (5,))
    with pytest.raises(TypeError):
        result.get(20)
    assert pool.apply(square, (2,)) == 4


def test_arguments_that_cannot_be_pickled(pool: Any) -> None:
    if pool.way == "thread":
        pytest.skip("threads pickle nothing")
    with pytest.raises(RuntimeError, match="cannot pickle"):
        pool.map(square, [Refuses()] * 3)
    with pytest.raises(TypeError):
        pool.apply(square, (threading.Lock(),))
    assert pool.apply(square, (2,)) == 4


def test_results_that_cannot_be_pickled(pool: Any) -> None:
    if pool.way == "thread":
        pytest.skip("threads pickle nothing")
    from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

    tasks = (return_lock, "lock"), (return_lambda, "lambda"), (raise_unpicklable, None)
    for task, text in tasks:
        seen: list[Any] = []
        result = pool.apply_async(task, error_callback=seen.append)
        with pytest.raises(MaybeEncodingError, match=text) as caught:
            result.get(20)
        assert isinstance(caught.value.exc, str) and (text or "") in caught.value.value
        assert seen == [caught.value]


def rows(i: int) -> list[tuple[int, int]]:
    return [(i, j) for j in range(3000)]


def test_threads_that_wait_for_one_map_all_get_it(pool: Any) -> None:
    for _ in range(20):
        result = pool.map_async(rows, range(8), 1)
        got: list[int] = []
        threads = [
            threading.Thread(target=lambda r=result, g=got: g.append(len(r.get(20))))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert got == [8, 8, 8] and len(result.get(20)) == 8


def test_callbacks_go_on_after_a_thread_could_not_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trireme.multiprocessing._results import Teller

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    teller, seen = Teller(), []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start new thread"):
        teller.call(lambda: seen.append(1), 1)
    monkeypatch.undo()
    teller.call(lambda: seen.append(2), 2)
    teller.end(wait=True)
    assert seen == [1, 2]


def test_get_gives_the_same_object_each_time(pool: Any) -> None:
    result = pool.apply_async(fail, (1,))
    errors = []
    for _ in range(2):
        with pytest.raises(KeyError) as caught:
            result.get(20)
        errors.append(caught.value)
    assert errors[0] is errors[1]
    mapped = pool.map_async(square, [1, 2])
    assert mapped.get(20) is mapped.get(20)
