# SPDX-License-Identifier: BSD-3-Clause
"""The thread that waits for a pool when nobody else does: trireme-watch.

It runs while somebody is to be told of an end (callbacks, ``wait()``, ``await``), and where nobody
is left: a pool that was dropped with tasks in flight ends after them.  It is not there before, and
not while the program forks.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from _thread import start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ._pool import Pool

_PATIENCE = 2.0  # seconds that a fork waits for a callback of the user's
_AGAIN = 0.05  # seconds after which what failed for want of memory, say, is tried again
_TRIES = 100  # in a row: what fails for longer will not get better


class PoolSet(weakref.WeakSet):  # type: ignore[type-arg]
    """Pools that it does not hold, to be walked over while others open and drop some.

    A WeakSet's own iterator refuses to go on when a thread adds one, or a collection that begins
    in the middle of it.
    """

    def __iter__(self) -> Iterator[Any]:
        refs = list(self.data)  # type: ignore[attr-defined]  # in one step
        return iter([pool for ref in refs if (pool := ref()) is not None])


_open_pools = PoolSet()
_dropped: set[Pool] = set()  # by everybody, with tasks in flight: _serve_loop() ends them
_serving = threading.RLock()


def _serve(pool: Pool) -> None:
    """Have a thread wait for *pool*: C calls this when a future or job of it is watched."""
    with _serving:
        if pool._server is None and not pool._stopping:
            pool._server = threading.Thread(
                target=_serve_loop, args=(pool,), name="trireme-watch", daemon=True
            )
            try:
                pool._server.start()
            except BaseException:
                if pool._server.ident is None:
                    pool._server = None  # nobody could join it; the next who asks may have one
                raise


def let_go(pool: Pool) -> None:
    """*pool* has been dropped by everybody with tasks in flight: see that it ends after them."""
    if pool._is_fork or pool._joined:
        pool._keep()  # what refers to it will not end any more
        return
    pool._refuse()
    _dropped.add(pool)
    _open_pools.add(pool)  # the collector has taken it out
    try:
        # This may be a collection in the middle of anything: no lock of threading's here.
        start_new_thread(_serve_dropped, (pool,))
    except RuntimeError:  # the interpreter is ending
        _dropped.discard(pool)
        end_quietly(pool)
        pool._keep()


def end_quietly(pool: Pool) -> None:
    """End *pool* at once, and tell nobody: this, too, may be in the middle of anything."""
    pool._refuse()
    pool._end(True, 2.0, False, False)
    pool._joined = True


def _serve_dropped(pool: Pool) -> None:
    try:
        _serve(pool)
    except RuntimeError:
        pass  # the interpreter is ending, and so is the pool


def _serve_loop(pool: Pool) -> None:
    failed = 0
    while True:
        with _serving:
            ending = pool in _dropped and not pool._pending()
            if pool._stopping or not (pool._watched or pool in _dropped):
                pool._server = None
                return
        try:
            if ending:
                _dropped.discard(pool)
                pool.terminate()
            else:
                pool._step(0.2)
            failed = 0
        except KeyboardInterrupt:
            # A callback raised it: signals are the main thread's.  Others must still be served.
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), None)))
        except Exception:
            failed += 1
            if pool._is_fork or ending or failed == _TRIES:
                with _serving:
                    pool._server = None
                _dropped.discard(pool)
                if failed == _TRIES:
                    raise  # who waits for a callback is to read of it: threading.excepthook
                return
            time.sleep(_AGAIN)  # nobody could wake us when it would succeed


def _stop_serving(pool: Pool, limit: float | None = None) -> None:
    """Send the thread of :func:`_serve` home, if it is another one, and wait until it has gone."""
    with _serving:  # it is started under this lock, so it has started
        thread = pool._server
        pool._stopping = pool._stopping or thread is not None or pool in _dropped
    if thread is not None and thread is not threading.current_thread():
        pool._nudge()
        thread.join(limit)


def _before_fork() -> None:
    """No thread of ours runs while the user forks: the child would inherit its locks.

    But for one in a callback of the user's that does not end: it may wait for who is forking.
    """
    until = time.monotonic() + _PATIENCE
    for pool in list(_open_pools):
        _stop_serving(pool, max(0.0, until - time.monotonic()))


def _after_fork_parent() -> None:
    for pool in list(_open_pools):
        if pool._stopping:
            pool._stopping = False
            if pool._watched or pool in _dropped:
                _serve(pool)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_parent)
os.register_at_fork(after_in_child=_open_pools.data.clear)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_serving._at_fork_reinit)  # type: ignore[attr-defined]
