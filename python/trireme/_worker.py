# SPDX-License-Identifier: BSD-3-Clause
"""Worker: what is set up once before the first task, and undone after the last.

begin() makes the new process look like the owner to the user's code: same sys.path and sys.argv,
output and log records that come out at the owner, its own random numbers, its share of threads.
A worker may be a fork of the owner or of a fork server that imported things, so whatever was
inherited and must not be shared (random state, log handlers, the owner's children) is replaced.
Whoever forks must flush the owner's sys.stdout and sys.stderr first if output is not forwarded.

Output is collected per thread until a line ends, so lines of threads do not mix, and is sent as
records of (stream, bytes).  No write ever raises into a task: when the owner is gone, text goes to
the file descriptor that was there before, if that is still the same file.
"""

from __future__ import annotations

import atexit
import faulthandler  # noqa: F401  once, before forks: run_crash.c enables it in each worker
import functools
import io
import os
import sys
import types
from _signal import SIG_BLOCK, SIG_SETMASK
from _signal import pthread_sigmask as _pthread_sigmask
from _thread import RLock, get_ident

from . import _core, _pickling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Send = Callable[[int, bytes], object]  # False: the way is closed

STDOUT = 1
STDERR = 2
LOG = 3

_PENDING_MAX = 64 * 1024  # bytes of an unfinished line that are kept back
_RECORD_MAX = 32 * 1024  # bytes in one record: one datagram, TRI_OUTPUT_PIECE of pool/worker.h

pid = 0  # of the worker that this is; a child of it has another.  See _pool._default_workers()
imports_around = 0  # its pool.  See _pool._imports_around()

_streams: list[_Stream] = []
_replaced: list[Any] = []  # the streams of the owner, see _redirect()
_written = False


# ---------------------------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------------------------


def _file_of(fd: int) -> tuple[int, int] | None:
    """Which file the descriptor *fd* has; None if it is closed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Stream(io.TextIOBase):
    """Stands for sys.stdout or sys.stderr in a worker.

    Like a terminal in that lines go out when they end, like a file in that isatty() is False and
    fileno() is the real descriptor.  Never closed: a task that closes it flushes it.
    """

    def __init__(self, number: int, fd: int, send: Send | None = None) -> None:
        self._number = number
        self._fd = fd
        self._send: Any = send
        self._file = _file_of(fd)
        self._pid = os.getpid()
        self._lock = RLock()
        self._pending: dict[int, list[bytes]] = {}
        self._sizes: dict[int, int] = {}
        self.muted = False  # what is written is dropped
        self.buffer = _Binary(self)

    # What a text stream is asked for.
    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    write_through = False
    mode = "w"

    @property
    def name(self) -> str:
        """As the original is called."""
        return "<stdout>" if self._number == STDOUT else "<stderr>"

    @property
    def closed(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """No."""
        return False

    def seekable(self) -> bool:
        """No."""
        return False

    def isatty(self) -> bool:
        """No: colours and cursor movements would not reach a terminal."""
        return False

    def fileno(self) -> int:
        """The descriptor that the process really has."""
        return self._fd

    def reconfigure(self, **_: object) -> None:
        """Accepted and without effect."""

    def detach(self) -> Any:
        """Refused: there is nothing beneath."""
        raise io.UnsupportedOperation("detach")

    def close(self) -> None:
        """Flush; the stream stays usable for later tasks."""
        self.flush()

    def write(self, text: str) -> int:
        """Collect *text* and send the lines that are whole."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.write_bytes(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        """write() each."""
        for line in lines:
            self.write(line)

    def write_bytes(self, data: bytes) -> None:
        """Collect *data*; send up to the last end of line, or all of it when it is much."""
        global _written
        if not data or self.muted:
            return
        _written = True
        me = get_ident()
        with self._lock:
            if os.getpid() != self._pid:
                self._after_fork()
            cut = data.rfind(b"\n") + 1
            pending = self._pending.get(me)
            if cut == 0:
                if pending is None:
                    pending = self._pending[me] = []
                pending.append(data)
                size = self._sizes[me] = self._sizes.get(me, 0) + len(data)
                if size > _PENDING_MAX:
                    self._flush_thread(me)
                return
            if pending is not None:
                pending.append(data[:cut])
                self._flush_thread(me)
            else:
                self._out(data[:cut])
            if cut < len(data):
                self._pending[me] = [data[cut:]]
                self._sizes[me] = len(data) - cut

    def flush(self) -> None:
        """Send what the calling thread has collected."""
        with self._lock:
            if os.getpid() != self._pid:
                self._after_fork()
            self._flush_thread(get_ident())

    def flush_all(self) -> None:
        """Send what any thread has collected."""
        with self._lock:
            if os.getpid() != self._pid:
                self._after_fork()
            for thread in list(self._pending):
                self._flush_thread(thread)

    def _flush_thread(self, thread: int) -> None:
        pending = self._pending.pop(thread, None)
        self._sizes.pop(thread, None)
        if pending:
            self._out(b"".join(pending))

    def _after_fork(self) -> None:
        """A task forked: the child has no place in the pool, so it writes for itself."""
        self._pid = os.getpid()
        self._pending.clear()
        self._sizes.clear()
        self._send = self._write_fd

    def _out(self, data: bytes) -> None:
        for i in range(0, len(data), _RECORD_MAX):
            piece = data[i : i + _RECORD_MAX] if len(data) > _RECORD_MAX else data
            # What a signal's handler raises in there is the task's.
            if self._send(self._number, piece) is False:
                self._write_fd(self._number, piece)

    def _write_fd(self, number: int, data: bytes) -> None:
        try:
            if _file_of(self._fd) != self._file:
                return  # a task has closed it, and somebody else's may have its number
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as exc:
            if exc.errno is None:  # of a signal's handler
                raise
            # nobody is left to read it


class _Binary(io.BufferedIOBase):
    """sys.stdout.buffer: bytes go the same way as text."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    @property
    def closed(self) -> bool:
        """Never."""
        return False

    @property
    def raw(self) -> _Binary:
        """Itself: there is no layer beneath."""
        return self

    @property
    def name(self) -> str:
        """As the text stream is called."""
        return self._stream.name

    mode = "wb"

    def writable(self) -> bool:
        """Yes."""
        return True

    def isatty(self) -> bool:
        """No."""
        return False

    def fileno(self) -> int:
        """The descriptor that the process really has."""
        return self._stream.fileno()

    def write(self, data: Any) -> int:
        """Collect bytes as _Stream.write() does text."""
        data = bytes(memoryview(data))
        self._stream.write_bytes(data)
        return len(data)

    def flush(self) -> None:
        """Send what the calling thread has collected."""
        self._stream.flush()

    def close(self) -> None:
        """Flush."""
        self._stream.flush()


def _redirect(send: Send, streams: tuple[_Stream, _Stream]) -> None:
    """Put forwarding streams in place of sys.stdout and sys.stderr.

    A fork inherits text that the owner had not flushed.  It is the owner's to write, so the old
    streams are neither flushed nor released (which would flush them).
    """
    _replaced.append((sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__))
    _streams[:] = out, err = streams
    out._send = err._send = send
    out._pid = err._pid = pid
    sys.stdout = sys.__stdout__ = out  # type: ignore[misc, assignment]
    sys.stderr = sys.__stderr__ = err  # type: ignore[misc, assignment]


def _line_buffer() -> None:
    """Without forwarding: let lines out as they end, since workers leave without a last flush."""
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            try:
                stream.reconfigure(line_buffering=True)
            except Exception:
                pass


# ---------------------------------------------------------------------------------------------
# Logging
# ---------------------------------------------------------------------------------------------


def _encode_record(record: Any) -> bytes:
    """A log record as a pickled dict of what survives the journey."""
    import _pickle as pickle
    import logging

    fields = dict(record.__dict__)
    fields["msg"] = record.getMessage()
    fields["args"] = None
    if record.exc_info:
        if not record.exc_text:
            fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
        fields["exc_info"] = None
    try:
        return pickle.dumps(fields, 5)
    except Exception:
        pass
    for name, value in fields.items():
        # Attributes the user added with extra=.
        if not isinstance(value, (str, int, float, bool, type(None))):
            fields[name] = repr(value)
    return pickle.dumps(fields, 5)


def _forward_logging(send: Send, config: dict[str, Any]) -> None:
    """Send every log record to the owner, and nowhere else."""
    import logging

    class Forward(logging.Handler):
        """The only handler of a worker."""

        def emit(self, record: logging.LogRecord) -> None:
            """Send the record; a record that cannot be sent is dropped."""
            try:
                data = _encode_record(record)
            except Exception:
                return
            if os.getpid() == pid:
                send(LOG, data)

    pid = os.getpid()
    root = logging.getLogger()
    # In a fork the owner's handlers are here too; the record reaches them at the owner.
    for logger in (root, *root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    root.addHandler(Forward())
    root.setLevel(config.get("level", logging.WARNING))
    for name, level in config.get("loggers", {}).items():
        logging.getLogger(name).setLevel(level)
    logging.disable(config.get("disable", 0))


# ---------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------

_VALUES = frozenset((int, float, complex, bool, str, bytes, type(None)))


def _names_only(part: Any) -> bool:
    kind = type(part)
    if kind is types.BuiltinFunctionType:
        return part.__self__ is None or type(part.__self__) is types.ModuleType
    return kind is types.FunctionType or kind in _VALUES or isinstance(part, type)


def stateless(function: Any) -> bool:
    """Whether no call of *function* can leave anything in it for the next one.

    What a plain function's closure holds is left out: the originals send no closures.
    """
    if type(function) is not functools.partial:
        return _names_only(function)
    return not function.keywords and all(map(_names_only, (function.func, *function.args)))


# ---------------------------------------------------------------------------------------------
# The rest of a process
# ---------------------------------------------------------------------------------------------

_reseeders: list[Callable[[], object]] = []


def register_reseed(function: Callable[[], object]) -> None:
    """Have *function* called in every worker forked from this process, to renew random state."""
    _reseeders.append(function)


def _reseed() -> None:
    """Give this worker random numbers of its own, whatever it inherited."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    generator = getattr(torch, "default_generator", None)
    if generator is not None:
        generator.seed()
    for function in _reseeders:
        function()


def _disown() -> None:
    """Forget what was the owner's: classes born there, and its multiprocessing children.

    end() would otherwise try to end these.
    """
    _pickling.become_worker()
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        process._children = set()  # type: ignore[attr-defined]
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._finalizer_registry.clear()


def _limits() -> Any:
    """That module.  An import statement runs code of Python's even for what is there already.

    Each page that it touches, if only to count references, is then this worker's own.
    """
    module = sys.modules.get("trireme._limits")
    if module is None:
        from . import _limits as module
    return module


def _move_in(environ: dict[str, str] | None, cwd: str | None) -> None:
    """Take the owner's environment and folder of now: the fork server has those of its start."""
    if environ is not None:
        here = os.environ
        # The fork server's own limits of BLAS threads are for _limits to judge, unless the owner
        # has set the variables since.
        ours = [n for n in _limits().told() if n in here and n not in environ]
        if ours:
            environ = {**environ, **{n: here[n] for n in ours}, "TRIREME_SET": ",".join(ours)}
        for name in [n for n in here if n not in environ]:
            del here[name]
        for name, value in environ.items():
            if here.get(name) != value:
                here[name] = value
    if cwd is not None:
        try:
            if os.getcwd() != cwd:
                os.chdir(cwd)
        except OSError:
            pass  # it is gone, or not ours to enter


def begin(info: dict[str, Any]) -> None:
    """Set up this worker.  Called once, before the first task.

    Keys of *info*, each optional:

    output       callable send(stream: int, data: bytes), stream 1 stdout, 2 stderr, 3 a log
                 record, False when the way is closed; absent: sys.stdout and sys.stderr stay,
                 line-buffered
    logging      what _output.logging_config() gave at the owner, None for no forwarding
    path, argv   lists for sys.path and sys.argv
    environ      the owner's environment as a dict; cwd, its current folder
    mask         the signals that the owner blocks, a list
    settings     what _settings.changed() gave at the owner
    threads      BLAS/OpenMP threads for this worker; None for no limit
    imports_around  in how many modules' imports, one in another's worker, the pool was opened
    forward      False to leave the streams alone although there is an output
    reseed       False to keep inherited random state; default True
    initializer  bytes of _pickling.dumps_inband((function, args tuple)), or the tuple itself in a
                 fork; called last

    Raises what the initializer raises.
    """
    global pid, imports_around, _ready, _mask, _again
    pid = os.getpid()
    _again = None
    imports_around = info.get("imports_around", 0)
    _mask = None  # what the initializer changes is to stay
    send = info.get("output") if info.get("forward", True) else None
    path = info.get("path")
    if path is not None:
        sys.path[:] = path
    environ, cwd = info.get("environ"), info.get("cwd")
    if environ is not None or cwd is not None:
        _move_in(environ, cwd)
    argv = info.get("argv")
    if argv is not None:
        sys.argv[:] = argv
    mask = info.get("mask")
    if mask is not None:
        (_set_mask or _pthread_sigmask)(SIG_SETMASK, mask)
    ready, _ready = _ready, None  # a fork of this worker that is a worker itself has its own
    if ready is None:
        _disown()
    if send is not None:
        _redirect(send, ready or (_Stream(STDOUT, 1), _Stream(STDERR, 2)))
        if info.get("logging") is not None:
            _forward_logging(send, info["logging"])
            _again = functools.partial(_forward_logging, send, info["logging"])
    else:
        _line_buffer()
    threads = info.get("threads")
    if threads is not None:
        _limits().apply(threads, wardens=environ is None)
    settings = info.get("settings")
    if settings:
        from . import _settings

        _settings.apply(settings)
    if info.get("reseed", True):
        _reseed()
    initializer = info.get("initializer")
    if initializer is not None:
        if isinstance(initializer, (bytes, bytearray, memoryview)):
            initializer = _pickling.loads(initializer)
        function, args = initializer
        function(*args)
    _begun()


def _begun() -> None:
    """The first task may come."""
    global _mask
    flush()
    if _set_mask is None:  # a fork inherits it
        _watch_mask()
    _mask = _set_mask(SIG_BLOCK, ())


def serve() -> None:
    """For an initializer that is to be around the tasks: run them all, until this worker leaves."""
    _begun()
    _core._worker_serve()


_again: Callable[[], None] | None = None  # undoes what a script does to logging at its top
_mask: Any = None  # the signals that are blocked between tasks
_set_mask: Any = None


def _watch_mask() -> None:
    """Notice when a task changes the signal mask, so that the next one does not inherit it.

    Reading the mask after every task would be a system call per task.
    """
    global _set_mask
    import _signal

    _set_mask = original = _signal.pthread_sigmask

    def pthread_sigmask(how: int, mask: Any) -> Any:
        global _written
        _written = True
        return original(how, mask)

    pthread_sigmask.__doc__ = original.__doc__
    _signal.pthread_sigmask = pthread_sigmask


_ready: tuple[_Stream, _Stream] | None = None  # of expect_forks(), in a fork of that process


def expect_forks() -> None:
    """In the fork server: do what each worker would do for itself, on pages of its own.

    Called again after each import, which may have started something of its own.  sys.stdout and
    sys.stderr stay what they are: the streams of workers are nothing that a library may keep.
    """
    global _ready, _written
    if _ready is None:
        _ready = _Stream(STDOUT, 1), _Stream(STDERR, 2)
        _watch_mask()
    _core._expect_forks()
    _disown()
    _written = False


def flush() -> None:
    """After a task: send what it left unfinished, restore the signal mask it changed.

    Costs one comparison if it did neither.
    """
    global _written
    if _written:
        _written = False
        if _mask is not None:
            _set_mask(SIG_SETMASK, _mask)
        for stream in _streams:
            stream.flush_all()


_ends_as_process = False


def end_as_process(forked: bool) -> None:
    """Have this worker end as a process of multiprocessing does; *forked*: from one of Python."""
    global _ends_as_process
    _ends_as_process = True
    if forked:
        atexit._clear()  # what is registered there is the owner's


def _end_threads() -> None:
    threading: Any = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()


def end() -> None:
    """Before the worker leaves with _exit(): finalizers of multiprocessing, then all output.

    In a facade's worker, first what ends any process of Python: threads that are no daemons are
    waited for, and what tasks registered with atexit is called.
    """
    if _ends_as_process:
        for way in (_end_threads, atexit._run_exitfuncs):
            try:
                way()
            except BaseException:
                pass  # atexit has shown it; and what is left to do here is to be done
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        try:
            util._exit_function()
        except Exception:
            pass
    for stream in _streams:
        stream.flush_all()
    for own in sys.stdout, sys.stderr:
        try:
            own.flush()
        except Exception:
            pass  # None, or something of the task's making
