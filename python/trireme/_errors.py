# SPDX-License-Identifier: BSD-3-Clause
"""The exceptions of the package, and how a task's exception travels to its owner.

An exception travels as six things: its type's name, its message, the worker's traceback as text,
its pickle, its notes, and whether it is to be raised whatever its type.  The pickle is tried out
in the worker before it is sent, so that a type whose ``__init__`` wants two arguments, or that
raises when it is unpickled, costs its own future a little comfort (RemoteError in place of the
type) and nobody else anything.

At the owner the exception gets a RemoteTraceback as its ``__cause__``.  Its text has the frames of
the user's code only, and the source lines of notebook cells, which only the owner knows.
"""

from __future__ import annotations

import _pickle as pickle
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType
    from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_TEXT_LIMIT = 256 * 1024

# The process whose tasks' SystemExit and the like are to be raised as themselves by the owner: a
# worker of an executor, as the original's do that, not the workers that it may fork.
_naked = 0


class RemoteTraceback(Exception):
    """The traceback of a worker, as the ``__cause__`` of the exception it belongs to."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    @property
    def tb(self) -> str:
        """As str(): the standard library's class of this kind has it under this name."""
        return str(self)

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class RemoteError(Exception):
    """A task failed with an exception that cannot be shown as itself in this process.

    Either it could not be pickled, or it is one that would act on this process if it were raised
    here (SystemExit, KeyboardInterrupt); then ``original`` is that exception.
    """

    def __init__(
        self,
        type_name: str,
        message: str = "",
        traceback_text: str = "",
        reason: str = "",
        original: BaseException | None = None,
    ) -> None:
        super().__init__(type_name, message, traceback_text, reason, original)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text
        self.reason = reason
        self.original = original

    def __str__(self) -> str:
        text = f"{self.type_name}: {self.message}" if self.message else self.type_name
        return f"{text} ({self.reason})" if self.reason else text


class TaskTimeout(TimeoutError):
    """A task ran longer than its ``timeout`` and its worker was stopped."""


# ---------------------------------------------------------------------------------------------
# WorkerLost: made late, because its base class costs 10 ms to import
# ---------------------------------------------------------------------------------------------

_worker_lost: type | None = None


def _signal_name(number: int) -> str:
    """SIGKILL for 9; the number itself if it has no name."""
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _lost_message(
    pid: int | None,
    exitcode: int | None,
    signal: int | None,
    oom: bool,
    task: str | None,
    deaths: Sequence[str],
) -> str:
    """One line that says which worker died, how, and at what."""
    text = "a worker" if pid is None else f"worker pid {pid}"
    if signal is not None:
        text += f" was killed by {_signal_name(signal)}"
    elif exitcode is not None:
        text += f" exited with code {exitcode}"
    else:
        text += " died"
    if task:
        text += f" while running task {task}"
    if oom:
        text += "; the kernel's OOM killer did it"
    elif signal == 9:
        text += "; the OOM killer is not known to have done it"
    if len(deaths) > 1:
        shown = deaths if len(deaths) <= 6 else [*deaths[:4], "...", deaths[-1]]
        text += f"; {len(deaths)} workers were lost on this task: {', '.join(shown)}"
    return text


def _rebuild_worker_lost(args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """Unpickle a WorkerLost."""
    cls = worker_lost_class()
    exc: BaseException = cls.__new__(cls)  # type: ignore[call-overload]
    exc.args = args
    exc.__dict__.update(state)
    return exc


def broken_process_pool() -> type:
    """concurrent.futures.process.BrokenProcessPool; WorkerLost before that can be one.

    Nobody who has not imported that module can ask for more: see _imports.py.
    """
    module = sys.modules.get("concurrent.futures.process")
    found = None if module is None else vars(module).get("BrokenProcessPool")
    return found or worker_lost_class()


def executors_cause(text: str) -> BaseException:
    """concurrent.futures.process._RemoteTraceback of *text*; ours before that can be one."""
    told = RemoteTraceback(text)
    module = sys.modules.get("concurrent.futures.process")
    theirs = None if module is None else vars(module).get("_RemoteTraceback")
    return theirs(str(told)) if theirs else told


def worker_lost_class() -> type:
    """The class WorkerLost, a concurrent.futures.process.BrokenProcessPool once that is imported.

    ``WorkerLost(message=None, *, pid, exitcode, signal, oom, task, deaths, stack)``; everything is
    optional, and the message is made from the rest when it is None.
    """
    global _worker_lost
    if _worker_lost is not None:
        return _worker_lost
    from concurrent.futures import BrokenExecutor

    from . import _imports

    class WorkerLost(BrokenExecutor):
        """A worker died while it ran this task.

        Attributes: ``pid``; ``exitcode`` or ``signal``, the other is None; ``oom``, True if the
        kernel's OOM killer did it; ``task``, a short text of the call; ``deaths``, a list of one
        line per worker lost on this task, retries included; ``stack``, where the worker's Python
        code was, if it died of a fault of its own (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT) and
        could still say so, else None.
        """

        def __init__(
            self,
            message: str | None = None,
            *,
            pid: int | None = None,
            exitcode: int | None = None,
            signal: int | None = None,
            oom: bool = False,
            task: str | None = None,
            deaths: Sequence[str] = (),
            stack: str | None = None,
        ) -> None:
            if message is None:
                message = _lost_message(pid, exitcode, signal, oom, task, deaths)
            super().__init__(message)
            self.pid = pid
            self.exitcode = exitcode
            self.signal = signal
            self.oom = oom
            self.task = task
            self.deaths = list(deaths)
            self.stack = stack

        def __reduce__(self) -> Any:
            return _rebuild_worker_lost, (self.args, dict(self.__dict__))

    WorkerLost.__qualname__ = "WorkerLost"
    # Another thread may have been here too; the first class stays the only one.
    if _worker_lost is None:
        _worker_lost = WorkerLost
        _imports.when_imported("concurrent.futures.process", _derive)
    return _worker_lost


def _derive(original: ModuleType) -> None:
    base = vars(original).get("BrokenProcessPool", BaseException)
    if _worker_lost is not None and base not in _worker_lost.__mro__:
        _worker_lost.__bases__ = (base,)


def __getattr__(name: str) -> Any:
    if name == "WorkerLost":
        return worker_lost_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---------------------------------------------------------------------------------------------
# Worker: exception -> bytes
# ---------------------------------------------------------------------------------------------


def _type_name(kind: type) -> str:
    """The name a traceback would print."""
    module = getattr(kind, "__module__", None)
    name = getattr(kind, "__qualname__", kind.__name__)
    return name if module in ("builtins", "__main__", None) else f"{module}.{name}"


def _safe_str(obj: object) -> str:
    """str(obj), whatever its class does."""
    try:
        text = str(obj)
    except BaseException as exc:
        text = f"<str() of this exception raised {type(exc).__name__}>"
    return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "..."


def _chain(report: Any) -> Iterator[Any]:
    """A TracebackException and all it refers to."""
    waiting = [report]
    seen = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, *(one.exceptions or ())]


def _traceback_text(exc: BaseException, skip_frames: int) -> str:
    """The traceback with everything chained to it, without frames of this package."""
    import traceback

    tb = exc.__traceback__
    while skip_frames > 0 and tb is not None:
        tb = tb.tb_next
        skip_frames -= 1
    try:
        report = traceback.TracebackException(type(exc), exc, tb, compact=True)
        for one in _chain(report):
            if one.stack is not None:
                own = [f for f in one.stack if f.filename.startswith(_HERE)]
                for frame in own:
                    one.stack.remove(frame)
        text = "".join(report.format())
    except Exception as failure:
        text = (
            f"{_type_name(type(exc))}: {_safe_str(exc)}\n(no traceback: {type(failure).__name__})\n"
        )
    if len(text) > _TEXT_LIMIT:
        half = _TEXT_LIMIT // 2
        text = f"{text[:half]}\n  [{len(text) - 2 * half} characters left out]\n{text[-half:]}"
    return text


def _builtin_base(kind: type) -> type:
    """The nearest base written in C, which knows how to fill an instance from its args."""
    for base in kind.__mro__:
        if not base.__flags__ & (1 << 9) and issubclass(base, BaseException):  # not a heap type
            return base
    return BaseException


def _rebuild(kind: type, base: type, args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """Make an exception without calling its own __init__, which may want other arguments."""
    exc: BaseException = kind.__new__(kind, *args)
    base.__init__(exc, *args)  # type: ignore[misc]
    exc.__dict__.update(state)
    return exc


class _ByParts:
    """Pickles as a call of _rebuild()."""

    def __init__(self, exc: BaseException) -> None:
        base = _builtin_base(type(exc))
        reduced = base.__reduce__(exc)  # type: ignore[call-arg]
        self._parts = (type(exc), base, reduced[1], exc.__dict__)

    def __reduce__(self) -> Any:
        return _rebuild, self._parts


def _same(one: object, other: object) -> bool:
    """Whether two exceptions say the same, as far as str() tells."""
    return type(one) is type(other) and _safe_str(one) == _safe_str(other)


def _tried_pickle(exc: BaseException) -> bytes | None:
    """A pickle of *exc* that was seen to load again, or None."""
    from . import _pickling

    found = None
    for by_parts in (False, True):
        try:
            data = _pickling.dumps_inband(_ByParts(exc) if by_parts else exc, is_result=True)
            loaded = pickle.loads(data)
        except BaseException:
            continue
        if _same(loaded, exc):
            return data
        # __init__ made another message of its own message; better than nothing.
        if type(loaded) is type(exc):
            found = found or data
    return found


def encode_exception(exc: BaseException, skip_frames: int = 0) -> bytes:
    """Worker: turn a task's exception into bytes for decode_exception().

    *skip_frames* is how many of the outermost frames are not the user's; frames of this package
    are left out anyway.  Never raises.
    """
    told = _naked == os.getpid()
    if told and exc.__cause__ is not None and type(exc).__module__ == "trireme._pickling":
        exc = exc.__cause__  # what a method of an object raised that was to be pickled
    kind = type(exc)
    notes = getattr(exc, "__notes__", None)
    notes = [_safe_str(note) for note in notes] if isinstance(notes, list) else []
    try:
        text = _traceback_text(exc, skip_frames)
    except BaseException:
        text = ""
    try:
        pickled = _tried_pickle(exc)
    except BaseException:
        pickled = None
    return pickle.dumps((_type_name(kind), _safe_str(exc), text, pickled, notes, told), 5)


# ---------------------------------------------------------------------------------------------
# Owner: bytes -> exception
# ---------------------------------------------------------------------------------------------


def _fill_source(text: str) -> str:
    """Add the source lines that the worker could not see: those of notebook cells and the REPL."""
    if '  File "' not in text:
        return text
    import linecache

    lines = text.splitlines()
    out = []
    for i, line in enumerate(lines):
        out.append(line)
        bare = line.lstrip(" |")
        if not bare.startswith('File "') or '", line ' not in bare:
            continue
        indent = line[: len(line) - len(bare)]
        if i + 1 < len(lines) and lines[i + 1].startswith(indent + "  "):
            continue
        name, _, rest = bare[6:].partition('", line ')
        number = rest.partition(",")[0]
        if number.isdigit() and name in linecache.cache:
            source = linecache.getline(name, int(number)).strip()
            if source:
                out.append(f"{indent}  {source}")
    return "\n".join(out) + "\n"


def decode_exception(data: bytes, naked: bool = False) -> BaseException:
    """Owner: the exception to raise for a task that failed.  Never raises.

    The result has a RemoteTraceback as its ``__cause__``, the original's class of this kind for an
    executor.  It is the task's own exception where that could travel, else a RemoteError.
    SystemExit, KeyboardInterrupt and the like become a RemoteError with the exception as
    ``original``, because they would act on this process; *naked*, or the worker's word
    (``_naked``), gives them as they are.
    """
    exc: BaseException
    text = ""
    told: list[bool] = []
    try:
        type_name, message, text, pickled, notes, *told = pickle.loads(data)
        text = _fill_source(text)
        exc = _load(type_name, message, text, pickled)
        if not (naked or any(told)) and not isinstance(exc, Exception):
            reason = f"the task raised {type_name}, which is not raised here"
            exc = RemoteError(type_name, message, text, reason, exc)
        if notes and not getattr(exc, "__notes__", None):
            for note in notes:
                exc.add_note(note)
    except Exception as failure:
        exc = RemoteError("unknown", "", text, f"its report is damaged: {_safe_str(failure)}")
    try:
        cause = executors_cause if any(told) else RemoteTraceback
        exc.__cause__ = cause(text) if text else None
    except Exception:
        pass  # a class that forbids it
    return exc


def unreadable_result(failure: BaseException) -> RemoteError:
    """Owner: what to raise when unpickling a result raised SystemExit or the like."""
    name = _type_name(type(failure))
    reason = "raised while its result was unpickled, which is not raised here"
    error = RemoteError(name, _safe_str(failure), "", reason, failure)
    error.__cause__ = None
    return error


def _load(type_name: str, message: str, text: str, pickled: bytes | None) -> BaseException:
    """Unpickle the exception, or make the RemoteError that stands for it."""
    if pickled is None:
        return RemoteError(type_name, message, text, "this exception cannot be pickled")
    try:
        exc = pickle.loads(pickled)
    except KeyboardInterrupt:
        # It loaded in the worker, so this is the user's Ctrl-C: let it arrive after our return.
        import _thread

        _thread.interrupt_main()
        return RemoteError(type_name, message, text, "interrupted while it was unpickled")
    except BaseException as failure:
        reason = f"unpickling it raised {type(failure).__name__}: {_safe_str(failure)}"
        return RemoteError(type_name, message, text, reason)
    if not isinstance(exc, BaseException):
        return RemoteError(type_name, message, text, f"it unpickled as {type(exc).__name__}")
    return exc
