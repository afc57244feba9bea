# SPDX-License-Identifier: BSD-3-Clause
"""The contexts of trireme.multiprocessing whose pools, queues and pipes send code by value."""

from __future__ import annotations

from ..multiprocessing import context as _facade

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .pool import Pool as _Pool

    _Base = _facade._WithPool
else:
    _Base = object


class _WithPool(_Base):
    """What these contexts have in place of the facade's."""

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

    def Pipe(self, duplex: bool = True) -> Any:
        """Returns two connection objects connected by a pipe"""
        from ._pipes import pipe

        return pipe(duplex)

    def _queues(self) -> Any:
        from . import queues

        return queues

    def get_context(self, method: str | None = None) -> Any:
        """The context of that start method; this or the default one for None."""
        found = super().get_context(method)
        return _contexts.get(type(found), found)


class ForkContext(_WithPool, _facade.ForkContext):
    """Processes are forks of this one."""


class SpawnContext(_WithPool, _facade.SpawnContext):
    """Processes are fresh interpreters."""


class ForkServerContext(_WithPool, _facade.ForkServerContext):
    """Processes are forks of a small process that was started early."""


class DefaultContext(_WithPool, _facade.DefaultContext):
    """The context behind the module's functions."""


_contexts: dict[type, Any] = {
    _facade.ForkContext: ForkContext(),
    _facade.SpawnContext: SpawnContext(),
    _facade.ForkServerContext: ForkServerContext(),
}
_default_context = DefaultContext()


def __getattr__(name: str) -> Any:
    return getattr(_facade, name)
