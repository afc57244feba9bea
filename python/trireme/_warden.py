# SPDX-License-Identifier: BSD-3-Clause
"""The shared warden: a small, clean process from which workers are forked.

It is started by exec when the first pool with ``start="forkserver"`` or ``"spawn"`` opens, serves
every later pool of this process, and ends with it.  While it has nothing to do it imports the
libraries that the owner has imported, so that workers forked later have them already.

A warden that does not answer in time is killed, and with it the process in between if that is what
is stuck.  Only one that still serves other pools is not: they would lose their workers.  It is
killed at the end of this program.  It is found in /proc by the socket that it holds; where there
is no /proc it stays until it moves again, and then leaves.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from _signal import SIG_BLOCK, SIGCHLD, SIGINT, SIGTERM, pthread_sigmask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Libraries that must not be imported in a process that forks: they start threads or open devices.
_NOT_PRELOADED = {"cupy", "jax", "jaxlib", "tensorflow", "torch", "ray", "mpi4py", "trireme"}

_AT_ONCE_S = 5  # how long libraries are imported before the first fork, at most one more

_REFUSED = 100  # plus errno: how the process in between says that it could not fork

# The end of a socket on which the warden takes pools; a bare descriptor, so that neither a fork nor
# the end of the interpreter has anything to say about it.
_main = -1
_main_pid = 0
_given: dict[str, Any] = {}  # the surroundings that it was started in
_between = 0
_served = False  # it has answered once
_theirs = 0  # the warden's end, by its inode
_spared: list[int] = []  # the same of wardens that were stuck while they served other pools


def folder() -> str | None:
    """The current folder; None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def search_path() -> list[str]:
    """sys.path as it means the same in a process that starts elsewhere."""
    here = folder()
    if here is None:
        return list(sys.path)
    return [os.path.abspath(p) if p else here for p in sys.path]


def _flags() -> list[str]:
    """The options of this interpreter that its children should have too."""
    out = []
    for name, option in (("ignore_environment", "-E"), ("no_user_site", "-s")):
        if getattr(sys.flags, name):
            out.append(option)
    if sys.flags.isolated:
        out.append("-I")
    for name, letter in (("optimize", "O"), ("bytes_warning", "b"), ("dont_write_bytecode", "B")):
        if getattr(sys.flags, name):
            out.append("-" + letter * getattr(sys.flags, name))
    out += [f"-W{w}" for w in sys.warnoptions]
    for name, value in getattr(sys, "_xoptions", {}).items():
        out.append(f"-X{name}" if value is True else f"-X{name}={value}")
    return out


def _libraries() -> list[str]:
    """Installed libraries that the owner has imported and workers may want."""
    names = ["cloudpickle"]
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if (
            "." not in name
            and not name.startswith("_")
            and name not in _NOT_PRELOADED
            and ("site-packages" in path or "dist-packages" in path)
        ):
            names.append(name)
    return names[:64]


def _at_once() -> list[str]:
    """What every worker of such an owner needs before its first task.

    It is there before the first fork: each worker would spend as long on it, and keep memory of its
    own for it, of cloudpickle 4 MB and of numpy 10, that all of them can share.
    """
    from . import _pickling, _settings

    names = ["cloudpickle"] if _pickling.expects_code() else []
    if _settings.changed():
        names.append("trireme._settings")
    if "numpy" in sys.modules:
        names.append("numpy")
    if "trireme.futures.process" in sys.modules:
        names.append("trireme.futures._start")
    script = sys.modules.get("trireme.multiprocessing._script")
    if script is not None:  # a facade is here
        names += [
            "trireme.multiprocessing._script",
            "trireme.multiprocessing._ways",
            "trireme.multiprocessing._worker",
            "multiprocessing.resource_tracker",
            *script.libraries(_libraries()),
        ]
    return names


_fillers: list[Any] = []


def _expect_forks() -> None:
    """Before workers are forked: what is here now is shared with them, what they make is apart.

    CPython keeps objects of one size (to 512 bytes, in steps of 16) in pools of 16 KB.  After many
    imports most pools have a little room, and a worker would write to a page of each of them.  So
    the room is filled, for each size until a pool is begun: a third of a megabyte less per worker.
    """
    import gc

    from . import _limits, _worker

    _worker.expect_forks()
    _limits.expect_forks()
    settings = sys.modules.get("trireme._settings")
    if settings is not None:
        settings.expect_forks()
    gc.collect()
    for size in range(16, 513, 16):
        for number in range(2000):
            # The header of a bytes object is 33 bytes long.
            new: Any = bytes(size - 33) if size > 32 else float(number) if size > 16 else object()
            _fillers.append(new)
            if id(new) % 16384 == 48:  # the first of its pool
                break
        else:
            break  # another allocator, or another version's pools
    gc.freeze()


def _preloader(names: list[str]) -> Callable[[], bool]:
    """A function that imports one library per call and says whether there are more."""
    left = list(reversed(names))
    loaded = False

    def preload() -> bool:
        nonlocal loaded
        from . import _worker

        if left:
            before = set(sys.modules)
            try:
                __import__(left.pop())
            except BaseException:
                pass  # it is only a head start
            loaded = loaded or before != set(sys.modules)
            _worker.expect_forks()
        if not left and loaded:
            _expect_forks()  # not in vain: it writes to pages that workers share by now
        return bool(left)

    return preload


def _above_two(fd: int) -> int:
    """*fd*, or a copy of it above the standard streams, which may be closed here."""
    if not 0 <= fd <= 2:
        return fd
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _surroundings() -> dict[str, Any]:
    mask = sorted(n for n in pthread_sigmask(SIG_BLOCK, ()) if n != SIGINT)
    return {"environ": dict(os.environ), "cwd": folder(), "path": search_path(), "mask": mask}


def news() -> dict[str, Any]:
    """What a worker must be told of this process's surroundings: what its warden does not know.

    To compare and set a hundred variables costs each worker a quarter of a megabyte.
    """
    now = _surroundings()
    known = _given if _main >= 0 and _main_pid == os.getpid() else now  # it starts with that
    return {name: value for name, value in now.items() if value != known.get(name)}


def _start(spawn: bool) -> None:
    global _main, _main_pid, _between, _served, _theirs, _given
    if _main_pid != os.getpid():
        _spared.clear()
    if _main >= 0:
        os.close(_main)  # of the process that we are a fork of
        _main = -1
    import socket

    from . import _core, _limits

    given = _surroundings()
    path = given["path"]
    executable = sys.executable
    if not executable:
        raise RuntimeError("sys.executable is empty: use start='fork'")
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, theirs = (_above_two(end.detach()) for end in pair)
    inode = os.fstat(theirs).st_ino
    pidfd = _above_two(_core._pidfd_self())
    base = [executable, *_flags(), "-c"]
    worker = (
        f"import sys; sys.path[:] = {path!r}; from trireme import _core; "
        "_core._worker_main(*map(int, sys.argv[1:]))"
    )
    code = (
        f"import sys; sys.path[:] = {path!r}; from trireme import _core, _warden; "
        f"_warden._serve({theirs}, {pidfd}, {spawn}, {_at_once()!r}, {_libraries()!r}, "
        f"{[*base, worker]!r})"
    )
    actions = [(os.POSIX_SPAWN_DUP2, theirs, theirs)]
    if pidfd >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, pidfd, pidfd))
    env = {**given["environ"], **_limits.warden_env()}
    try:
        # SIGINT stays blocked until the warden ignores it: Ctrl-C is the owner's business.
        _between = os.posix_spawn(
            executable,
            [*base, code],
            env,
            file_actions=actions,
            setsigmask=[SIGINT, *given["mask"]],
            setsigdef=[SIGCHLD, SIGTERM],
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
        if pidfd >= 0:
            os.close(pidfd)
    _main = ours
    _main_pid = os.getpid()
    _given = given
    _served = False
    _theirs = inode


def _serve(
    main_fd: int,
    owner_pidfd: int,
    spawn: bool,
    at_once: list[str],
    libraries: list[str],
    worker: list[str],
) -> None:
    """The warden's life, in the process started above."""
    from . import _core

    def first() -> None:
        from . import _errors, _losses, _output  # noqa: F401

        begun = time.monotonic()
        for name in at_once:
            if time.monotonic() - begun > _AT_ONCE_S:
                break  # somebody waits for an answer
            try:
                __import__(name)
            except BaseException:
                pass  # whoever needs it will see
        _expect_forks()

    # Workers that are exec'ed have no use for that.  A later pool's may be forked.
    if not spawn:
        first()
    _core._warden_main(
        main_fd, owner_pidfd, first if spawn else None, _preloader(libraries), tuple(worker)
    )


def shared(spawn: bool) -> int:
    """The descriptor on which this process's warden takes pools; starts it when there is none."""
    if _main < 0 or _main_pid != os.getpid():
        _start(spawn)
    return _main


def running() -> bool:
    """Whether there is a warden, as far as we know."""
    return _main >= 0 and _main_pid == os.getpid()


def started() -> int:
    """The warden has answered: reap the process between it and us, which has left.

    Returns the errno with which that one failed to fork the warden; 0 if it did not.
    """
    global _served
    _served = True
    return _reap_between()


def _reap_between() -> int:
    global _between
    if _between and _main_pid == os.getpid():
        pid, _between = _between, 0
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            return 0  # a handler of the program's own reaped it
        return code - _REFUSED if code > _REFUSED else 0
    return 0


def _stuck() -> bool:
    """Whether the core has shut the socket down, as it does when the time for an answer is over."""
    import select

    poll = select.poll()
    poll.register(_main, 0)
    return bool(poll.poll(0))


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""  # closed in this moment


def _kill_holders(inode: int) -> None:
    """Kill the warden that holds the socket end of this inode.  Its workers die with it."""
    import signal

    try:
        entries = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return
    for entry in entries:
        try:
            with open(f"/proc/{entry}/comm") as file:
                if not file.read().startswith("trireme-warden"):
                    continue
            for fd in os.listdir(f"/proc/{entry}/fd"):
                if _target(f"/proc/{entry}/fd/{fd}") == f"socket:[{inode}]":
                    os.kill(int(entry), signal.SIGKILL)
                    break
        except OSError:
            pass  # it has ended, or is another user's


@atexit.register
def _kill_spared() -> None:
    while _spared and _main_pid == os.getpid():
        _kill_holders(_spared.pop())


def _serves_others() -> bool:
    from . import _pool

    return any(p._kind == "process" and p._start != "fork" for p in list(_pool._open_pools))


def lost() -> int:
    """The warden did not answer: the next pool starts another.  Returns what started() does.

    Raises TimeoutError if it was stuck in its own start, where another would be, too.
    """
    global _main
    stuck = _main >= 0 and _main_pid == os.getpid() and _stuck()
    if _main >= 0:
        os.close(_main)
    _main = -1
    if _between and _main_pid == os.getpid():
        import signal

        # It leaves at once unless it is stuck in its own start; then it must not hold us up.
        for _ in range(200):
            if os.waitid(os.P_PID, _between, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.001)
        else:
            os.kill(_between, signal.SIGKILL)
    refused = _reap_between()
    if stuck and _served and _serves_others():
        _spared.append(_theirs)
    elif stuck:
        _kill_holders(_theirs)
        if not refused and not _served:
            raise TimeoutError("the process that starts workers did not answer in time") from None
    return refused
