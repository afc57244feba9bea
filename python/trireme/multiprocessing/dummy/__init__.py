# SPDX-License-Identifier: BSD-3-Clause
"""multiprocessing.dummy: threads under the names of processes; its Pool is Trireme's."""

from __future__ import annotations

import multiprocessing.dummy as _original
import sys
from multiprocessing.dummy import *  # noqa: F403  (what is not named below is the original's)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ..pool import ThreadPool

__all__ = list(_original.__all__)


def Manager() -> Any:  # type: ignore[no-redef]
    """This module: threads need nobody to share their objects."""
    return sys.modules[__name__]


def Pool(  # type: ignore[no-redef]
    processes: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
) -> ThreadPool:
    """A ThreadPool."""
    from ..pool import ThreadPool

    return ThreadPool(processes, initializer, initargs)


def __getattr__(name: str) -> Any:
    return getattr(_original, name)
