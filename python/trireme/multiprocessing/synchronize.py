# SPDX-License-Identifier: BSD-3-Clause
"""multiprocessing.synchronize on the C core: locks without names that outlive their holders.

Each class here is the original's, standing on slots of shared memory (``_core/sync.c``) instead of
named semaphores.  So isinstance with the original's holds, and what is not said here is inherited.
A slot travels to a spawned process as its page's uid, its number, and the page's descriptor, which
is sent once per process however many locks of that page go with it.
"""

from __future__ import annotations

import os
import weakref
from multiprocessing import reduction, util
from multiprocessing import synchronize as _original

from trireme import _core

from . import context
from ._lend import Lender

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    Slot: TypeAlias = _core.SemLock | _core.EventSlot | _core.CondSlot
    Travelling: TypeAlias = tuple[bytes, int, Any]

__all__ = ["BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]

_theirs: Any = _original
RECURSIVE_MUTEX: int = _theirs.RECURSIVE_MUTEX
SEMAPHORE: int = _theirs.SEMAPHORE
SEM_VALUE_MAX: int = _theirs.SEM_VALUE_MAX
_LOCK = 2  # the core's kind for a lock that is neither recursive nor counts

# A Process holds none of the locks that the one that it was forked from held.
util.register_after_fork(_core.SemLock, lambda core: core._begin_free())

# What was lent to each process that is being started: descriptors by the uid of their page.
_lent: weakref.WeakKeyDictionary[Any, dict[bytes, Any]] = weakref.WeakKeyDictionary()


def _lend(slot: Slot, made_for_fork: bool) -> Travelling:
    """How *slot* travels to the process that is being started."""
    popen: Any = context.get_spawning_popen()
    if made_for_fork and not isinstance(popen, Lender):
        # The core could, but programs that work here should also work with the original.
        raise RuntimeError(
            "A SemLock created in a fork context cannot be given to a process that is spawned; "
            "make it with the context of that process"
        )
    uid, number, fd = slot._lend()
    if fd < 0:
        raise ValueError("a lock that was made under a file size limit can only be inherited")
    given = _lent.setdefault(popen, {})
    if uid not in given:
        given[uid] = reduction.DupFd(fd)
    return uid, number, given[uid]


def _join(kind: Any, travelled: Travelling, *rest: int) -> Any:
    """The object of the core that _lend() packed."""
    uid, number, dup = travelled
    try:
        return kind._rebuild(uid, number, -1, *rest)
    except LookupError:
        fd = dup.detach()
        os.set_inheritable(fd, False)
        return kind._rebuild(uid, number, fd, *rest)


def _is_fork(ctx: Any) -> bool:
    if ctx is None:
        ctx = context._default_context.get_context()
    return bool(ctx.get_start_method() == "fork")


class SemLock(_original.SemLock):
    """What locks and semaphores have in common."""

    _semlock: _core.SemLock  # type: ignore[assignment]

    def __init__(self, kind: int, value: int, maxvalue: int, *, ctx: Any) -> None:
        self._is_fork_ctx = _is_fork(ctx)
        self._semlock = _core.SemLock(kind, value, maxvalue)
        self._make_methods()

    def _make_methods(self) -> None:
        # In the object, as in the original: one call less each time.
        self.acquire = self._semlock.acquire  # type: ignore[method-assign]
        self.release = self._semlock.release  # type: ignore[method-assign]

    def __getstate__(self) -> Any:
        context.assert_spawning(self)
        core = self._semlock
        return _lend(core, self._is_fork_ctx), core._kind, core.maxvalue

    def __setstate__(self, state: Any) -> None:
        travelled, kind, maxvalue = state
        self._semlock = _join(_core.SemLock, travelled, kind, maxvalue)
        self._is_fork_ctx = False
        self._make_methods()


class Semaphore(SemLock, _original.Semaphore):
    """A count that acquire() takes from and release() adds to."""

    def __init__(self, value: int = 1, *, ctx: Any) -> None:
        super().__init__(SEMAPHORE, value, SEM_VALUE_MAX, ctx=ctx)


class BoundedSemaphore(Semaphore, _original.BoundedSemaphore):
    """A semaphore that refuses to be released more often than it was acquired."""

    def __init__(self, value: int = 1, *, ctx: Any) -> None:
        SemLock.__init__(self, SEMAPHORE, value, value, ctx=ctx)


class Lock(SemLock, _original.Lock):
    """A lock that any process may release; taken over from a holder that died."""

    def __init__(self, *, ctx: Any) -> None:
        super().__init__(_LOCK, 1, 1, ctx=ctx)


class RLock(SemLock, _original.RLock):
    """A lock that its holder may take again; taken over from a holder that died."""

    def __init__(self, *, ctx: Any) -> None:
        super().__init__(RECURSIVE_MUTEX, 1, 1, ctx=ctx)


class _Count:
    """A number that looks like a semaphore of the original's Condition to whoever reads it."""

    def __init__(self, read: Callable[[], int]) -> None:
        self.get_value = self._get_value = read

    @property
    def _semlock(self) -> _Count:
        return self


class Condition(_original.Condition):
    """notify(n) wakes the n that waited longest of those that still live, and waits for nobody."""

    def __init__(self, lock: Any = None, *, ctx: Any) -> None:
        self._lock = lock or RLock(ctx=ctx)
        self._is_fork_ctx = _is_fork(ctx)
        self._waiters = _core.CondSlot()
        self._make_methods()

    def _make_methods(self) -> None:
        self.acquire = self._lock.acquire  # type: ignore[method-assign]
        self.release = self._lock.release  # type: ignore[method-assign]
        core: Any = self._lock._semlock
        self._take_again = core._take_again if isinstance(core, _core.SemLock) else self.acquire

    def __getstate__(self) -> Any:
        context.assert_spawning(self)
        return self._lock, _lend(self._waiters, self._is_fork_ctx)

    def __setstate__(self, state: Any) -> None:
        self._lock, travelled = state
        self._waiters = _join(_core.CondSlot, travelled)
        self._is_fork_ctx = False
        self._make_methods()

    # Programs and tests look at the original's semaphores to see how many wait.
    @property
    def _sleeping_count(self) -> Any:
        return _Count(self._waiters.waiters)

    @property
    def _woken_count(self) -> Any:
        return _Count(int)

    @property
    def _wait_semaphore(self) -> Any:
        return _Count(int)

    def wait(self, timeout: float | None = None) -> bool:
        """Give up the lock, wait for a notification, take the lock again.  Was there one?"""
        held: Any = self._lock._semlock
        assert held._is_mine(), "wait() is for who holds the condition's lock"
        count: int = held._count()
        waiters = self._waiters
        me = waiters.enter()
        given = 0
        missed = False
        try:
            try:
                while given < count:
                    self._lock.release()
                    given += 1
                waiters.wait(me, timeout)
                notified = waiters.leave(me)
            except BaseException:
                missed = waiters.leave(me)
                raise
        finally:
            if given:
                self._take_again()
            for _ in range(1, given):
                self._lock.acquire()
            if missed:  # an interrupted waiter passes on what another could have had
                waiters.notify(1)
        return notified

    def notify(self, n: int = 1) -> None:
        """Wake *n* of those that wait."""
        held: Any = self._lock._semlock
        assert held._is_mine(), "notify() is for who holds the condition's lock"
        if isinstance(held, _core.SemLock):
            self._waiters.notify(n, held)
        else:
            self._waiters.notify(n)


class Event(_original.Event):
    """A flag.  Who waits for it sees every set(), even one that clear() follows at once."""

    def __init__(self, *, ctx: Any) -> None:
        self._is_fork_ctx = _is_fork(ctx)
        self._flag = _core.EventSlot()

    def __getstate__(self) -> Any:
        context.assert_spawning(self)
        return _lend(self._flag, self._is_fork_ctx)

    def __setstate__(self, state: Any) -> None:
        self._flag = _join(_core.EventSlot, state)
        self._is_fork_ctx = False

    def is_set(self) -> bool:
        """Is it set?"""
        return self._flag.is_set()

    def set(self) -> None:
        """Set it and wake all that wait."""
        self._flag.set()

    def clear(self) -> None:
        """Unset it."""
        self._flag.clear()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set.  False: the time was up."""
        return self._flag.wait(timeout)


class Barrier(_original.Barrier):
    """The original's, on our condition and memory."""

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        ctx: Any,
    ) -> None:
        from .heap import BufferWrapper

        # Two ints: the state and how many have come.
        cond = Condition(ctx=ctx)
        mine: Any = self
        mine.__setstate__((parties, action, timeout, cond, BufferWrapper(8)))
        self._state = 0
        self._count = 0


def __getattr__(name: str) -> Any:
    return getattr(_original, name)
