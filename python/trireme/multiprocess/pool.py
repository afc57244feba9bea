# SPDX-License-Identifier: BSD-3-Clause
"""Pool and ThreadPool of trireme.multiprocessing, with results by value."""

from __future__ import annotations

from ..multiprocessing import pool as _facade
from ..multiprocessing.pool import (
    ApplyResult as ApplyResult,
)
from ..multiprocessing.pool import (
    AsyncResult as AsyncResult,
)
from ..multiprocessing.pool import (
    IMapIterator as IMapIterator,
)
from ..multiprocessing.pool import (
    IMapUnorderedIterator as IMapUnorderedIterator,
)
from ..multiprocessing.pool import (
    MapResult as MapResult,
)
from ..multiprocessing.pool import (
    MaybeEncodingError as MaybeEncodingError,
)
from ..multiprocessing.pool import (
    RemoteTraceback as RemoteTraceback,
)
from ..multiprocessing.pool import (
    ThreadPool,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Pool", "ThreadPool"]


class Pool(_facade.Pool):
    """A pool of worker processes; what tasks return may be made of code, too."""

    _by_name = False


def __getattr__(name: str) -> Any:
    return getattr(_facade, name)
