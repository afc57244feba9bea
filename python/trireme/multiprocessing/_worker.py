# SPDX-License-Identifier: BSD-3-Clause
"""The worker's side of the facade's pools: looking like a process of multiprocessing.

:func:`begin` is the initializer of such a pool.  It puts a Process object in place as
``current_process()``, another as ``parent_process()``, and then calls the user's own initializer.

A program may have something to do around a process's life: coverage.py and others put a function
of theirs in the place of ``BaseProcess._bootstrap``, a class may have a ``run()`` of its own.  Then
the worker runs all of its tasks inside of these (:func:`live`), by a call of C's loop.  Else it
returns, and the loop comes next.

What the owner lends to workers under start methods that do not inherit (pipes of queues, memory of
Values and Arrays) are descriptors which the owner keeps open and a worker opens again through
/proc.  A worker that is started later, in place of another, finds them there as well.
"""

from __future__ import annotations

import functools
import itertools
import os
import struct
import types
from multiprocessing import context, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

    Info = dict[str, Any]

# Setups of pools with start method "fork", by number: workers inherit them and so can use what
# could not be pickled.
inherited: dict[int, Info] = {}

_ENTRY = struct.Struct("=i")  # in a register: the pid of each worker that has signed it
_BLOCK = 256  # bytes of it that are read at a time


# ---------------------------------------------------------------------------------------------
# Tasks
# ---------------------------------------------------------------------------------------------


def run_chunk(function: Callable[[Any], Any], items: Collection[Any]) -> list[Any]:
    """A task: *function* of each item; the first failure is the chunk's."""
    return _complete(list(map(function, items)), items)


def run_star(function: Callable[..., Any], items: Collection[Iterable[Any]]) -> list[Any]:
    """A task: *function* of the arguments in each item."""
    return _complete(list(itertools.starmap(function, items)), items)


def _complete(results: list[Any], items: Collection[Any]) -> list[Any]:
    """*results*, if there is one for each item: StopIteration ends a map() and says nothing."""
    if len(results) < len(items):
        raise RuntimeError(f"a task raised StopIteration: item {len(results)} of {len(items)}")
    return results


def find(module: bytes, qualname: str) -> Any:
    """What *module*, inherited by a fork, holds under that name.

    The name of the module is bytes, lest the pickler takes it for something to send by value.
    """
    import sys

    found: Any = sys.modules[module.decode()]
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


# ---------------------------------------------------------------------------------------------
# The register: which worker has which number
# ---------------------------------------------------------------------------------------------


def open_owners(owner: int, fd: int, flags: int) -> int:
    """A descriptor for what the owner has open as *fd*."""
    return os.open(f"/proc/{owner}/fd/{fd}", flags | os.O_CLOEXEC)


def sign(register: int) -> int:
    """Enter this process and return its number, from 0.

    What is appended to a file goes to its end whoever else appends.  A pid may have been another
    worker's before: the last one is ours.  It is looked for from the end, where few have followed.
    """
    me = _ENTRY.pack(os.getpid())
    os.write(register, me)
    end = start = os.fstat(register).st_size
    while start > 0:
        start = max(0, start - _BLOCK)
        data = os.pread(register, _BLOCK, start)
        for at in range(min(len(data), end - start) - _ENTRY.size, -1, -_ENTRY.size):
            if data[at : at + _ENTRY.size] == me:
                return (start + at) // _ENTRY.size
    raise OSError("the register of this pool's workers was changed by somebody else")


def signed(register: int) -> list[int]:
    """The pids in a register, by number."""
    data = os.pread(register, os.fstat(register).st_size, 0)
    return [pid for (pid,) in _ENTRY.iter_unpack(data)]


# ---------------------------------------------------------------------------------------------
# Beginning
# ---------------------------------------------------------------------------------------------


class Lent:
    """A descriptor of the owner's, as it travels."""

    def __init__(self, owner: int, fd: int, flags: int) -> None:
        self._owner = owner
        self._fd = fd
        self._flags = flags

    def detach(self) -> int:
        """A descriptor of this process for the same file."""
        fd = open_owners(self._owner, self._fd, self._flags | os.O_NONBLOCK)
        os.set_blocking(fd, True)  # only opening the end of a pipe must not wait for the other
        return fd


def become(info: Info) -> None:
    """Have multiprocessing believe that it started this process.

    What ``_bootstrap()`` does itself is left to it if the process is to live inside.
    """
    import sys

    from trireme._worker import end_as_process

    them: Any = process
    owner = info["owner"]
    if info["method"] == "fork":
        number = sign(info["register"])  # inherited
    else:
        register = open_owners(owner, info["register"], os.O_RDWR | os.O_APPEND)
        try:
            number = sign(register)
        finally:
            os.close(register)
    identities = info["identities"]
    identity = (
        identities[number]
        if number < len(identities)
        # A successor.  The owner counts its processes, but cannot be asked now.
        else (*identities[-1][:-1], identities[-1][-1] + number - len(identities) + 1)
    )
    me: Any = info["class"].__new__(info["class"])
    me.__dict__.update({"_args": (), "_kwargs": {}} | info["state"])
    end_as_process(info["method"] != "spawn")
    config = dict(info["config"])
    config["authkey"] = them.AuthenticationString(info["authkey"])
    me.__dict__.update(
        _identity=identity,
        _name=info["prefix"] + ":".join(map(str, identity)),
        _config=config,
        _parent_pid=owner,
        _parent_name=info["owner_name"],
        _popen=None,
        _closed=False,
    )
    sentinel = os.pidfd_open(owner)
    them._current_process = me
    them._parent_process = them._ParentProcess(info["owner_name"], owner, sentinel)
    them._process_counter = itertools.count(1)
    them._children = set()
    context._force_start_method(info["method"])
    if info["tracker"] is not None:
        from multiprocessing import resource_tracker

        # One tracker for all: with its own, a worker would remove at its end what others use.
        tracker: Any = resource_tracker._resource_tracker
        tracker._fd = open_owners(owner, info["tracker"], os.O_WRONLY)
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None and not has_hooks(me):  # else there is nothing of the owner's in it
        util._finalizer_registry.clear()
        util._run_after_forkers()


def worker(*args: Any) -> None:
    """The target of a worker's Process, where the original's are ``multiprocessing.pool.worker``.

    Its arguments are for whoever makes that Process: the life is that of :func:`live`.
    """
    _inside.pop()()


# In a worker that lives inside of its Process: what worker() is to do, and what that raised.
_inside: list[Callable[[], None]] = []


def is_of(module: Any, function: Any) -> bool:
    """Whether *function* is one that *module* defines, and no other in its place."""
    return type(function) is types.FunctionType and function.__globals__ is vars(module)


def has_hooks(me: Any) -> bool:
    """Whether something of the program's is to be around the life of this Process."""
    kind = type(me)
    methods = kind._bootstrap, kind.run
    target = getattr(me, "_target", None)
    return not (
        (target is None or target is worker) and all(is_of(process, one) for one in methods)
    )


def live(begun: Callable[[], None]) -> None:
    """Call *begun*, the last thing before the first task; run the tasks, too, if there are hooks.

    Raises what *begun* raises.
    """
    from trireme import _worker

    me: Any = process.current_process()
    if not has_hooks(me):
        begun()
        return
    state: list[BaseException | None] = []

    def tasks() -> None:
        state.append(None)
        try:
            begun()
        except BaseException as exc:
            state[0] = exc
            raise
        _worker.serve()

    _inside.append(tasks)
    parent: Any = process.parent_process()
    me._bootstrap(parent_sentinel=parent._sentinel)
    if not state:
        raise RuntimeError(
            f"a worker ended before its first task: {type(me).__qualname__} did not call its target"
        )
    if state[0] is not None:
        raise state[0]


def keep(modules: Iterable[str]) -> None:
    """Have functions that arrive by value for these modules, inherited by a fork, live in them."""
    from trireme import _bindings

    _bindings.inherited.update(modules)


def _results_by_name() -> None:
    """Have results that the original could not send fail as they do there."""
    from trireme import _pickling

    by_value = _pickling._dump_by_value
    explain = _pickling._explain

    def dump(obj: Any, buffer_callback: Any, is_result: bool) -> bytes:
        if is_result:
            try:
                _pickling._dumps(obj, _pickling.PROTOCOL)
            except Exception as exc:
                # Of the rest, classes of __main__ came by value and can go back.
                if "<locals>" in str(exc) or "<lambda>" in str(exc):
                    raise
        return by_value(obj, buffer_callback, is_result)

    def say(obj: Any, name: str, exc: Exception, is_result: bool) -> Exception:
        if is_result:
            from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

            return MaybeEncodingError(exc, obj)  # type: ignore[no-any-return]
        return explain(obj, name, exc, is_result)

    vars(_pickling).update(_dump_by_value=dump, _explain=say)


def begin(
    setup: int | Info,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
) -> None:
    """Called in each worker before its first task.  Raises what the user's initializer raises."""
    from trireme import _core, _pickling

    from . import _ways

    if isinstance(setup, int):
        info = inherited[setup]
        initializer, initargs = info["initializer"], info["initargs"]
        become(info)
        _ways.follow()
    else:
        info = setup  # _script.prologue() has done that
    _core._own_arguments()  # tasks write to what they get: there it is a copy
    _pickling.keeps_modules = True
    keep(info.get("modules", ()))
    if info["by_name"]:
        _results_by_name()
    live(functools.partial(_initialize, initializer, initargs))


def _initialize(initializer: Callable[..., object] | None, initargs: Iterable[Any]) -> None:
    if initializer is not None:
        initializer(*initargs)
