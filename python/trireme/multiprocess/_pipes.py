# SPDX-License-Identifier: BSD-3-Clause
"""Pipe() of trireme.multiprocess: the original's connections, with code by value in messages.

Only sending differs.  A message is a pickle that any connection reads.
"""

from __future__ import annotations

from multiprocessing import connection as _original
from multiprocessing import reduction

from .. import _pickling
from ..multiprocessing import _ways

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_theirs: Any = _original


class _Connection(_theirs.Connection):  # type: ignore[misc]
    """One end of a pipe."""

    def send(self, obj: Any) -> None:
        """Send an object, which may be made of code."""
        plain = None
        try:
            plain = bytes(reduction.ForkingPickler.dumps(obj))
            if not _pickling._names_strange_module(plain):
                self.send_bytes(plain)
                return
        except (OSError, ValueError):
            raise  # of the pipe
        except Exception:
            pass
        try:
            _ways.follow()
            message = _pickling.dumps_inband(obj)
        except Exception:
            if plain is None:
                raise
            message = plain
        self.send_bytes(message)


def _rebuild(descriptor: Any, readable: bool, writable: bool) -> _Connection:
    return _Connection(descriptor.detach(), readable, writable)


def _reduce(end: _Connection) -> Any:
    return _rebuild, _theirs.reduce_connection(end)[1]


reduction.ForkingPickler.register(_Connection, _reduce)


def pipe(duplex: bool) -> tuple[_Connection, _Connection]:
    """The two ends of a pipe."""
    ends = _theirs.Pipe(duplex)
    for end in ends:
        end.__class__ = _Connection
    return ends  # type: ignore[no-any-return]
