# SPDX-License-Identifier: BSD-3-Clause
"""The owner's side of what _worker.py begins with: the setup of a pool's workers, packed.

Locks, queues and shared memory refuse to be pickled unless a process is being spawned, and then
ask the spawning popen to hand their descriptors over.  :class:`Lender` is such a popen: it keeps a
copy of each for as long as the pool may start workers.
"""

from __future__ import annotations

import copyreg
import fcntl
import os
import stat
import sys
import threading
from contextlib import contextmanager
from multiprocessing import context, process

from . import _ways, _worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


def new_register() -> int:
    """A descriptor of an empty file without a name, in which workers sign for their numbers."""
    try:
        fd = os.memfd_create("trireme-register", os.MFD_CLOEXEC)
    except OSError:  # refused by a sandbox
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd


# What the original prepares a fresh process with.
_PREPARED = frozenset(
    "name authkey log_to_stderr log_level sys_path sys_argv dir orig_dir start_method"
    " init_main_from_name init_main_from_path".split()
)


def _stowaways(name: str) -> dict[str, Any]:
    """What a program that has put a get_preparation_data() of its own in place adds for a child.

    coverage.py adds an object which changes multiprocessing there as it is unpickled.
    """
    spawn: Any = sys.modules.get("multiprocessing.spawn")
    if spawn is None or _worker.is_of(spawn, spawn.get_preparation_data):
        return {}
    data = spawn.get_preparation_data(name)
    return {key: value for key, value in data.items() if key not in _PREPARED}


def describe(models: list[Any], method: str, register: int) -> dict[str, Any]:
    """What a worker needs in order to pass for one of *models*, processes that are never started.

    *register*: the descriptor of the file in which workers sign for their numbers.
    """
    model = models[0]
    tracker = None
    if method != "fork":
        from multiprocessing import resource_tracker

        tracker = resource_tracker.getfd()
    me = process.current_process()
    state = dict(vars(model))
    for name in ("_config", "_parent_pid", "_parent_name", "_popen", "_name", "_identity"):
        state.pop(name, None)
    if not _worker.has_hooks(model):
        for name in ("_args", "_kwargs"):  # nobody will see these
            state.pop(name, None)
    config = dict(model._config)
    return {
        # First, to be unpickled first.
        "stowaways": _stowaways(model.name) if method != "fork" else {},
        "owner": os.getpid(),
        "owner_name": me.name,
        "authkey": bytes(config.pop("authkey", me.authkey)),
        "config": config,
        "class": type(model),
        "state": state,
        "identities": [m._identity for m in models],
        "prefix": model.name.removesuffix(":".join(map(str, model._identity))),
        "method": method,
        "register": register,
        "tracker": tracker,
        "script": None,
    }


_packing = threading.RLock()  # one thread at a time changes the table of reducers


os.register_at_fork(after_in_child=_packing._at_fork_reinit)  # type: ignore[attr-defined]


class Lender:
    """Descriptors that workers may open.  close() ends that."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self.register = new_register()
        self._fds = [self.register]

    def duplicate_for_child(self, fd: int) -> int:
        """What the original's reducers call for each descriptor; DupFd() gets what it returns."""
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self._fds.append(copy)
        return copy

    def DupFd(self, fd: int) -> _worker.Lent:
        """How a descriptor travels."""
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise TypeError(
                "a socket, or a Pipe() of two directions, cannot be given to a pool's workers by "
                "initargs with this start method; use Pipe(duplex=False), or 'fork'"
            )
        return _worker.Lent(self._owner, fd, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)

    def close(self) -> None:
        """Forget them.  In a fork of the owner they are copies, and closed all the same."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    @contextmanager
    def spawning(self) -> Iterator[None]:
        """While this lasts, this thread can pickle what only a spawned process may get."""
        before: Any = context.get_spawning_popen()
        with _packing:
            mine = _ways.known()
            copyreg.dispatch_table.update(mine)
            context.set_spawning_popen(self)  # type: ignore[arg-type]
            try:
                yield
            finally:
                context.set_spawning_popen(before)
                for kind in mine:
                    copyreg.dispatch_table.pop(kind, None)
