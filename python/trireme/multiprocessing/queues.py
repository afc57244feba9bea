# SPDX-License-Identifier: BSD-3-Clause
"""Queue, JoinableQueue and SimpleQueue on Trireme's shared memory.

Messages lie in a memfd that every process with the queue has mapped: there is no feeder thread, no
pipe to fill up and no semaphore.  So put() pickles at once, a process that has put much can end
before anybody reads, and one that is killed, wherever it is, harms neither messages nor others.
src/shm/mailbox.c says how; docs/multiprocessing.md what differs from the original.
"""

from __future__ import annotations

import _pickle as pickle  # the C half; pickle.py would import more
import os
import types
from _queue import Empty
from collections import deque
from io import BytesIO
from multiprocessing import context, reduction, util
from queue import Full

from .. import _core
from ._lend import Lender

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

_Pickler: Any = reduction.ForkingPickler

_PROTOCOL = 5
_DEFAULT_PROTOCOL: int = pickle.dumps(None)[1]
_BUFFER_MIN = 64 << 10  # smaller ones travel in the pickle
_BUFFERS_MAX = 200  # as in _core/mailbox.c
_SEM_VALUE_MAX = 2**31 - 1


def dumps(obj: Any) -> tuple[bytes, list[memoryview]]:
    """Pickle *obj*: the stream, and the large buffers that travel beside it."""
    buffers: list[memoryview] = []
    readonly = False

    def callback(buffer: Any) -> bool:
        nonlocal readonly
        raw = buffer.raw()
        readonly = readonly or raw.readonly
        if raw.nbytes < _BUFFER_MIN or len(buffers) >= _BUFFERS_MAX:
            return True
        buffers.append(raw)
        return False

    file = BytesIO()
    _Pickler(file, _PROTOCOL, True, callback).dump(obj)
    if readonly and _DEFAULT_PROTOCOL < _PROTOCOL:
        # By that protocol a read-only array arrives writable, and so it must.
        return bytes(_Pickler.dumps(obj)), []
    return file.getvalue(), buffers


class _End:
    """One end of what a queue of the original has: a Connection."""

    def __init__(self, box: _core.Mailbox) -> None:
        self._box: _core.Mailbox | None = box

    def _open(self) -> _core.Mailbox:
        if self._box is None:
            raise OSError("handle is closed")
        return self._box

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._box is None

    def close(self) -> None:
        """Refuse everything from now on; the queue's other processes do not notice."""
        self._box = None

    def __enter__(self) -> _End:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Reader(_End):
    """The end to receive from; connection.wait() and selectors take it.

    Who holds the queue's ``_rlock`` may rely on a poll(): nobody takes the message before its
    recv().  There is no such lock here, so a poll() then takes it at once and keeps it.
    """

    readable = True
    writable = False

    def __init__(self, box: _core.Mailbox) -> None:
        super().__init__(box)
        self._holders = 0  # of _rlock in this process
        self._kept: deque[Any] = deque()

    def fileno(self) -> int:
        """A descriptor that is readable while there are messages; for nothing else."""
        return self._open().watch()

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Wait for a message; whether there is one."""
        if not self._holders:
            return self._open().wait(timeout)
        if not self._kept:
            try:
                self._kept.append(self._open().get(True, timeout))
            except Empty:
                return False
        return True

    def recv(self) -> Any:
        """Take the oldest object."""
        return self._kept.popleft() if self._kept else self._open().get()

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Take the oldest object, as a pickle."""
        return bytes(_Pickler.dumps(self.recv()))


class _Writer(_End):
    """The end to send to."""

    readable = False
    writable = True

    def send(self, obj: Any) -> None:
        """Put an object."""
        self._open().put(obj)

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Put the object that a pickle stands for."""
        data = memoryview(buf).cast("B")[offset:]
        self._open().put_pickle(data if size is None else data[:size])


class _NoLock:
    """In place of the lock of the original's writers, which its Pool takes: none is needed."""

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Do nothing."""
        return True

    def release(self) -> None:
        """Do nothing."""

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class _ReadLock(_NoLock):
    """In place of the lock of the original's readers: see _Reader."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Have what poll() finds be kept for recv()."""
        self._reader._holders += 1
        return True

    def release(self) -> None:
        """No more; what recv() did not take can be taken by all again, behind the others."""
        self._reader._holders -= 1
        while self._reader._kept and not self._reader._holders:
            self._reader._open().put(self._reader._kept.popleft())


class _Box:
    """What all queues have: a mailbox, its two ends, and how it gets to a spawned process."""

    _wlock = _NoLock()
    _dumps = staticmethod(dumps)
    _loads: Any = staticmethod(pickle.loads)

    def _make(self, most: int, ctx: Any, fd: int = -1, bell_fd: int = -1) -> None:
        self._of_fork = ctx is not None and ctx.get_start_method() == "fork"
        self._box = _core.Mailbox(self._dumps, self._loads, Full, Empty, most, fd, bell_fd)
        self._reader: Any = _Reader(self._box)
        self._writer: Any = _Writer(self._box)

    @property
    def _rlock(self) -> _ReadLock:
        return _ReadLock(self._reader)

    def _descriptors(self) -> tuple[Any, Any]:
        context.assert_spawning(self)
        # A pool of ours may have it; else programs should also run on the original.
        if self._of_fork and not isinstance(context.get_spawning_popen(), Lender):
            raise RuntimeError(
                "A SemLock created in a fork context, or in this case a queue, is being shared "
                "with a process of another context.  Use one context for queue and Process."
            )
        fd, bell_fd = self._box.fds()
        if fd < 0:
            raise RuntimeError("under a limit of file sizes (ulimit -f) only forks have a queue")
        return reduction.DupFd(fd), reduction.DupFd(bell_fd) if bell_fd >= 0 else None

    def _attach(self, descriptors: tuple[Any, Any]) -> None:
        fds = [-1 if d is None else d.detach() for d in descriptors]
        for fd in fds:
            if fd >= 0:
                os.set_inheritable(fd, False)
        self._make(0, None, *fds)

    def _poll(self, timeout: float | None = 0.0) -> bool:
        found: bool = self._reader.poll(timeout)
        return found

    def empty(self) -> bool:
        """Whether there is no message that another could take."""
        return not self._reader._open().wait(0.0)

    __class_getitem__: Any = classmethod(types.GenericAlias)


class Queue(_Box):
    """A queue of objects between processes, with at most *maxsize* in it if that is positive."""

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        self._maxsize = maxsize if maxsize > 0 else _SEM_VALUE_MAX
        self._opid = os.getpid()
        self._ignore_epipe = False
        self._make(min(max(maxsize, 0), _SEM_VALUE_MAX), ctx)
        self._reset()
        util.register_after_fork(self, Queue._reset)

    def __getstate__(self) -> Any:
        return self._descriptors(), self._ignore_epipe, self._maxsize, self._opid

    def __setstate__(self, state: Any) -> None:
        descriptors, self._ignore_epipe, self._maxsize, self._opid = state
        self._attach(descriptors)
        self._reset()
        util.register_after_fork(self, Queue._reset)

    def _reset(self) -> None:
        self._closed = False
        self._used = False  # for put()

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put *obj*; waits only where there are maxsize already.  Raises Full.

        What cannot be pickled raises here, unless a subclass has an _on_queue_feeder_error().
        """
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        self._used = True
        try:
            self._box.put(obj, block, timeout)
        except Full:
            raise
        except Exception as exc:
            if type(self)._on_queue_feeder_error is Queue._on_queue_feeder_error:
                raise
            self._on_queue_feeder_error(exc, obj)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest object; waits for one.  Raises Empty."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        return self._box.get(block, timeout)

    def qsize(self) -> int:
        """How many objects are in it."""
        return self._box.count()

    def full(self) -> bool:
        """Whether put() would wait."""
        return self._box.full()

    def get_nowait(self) -> Any:
        """Take the oldest object; raises Empty if there is none."""
        return self.get(False)

    def put_nowait(self, obj: Any) -> None:
        """Put *obj*; raises Full rather than wait."""
        self.put(obj, False)

    def close(self) -> None:
        """Refuse put() and get() in this process from now on."""
        self._closed = True
        if self._used:  # the original's thread is who closes its pipe
            self._reader.close()
            self._writer.close()

    def join_thread(self) -> None:
        """Do nothing: there is no thread, and what was put is there."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Do nothing: see join_thread()."""

    def _terminate_broken(self) -> None:
        self._reader.close()
        self.close()
        self.join_thread()

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        """For subclasses: what to do about an object that cannot be pickled."""
        import traceback

        traceback.print_exc()


class JoinableQueue(Queue):
    """A Queue that knows how many of its objects are done with."""

    def task_done(self) -> None:
        """Say that one object that was taken is done with."""
        if not self._box.done():
            raise ValueError("task_done() called too many times")

    def join(self) -> None:
        """Wait until every object that was put is done with."""
        self._box.join()


class SimpleQueue(_Box):
    """A queue without limit, time-outs and accounts."""

    def __init__(self, *, ctx: Any) -> None:
        self._make(0, ctx)

    def __getstate__(self) -> Any:
        return self._descriptors()

    def __setstate__(self, state: Any) -> None:
        self._attach(state)

    def close(self) -> None:
        """Refuse everything in this process from now on."""
        self._reader.close()
        self._writer.close()

    def get(self) -> Any:
        """Take the oldest object; waits for one."""
        return self._reader._open().get()

    def put(self, obj: Any) -> None:
        """Put *obj*."""
        self._writer.send(obj)


def __getattr__(name: str) -> Any:
    from multiprocessing import queues

    return getattr(queues, name)
