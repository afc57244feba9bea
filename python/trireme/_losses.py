# SPDX-License-Identifier: BSD-3-Clause
"""Owner: the exceptions of tasks that ended without running to their end."""

from __future__ import annotations

import errno
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# enum tri_error of trireme.h
_WORKER_LOST = -5002
_TASK_TIMEOUT = -5003
_CLOSED = -5005
_BROKEN = -5006


class Failed:
    """Stands in a chunk's results for an item that raised; *data* is the encoded exception."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return Failed, (self.data,)


def _call_text(task: Any) -> str | None:
    """How messages name a task: ``module.function(...)``."""
    if task is None:
        return None
    if isinstance(task, tuple):
        task = task[0]
    name = getattr(task, "__qualname__", None)
    if not isinstance(name, str):
        name = type(task).__qualname__
    module = getattr(task, "__module__", None)
    return f"{module}.{name}(...)" if isinstance(module, str) else f"{name}(...)"


def _death(pid: int, signal: int, exitcode: int, oom: int) -> str:
    """One line for one death."""
    from . import _errors

    how = f"killed by {_errors._signal_name(signal)}" if signal else f"exited with code {exitcode}"
    return f"pid {pid}: {how}{' (out of memory)' if oom else ''}"


_WORDS_MAX = 8128  # TRI_WORKER_LAST of shm/layout.h


def _stack(words: bytes, skip: int) -> str | None:
    """What faulthandler wrote in a worker that crashed, without what is below its tasks.

    The main thread comes last, and the lowest *skip* of its frames are the program's with which the
    worker began: see run_crash.c.
    """
    text = words.decode("utf-8", "replace")
    if len(words) >= _WORDS_MAX:
        return text[: text.rfind("\n") + 1] + "  ..."
    lines = text.split("\n\nExtension modules:")[0].rstrip().split("\n")
    frames = next((i for i, line in enumerate(reversed(lines)) if line[:7] != "  File "), 0)
    if frames > skip and lines[-frames - 1].startswith(("Thread ", "Current thread ")):
        del lines[len(lines) - skip :]
    return "\n".join(lines) or None


def lost(
    status: int,
    why: str,
    pid: int,
    signal: int,
    exitcode: int,
    oom: int,
    deaths: int,
    past: list[tuple[int, int, int, int]],
    limit: float,
    task: Any,
    words: bytes,
    skip: int,
) -> BaseException:
    """The exception for a task whose runtime status is *status* (see trireme.h).

    *past* says how the first workers died that this task has cost before, of *deaths* in all;
    *limit* is the time limit that it had; for *words* and *skip* see _stack().
    """
    from . import _errors

    text = _call_text(task)
    if status == _TASK_TIMEOUT:
        where = f"task {text}" if text else "the task"
        return _errors.TaskTimeout(
            f"{where} ran longer than its timeout of {limit:g} s; its worker (pid {pid}) was killed"
        )
    cls = _errors.worker_lost_class()
    stack = _stack(words, skip)
    if status == _WORKER_LOST:
        lines = [_death(*one) for one in past]
        if deaths > len(past) + 1:
            lines += ["not recorded"] * (deaths - len(past) - 1)
        lines.append(_death(pid, signal, exitcode, oom))
        loss = cls(
            pid=pid,
            exitcode=None if signal else exitcode,
            signal=signal or None,
            oom=bool(oom),
            task=text,
            deaths=lines,
            stack=stack,
        )
        told = [stack] if stack else []
        if sys.version_info >= (3, 15):  # from there on a BrokenProcessPool has such a cause
            code = -signal if signal else exitcode
            told.insert(0, f"Process {pid} terminated abruptly with exit code {code}")
        if told:
            loss.__cause__ = _errors.executors_cause("\n\n".join(told))
        return loss
    if status == -errno.ENOMEM:
        return MemoryError(f"the result of {text or 'a task'} could not be received: no memory")
    if status == _CLOSED:
        return cls("the pool was terminated before this task ended", task=text)
    if status == _BROKEN:
        last = f" ({_death(pid, signal, exitcode, oom)})" if pid else ""
        loss = cls(
            f"the pool is broken: {why}{last}; open a new one",
            pid=pid or None,
            exitcode=exitcode if pid and not signal else None,
            signal=signal or None,
            oom=bool(oom),
            task=text,
            stack=stack,
        )
        if stack:
            loss.__cause__ = _errors.executors_cause(stack)
        return loss
    return cls(why, task=text)
