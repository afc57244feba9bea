# SPDX-License-Identifier: BSD-3-Clause
"""Who holds a lock of trireme.multiprocessing after a fork, and what acquire() is given."""

from __future__ import annotations

import multiprocessing
import os
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ends_with
from trireme import multiprocessing as facade

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 30.0


def ours() -> Any:
    return facade.get_context("fork")


def child_of(fork: Callable[[Callable[[], int]], int], lock: Any) -> int:
    """What a child of the holder finds: whether it holds the lock, too, and how often."""
    lock.acquire()

    def look() -> int:
        core = lock._semlock
        return 100 * core._is_mine() + 10 * core._count() + lock.acquire(False)

    try:
        return fork(look)
    finally:
        lock.release()


def by_os_fork(look: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = look()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def by_process(look: Callable[[], int]) -> int:
    process = ours().Process(target=lambda: os._exit(look()))
    process.start()
    process.join(PATIENCE)
    return int(process.exitcode)


@pytest.mark.parametrize("kind", ["RLock", "Lock", "Semaphore"])
@pytest.mark.parametrize("fork", [by_os_fork, by_process])
def test_what_a_child_of_the_holder_holds(fork: Any, kind: str) -> None:
    """A Process holds nothing; after os.fork() alone both take themselves for the holder."""
    theirs = child_of(fork, getattr(multiprocessing.get_context("fork"), kind)())
    assert child_of(fork, getattr(ours(), kind)()) == theirs
    if kind == "RLock":
        assert theirs == (111 if fork is by_os_fork else 0)


@pytest.mark.parametrize("kind", ["RLock", "Condition"])
def test_code_that_locks_forks_and_locks_again(kind: str) -> None:
    lock = getattr(ours(), kind)()
    with lock:
        pid = os.fork()
        if pid == 0:
            code = 255
            try:
                with lock:
                    code = 3
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_both_sides_of_a_fork_leave_the_lock() -> None:
    lock = ours().RLock()
    with lock:
        pid = os.fork()
        if pid:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert by_process(lambda: int(lock.acquire(False))) == 0, "the child gave it away"
    if pid == 0:
        os._exit(lock._semlock._count())
    assert lock._semlock._count() == 0
    assert by_process(lambda: int(lock.acquire(False))) == 1


def test_a_grandchild_holds_nothing_that_a_process_does_not() -> None:
    for context in (ours(), multiprocessing.get_context("fork")):
        lock = context.RLock()
        with lock:
            assert by_process(lambda lock=lock: by_os_fork(lambda: int(lock.acquire(False)))) == 0


def test_what_is_asked_before_a_process_is_ready() -> None:
    script = (
        "import os, multiprocessing\n"
        "from trireme import multiprocessing as ours\n"
        "for door in (ours, multiprocessing):\n"
        "    lock = door.get_context('fork').RLock()\n"
        "    os.register_at_fork(after_in_child=lambda: lock._semlock._count())\n"
        "    lock.acquire()\n"
        "    child = lambda: os._exit(lock._semlock._count() + lock.acquire(False))\n"
        "    process = door.get_context('fork').Process(target=child)\n"
        "    process.start()\n"
        "    process.join(30)\n"
        "    assert process.exitcode == 0, process.exitcode\n"
    )
    ends_with(script, 0)


def test_a_worker_holds_nothing_that_its_owner_holds() -> None:
    script = (
        "import sys, trireme\n"
        "from trireme import multiprocessing\n"
        "lock = multiprocessing.get_context('fork').RLock()\n"
        "lock.acquire()\n"
        "def look():\n"
        "    lock = vars(sys.modules['__main__'])['lock']\n"
        "    return lock._semlock._count(), lock.acquire(False)\n"
        "with trireme.Pool(1, start='fork') as pool:\n"
        "    assert look() == (1, True)\n"
        "    assert pool.submit(look).result(30) == (0, False)\n"
    )
    ends_with(script, 0)


class Odd:
    def __init__(self, exc: BaseException) -> None:
        self.exc = exc

    def __float__(self) -> float:
        raise self.exc


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore"])
def test_arguments_of_acquire_and_exit(kind: str) -> None:
    for context in (ours(), multiprocessing.get_context("fork")):
        lock = getattr(context, kind)()
        with pytest.raises(KeyError):
            lock.acquire(timeout=Odd(KeyError("x")))
        with pytest.raises(KeyboardInterrupt):
            lock.acquire(timeout=Odd(KeyboardInterrupt()))
        with pytest.raises(OverflowError):
            lock.acquire(timeout=10**400)
        with pytest.raises(TypeError):
            lock.acquire(False, "soon")
        assert lock.acquire(False, 5) and lock._semlock._count() == 1
        with pytest.raises(TypeError):
            lock.__exit__(None, None, None, None)
        assert lock._semlock._count() == 1
        lock.release()
