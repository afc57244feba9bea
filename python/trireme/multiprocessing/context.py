# SPDX-License-Identifier: BSD-3-Clause
"""Contexts: the original's, but for ``Pool``.

There is one start method for a process, whichever of the two modules sets it: the default context
here keeps nothing of its own and asks the original's.
"""

from __future__ import annotations

from multiprocessing import context as _original
from multiprocessing import reduction as reduction  # the original's module has this name, too
from multiprocessing.context import (
    AuthenticationError,
    BaseContext,
    BufferTooShort,
    Process,
    ProcessError,
    TimeoutError,
    assert_spawning,
    get_spawning_popen,
    set_spawning_popen,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Literal, overload

    from .pool import Pool as _Pool

    _Base = BaseContext
else:
    _Base = object

__all__ = [
    "AuthenticationError",
    "BaseContext",
    "BufferTooShort",
    "DefaultContext",
    "ForkContext",
    "ForkServerContext",
    "Process",
    "ProcessError",
    "SpawnContext",
    "TimeoutError",
    "assert_spawning",
    "get_spawning_popen",
    "set_spawning_popen",
]


class _WithPool(_Base):
    """What our contexts have in place of the original's."""

    def Pool(  # type: ignore[override]
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
    ) -> _Pool:
        """Returns a process pool object"""
        from .pool import Pool

        return Pool(
            processes,
            initializer,
            initargs,
            maxtasksperchild,
            context=self.get_context(),
            timeout=timeout,
            retries=retries,
        )

    def Queue(self, maxsize: int = 0) -> Any:
        """Returns a queue object"""
        return self._queues().Queue(maxsize, ctx=self.get_context())

    def JoinableQueue(self, maxsize: int = 0) -> Any:
        """Returns a queue object"""
        return self._queues().JoinableQueue(maxsize, ctx=self.get_context())

    def SimpleQueue(self) -> Any:
        """Returns a queue object"""
        return self._queues().SimpleQueue(ctx=self.get_context())

    def _queues(self) -> Any:
        from . import queues

        return queues

    def Lock(self) -> Any:
        """Returns a non-recursive lock object"""
        return self._locks().Lock(ctx=self.get_context())

    def RLock(self) -> Any:
        """Returns a recursive lock object"""
        return self._locks().RLock(ctx=self.get_context())

    def Condition(self, lock: Any = None) -> Any:
        """Returns a condition object"""
        return self._locks().Condition(lock, ctx=self.get_context())

    def Semaphore(self, value: int = 1) -> Any:
        """Returns a semaphore object"""
        return self._locks().Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value: int = 1) -> Any:
        """Returns a bounded semaphore object"""
        return self._locks().BoundedSemaphore(value, ctx=self.get_context())

    def Event(self) -> Any:
        """Returns an event object"""
        return self._locks().Event(ctx=self.get_context())

    def Barrier(
        self,
        parties: int,
        action: Callable[..., object] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Returns a barrier object"""
        return self._locks().Barrier(parties, action, timeout, ctx=self.get_context())

    def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:
        """Returns a shared object"""
        return self._shared().RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type: Any, size_or_initializer: Any) -> Any:
        """Returns a shared array"""
        return self._shared().RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
        """Returns a synchronized shared object"""
        return self._shared().Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True) -> Any:
        """Returns a synchronized shared array"""
        return self._shared().Array(
            typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context()
        )

    def _locks(self) -> Any:
        from . import synchronize

        return synchronize

    def _shared(self) -> Any:
        from . import sharedctypes

        return sharedctypes

    if TYPE_CHECKING:

        @overload
        def get_context(self, method: None = None) -> DefaultContext: ...
        @overload
        def get_context(self, method: Literal["spawn"]) -> SpawnContext: ...
        @overload
        def get_context(self, method: Literal["fork"]) -> ForkContext: ...
        @overload
        def get_context(self, method: Literal["forkserver"]) -> ForkServerContext: ...
        @overload
        def get_context(self, method: str) -> _WithPool: ...

    def get_context(self, method: str | None = None) -> Any:
        """The context of that start method; for None this one, or the default one."""
        return self._own() if method is None else concrete(method)

    def _own(self) -> Any:
        return self


class ForkContext(_WithPool, _original.ForkContext):
    """Processes are forks of this one."""


class SpawnContext(_WithPool, _original.SpawnContext):
    """Processes are fresh interpreters."""


class ForkServerContext(_WithPool, _original.ForkServerContext):
    """Processes are forks of a small process that was started early."""


_concrete_contexts: dict[str, Any] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}


def concrete(method: str) -> Any:
    """The context for *method*; raises the original's ValueError if there is none."""
    theirs = _original._default_context.get_context(method)
    return _concrete_contexts.get(theirs.get_start_method(), theirs)


class DefaultContext(_WithPool, _original.DefaultContext):
    """The context behind the module's functions: the original's default, with our pools."""

    def __init__(self) -> None:
        """Without a state of its own."""

    # Whoever looks into the original's finds there what is true.
    @property
    def _default_context(self) -> Any:
        return _original._default_context._default_context  # type: ignore[attr-defined]

    @property
    def _actual_context(self) -> Any:
        return _original._default_context._actual_context  # type: ignore[attr-defined]

    def _own(self) -> Any:
        theirs = _original._default_context.get_context()
        return _concrete_contexts.get(theirs.get_start_method(), theirs)

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Set the start method of this process, for the original module, too."""
        _original._default_context.set_start_method(method, force)

    def get_start_method(self, allow_none: bool = False) -> Any:
        """The name of the start method; with *allow_none*, None while none was set."""
        return _original._default_context.get_start_method(allow_none)


_default_context = DefaultContext()


def __getattr__(name: str) -> Any:
    return getattr(_original, name)
