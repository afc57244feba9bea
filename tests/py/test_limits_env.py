# SPDX-License-Identifier: BSD-3-Clause
"""Poor surroundings: little memory, few descriptors, no /dev/shm, no /tmp, refused system calls.

A pool either works there or says in one clear exception why not; it never hangs, never dies of
SIGBUS, and a pool that could not be opened leaves nothing behind.  Rows that need root, strace or
a compiler-free seccomp filter are skipped, with the reason, where those are missing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap

import pytest
from faultlib import STARTS, run_row, start_row

WORK = """
with tri.Pool(2, start={start!r}) as pool:
    live = live_bytes(pool, die)
    data = pool.submit(bytes, 3_000_000).result(within(10))
    assert len(data) == 3_000_000
    assert pool.submit(len, bytes(3_000_000)).result(within(10)) == 3_000_000
    assert [len(x) for x in pool.map(bytes, [100_000] * 20)] == [100_000] * 20
    exc = failure(lambda: pool.submit(die, "kill").result(within(10)))
    assert type(exc) is tri.WorkerLost, exc
    del data
    healthy(pool)
"""

# Works, or fails at once with one clear exception.
WORK_OR_SAY = """
try:
    pool = tri.Pool(2, start={start!r})
except (OSError, MemoryError, RuntimeError) as exc:
    assert str(exc), repr(exc)
    print("said:", type(exc).__name__, exc)
    until(lambda: not own_processes(), 2.0, "nothing is left of it")
else:
    with pool:
        healthy(pool)
        failure(lambda: pool.submit(die, "kill").result(within(10)))
        healthy(pool)
    print("works")
"""


def _root() -> None:
    if os.geteuid():
        pytest.skip("needs root")


def _namespace(*commands: str) -> tuple[str, ...]:
    """A prefix that runs a program in a mount namespace of its own after some commands."""
    _root()
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"unshare -m is refused: {probe.stderr.strip()}")
    script = " && ".join(["mount --make-rprivate /", *commands, 'exec "$@"'])
    probe = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", "true"], capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"the mounts are refused: {probe.stderr.strip()}")
    return ("unshare", "-m", "sh", "-c", script, "sh")


# ---------------------------------------------------------------------------------------------
# File systems
# ---------------------------------------------------------------------------------------------

MOUNTS = {
    "/dev/shm read-only": ("mount -t tmpfs -o ro none /dev/shm",),
    "/dev/shm full": (
        "mount -t tmpfs -o size=64k none /dev/shm",
        "dd if=/dev/zero of=/dev/shm/x bs=64k count=1 2>/dev/null",
    ),
    "/dev/shm of 64 MB": ("mount -t tmpfs -o size=64m none /dev/shm",),
    "/dev/shm absent": ("mount -t tmpfs none /mnt", "mkdir /mnt/e", "mount --move /mnt /dev/shm"),
    "/dev/shm not permitted": ("mount -t tmpfs -o mode=000 none /dev/shm",),
    "/tmp noexec": ("mount -t tmpfs -o noexec none /tmp",),
    "/tmp read-only": ("mount -t tmpfs -o ro none /tmp",),
    "root read-only": ("mount -o remount,bind,ro /",),
    "no /proc": ("mount -t tmpfs none /proc",),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("mounts", [m for m in MOUNTS if m != "no /proc"])
def test_file_systems(start: str, mounts: str) -> None:
    prefix = _namespace(*MOUNTS[mounts])
    if "/tmp" in mounts and any(p.startswith("/tmp") for p in (sys.executable, *_package())):
        prefix = _namespace(*_kept_in_tmp(MOUNTS[mounts]))
    run_row(WORK.format(start=start), prefix=prefix)


def _package() -> list[str]:
    """Where the package under test and its dependencies are."""
    import trireme

    package = os.path.dirname(os.path.dirname(os.path.abspath(trireme.__file__)))
    return [package, sys.prefix, os.path.dirname(os.path.abspath(__file__))]


def _kept_in_tmp(mounts: tuple[str, ...]) -> tuple[str, ...]:
    """Mounts over /tmp that leave the package under test where it is."""
    kept = sorted({p for p in (*_package(), os.path.dirname(sys.executable)) if p[:4] == "/tmp"})
    before = ["mount -t tmpfs none /mnt", "mount --make-private /mnt"]
    after = []
    for i, place in enumerate(kept):
        before += [f"mkdir /mnt/{i}", f"mount --bind {place} /mnt/{i}"]
        after += [f"mkdir -p {place}", f"mount --bind /mnt/{i} {place}"]
    made = []
    for command in mounts:
        made.append(command.replace("-o ro", "-o rw"))
    if any("-o ro" in c for c in mounts):
        after.append("mount -o remount,ro /tmp")
    return (*before, *made, *after)


@pytest.mark.parametrize("start", STARTS)
def test_without_proc(start: str) -> None:
    """Nothing of the runtime itself needs /proc; the test's own counting does."""
    prefix = _namespace(*MOUNTS["no /proc"])
    run_row(
        f"""
        with tri.Pool(2, start={start!r}) as pool:
            assert pool.map(square, range(100)) == [x * x for x in range(100)]
            exc = failure(lambda: pool.submit(die, "kill").result(10))
            assert type(exc) is tri.WorkerLost
            assert pool.map(square, range(100)) == [x * x for x in range(100)]
        """,
        prefix=prefix,
    )


@pytest.mark.parametrize("start", [*STARTS, "spawn"])
def test_no_home_and_a_bare_environment(start: str) -> None:
    env: dict[str, str | None] = {
        name: None
        for name in os.environ
        if name not in ("PYTHONPATH", "LD_LIBRARY_PATH", "ASAN_OPTIONS", "LD_PRELOAD")
    }
    run_row(WORK.format(start=start), env=env)


@pytest.mark.parametrize("start", [*STARTS, "spawn"])
def test_working_folder_that_was_removed(start: str) -> None:
    run_row(
        f"""
        import socket  # Python 3.13.0 itself cannot import it there
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
        with tri.Pool(2, start={start!r}) as pool:
            healthy(pool)
        """
    )


@pytest.mark.parametrize("name", ["de_DE.UTF-8", "tr_TR.UTF-8", "C", "POSIX", "nonsense"])
def test_locales(name: str) -> None:
    run_row(
        """
        import locale
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, "")
        with tri.Pool(2, start="forkserver") as pool:
            healthy(pool)
            assert pool.submit(float, "1.5").result(5) == 1.5
            exc = failure(lambda: pool.submit(time.sleep, 60, timeout=0.25).result(5))
            assert "0.25" in str(exc), exc
        """,
        env={"LC_ALL": name, "LANG": name},
    )


@pytest.mark.parametrize("start", [*STARTS, "spawn"])
@pytest.mark.parametrize("closed", ["0", "1", "2", "0, 1, 2"])
def test_standard_streams_closed(start: str, closed: str) -> None:
    run_row(
        f"""
        for fd in ({closed},):
            os.close(fd)
        with tri.Pool(2, start={start!r}) as pool:
            healthy(pool)
            pool.submit(print, end="").result(5)
            pool.submit(bytes, 300_000).result(5)
        """,
        noise=True,
    )


# ---------------------------------------------------------------------------------------------
# Limits
# ---------------------------------------------------------------------------------------------


def _limits(**limits: int) -> object:
    def set_them() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    return set_them


@pytest.mark.parametrize("start", [*STARTS, "spawn"])
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_file_size_limit(start: str, limit: int) -> None:
    """It applies to memfd too, and would be a SIGXFSZ."""
    run_row(WORK.format(start=start), preexec_fn=_limits(FSIZE=limit))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("megabytes", [1500, 400, 150])
def test_address_space_limit(start: str, megabytes: int) -> None:
    limit = megabytes << 20
    run = run_row(WORK_OR_SAY.format(start=start), preexec_fn=_limits(AS=limit), noise=True)
    if megabytes == 1500:
        assert run.out == "works\n", run.describe()


@pytest.mark.parametrize("start", [*STARTS, "spawn"])
def test_few_descriptors(start: str) -> None:
    run_row(WORK.format(start=start), preexec_fn=_limits(NOFILE=64))


@pytest.mark.parametrize("start", STARTS)
def test_no_descriptor_left(start: str) -> None:
    """Creation is all or nothing at each number of descriptors that are left."""
    run_row(
        f"""
        with tri.Pool(2, start={start!r}) as pool:  # what is imported once is imported now
            healthy(pool)
        with contextlib.suppress(Exception):
            failure(lambda: None)
        gc.collect()
        until(lambda: len(wardens()) <= 1 and len(own_processes()) <= 1, 2.0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        seen = set()
        for left in range(14):
            taken = []
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            for fd in taken[:left]:
                os.close(fd)
            before = len(taken) - left
            try:
                pool = tri.Pool(2, start={start!r})
            except OSError as exc:
                assert exc.errno in (errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS), repr(exc)
                seen.add("refused")
                pool = None
            else:
                assert pool.map(square, range(50)) == [x * x for x in range(50)]
                pool.terminate()
                seen.add("opened")
            del pool
            for fd in taken[left:]:
                os.close(fd)
            gc.collect()
            until(lambda: len(own_processes()) <= 1, 2.0, f"nothing left at {{left}}")
        assert "refused" in seen, seen
        assert len(os.listdir("/proc/self/fd")) < 12, os.listdir("/proc/self/fd")
        with tri.Pool(2, start={start!r}) as pool:
            healthy(pool)
        """,
        limit=40.0,
    )


@pytest.mark.parametrize("start", STARTS)
def test_little_stack(start: str) -> None:
    run_row(WORK.format(start=start), preexec_fn=_limits(STACK=512 << 10))


@pytest.mark.parametrize("allowed", range(1, 9))
def test_no_more_processes(allowed: int) -> None:
    """fork gives EAGAIN at each place where one is made: a clear OSError, and nothing left."""
    _root()
    uid = 54321 + os.getpid() % 1000 + 1000 * allowed
    run = run_row(
        f"""
        with tri.Pool(2, start="fork") as pool:  # imports what root alone may be able to read
            live_bytes(pool, die)
            failure(lambda: pool.submit(die, "kill").result(within(10)))
        until(lambda: not own_processes(), 2.0)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_NPROC, ({allowed}, {allowed}))
        os.setresuid({uid}, {uid}, {uid})
        """
        + textwrap.indent(WORK_OR_SAY.format(start="fork"), 8 * " ")
    )
    # The owner, one that leaves at once, the warden, two workers.
    if allowed >= 5:
        assert run.out == "works\n", run.describe()
    elif allowed <= 3:
        assert run.out.startswith("said: BlockingIOError [Errno 11]"), run.describe()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("when", [2, 3, 4, 5])  # of each process; the row's first is a thread
@pytest.mark.parametrize("error", ["EAGAIN", "ENOMEM"])
def test_fork_that_fails_now_and_then(start: str, when: int, error: str) -> None:
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("needs strace")
    call = "clone,clone3,fork,vfork"
    with tempfile.NamedTemporaryFile() as log:
        prefix = (strace, "-f", "-qq", "-o", log.name, "-e", f"trace={call}",
                  "-e", f"inject={call}:error={error}:when={when}")  # fmt: skip
        probe = subprocess.run([strace, "-qq", "-o", log.name, "true"], capture_output=True)
        if probe.returncode:
            pytest.skip(f"strace is refused: {probe.stderr!r}")
        run = run_row(WORK_OR_SAY.format(start=start), prefix=prefix, limit=30.0)
    assert run.out == "works\n" or f"[Errno {getattr(errno, error)}]" in run.out, run.describe()


# ---------------------------------------------------------------------------------------------
# Refused system calls
# ---------------------------------------------------------------------------------------------

X86_64 = {
    "memfd_create": 319,
    "pidfd_open": 434,
    "close_range": 436,
    "signalfd4": 289,
    "timer_create": 222,
    "prctl": 157,
    "madvise": 28,
    "fallocate": 285,
    "socketpair": 53,
    "futex": 202,
    "userfaultfd": 323,
}


def _refuse(names: tuple[str, ...], code: int) -> object:
    """A seccomp filter that answers some system calls with an error, for preexec_fn."""
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the system calls are those of x86-64")
    lines = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the number
    for i, name in enumerate(names):
        lines.append(struct.pack("HBBI", 0x15, len(names) - i, 0, X86_64[name]))
    lines.append(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))  # allow
    lines.append(struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | code))  # errno
    program = b"".join(lines)

    def install() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(program)
        fprog = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer))
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_char_p(fprog), 0, 0):
            raise OSError(ctypes.get_errno(), "seccomp is refused")

    probe = subprocess.run([sys.executable, "-c", ""], preexec_fn=_quiet(install))
    if probe.returncode:
        pytest.skip("seccomp is refused here")
    return install


def _quiet(install: object) -> object:
    def run() -> None:
        try:
            install()  # type: ignore[operator]
        except OSError:
            os._exit(3)

    return run


@pytest.mark.parametrize("start", [*STARTS, "spawn"])
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize(
    "names",
    [("memfd_create",), ("pidfd_open",), ("close_range",),
     ("memfd_create", "pidfd_open", "close_range")],
    ids=lambda names: "+".join(names),
)  # fmt: skip
def test_refused_calls_have_a_fallback(start: str, code: int, names: tuple[str, ...]) -> None:
    run_row(WORK.format(start=start), preexec_fn=_refuse(names, code))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "name", ["signalfd4", "socketpair", "timer_create", "madvise", "fallocate"]
)
def test_refused_calls_without_a_fallback_are_one_error(start: str, name: str) -> None:
    run = run_row(
        WORK_OR_SAY.format(start=start), preexec_fn=_refuse((name,), errno.EPERM), noise=True
    )
    if name == "socketpair":
        assert run.out.startswith("said: PermissionError"), run.describe()
    if name in ("timer_create", "madvise", "fallocate"):
        assert run.out == "works\n", run.describe()


@pytest.mark.parametrize("start", STARTS)
def test_time_limit_where_timers_are_refused(start: str) -> None:
    """A limit that cannot be kept is an error of that task, never a silent wait for ever."""
    run_row(
        f"""
        with tri.Pool(2, start={start!r}) as pool:
            exc = failure(lambda: pool.submit(time.sleep, 600, timeout=0.2).result(within(3)))
            assert isinstance(exc, (OSError, tri.TaskTimeout)), repr(exc)
            assert not isinstance(exc, TimeoutError) or type(exc) is tri.TaskTimeout, repr(exc)
            healthy(pool)
        """,
        preexec_fn=_refuse(("timer_create",), errno.EAGAIN),
    )


@pytest.mark.parametrize("start", STARTS)
def test_owner_killed_where_pidfd_is_refused(start: str) -> None:
    """The end of the socket tells the warden instead."""
    run = start_row(
        f"""
        pool = tri.Pool(2, start={start!r})
        keep = [pool.submit(time.sleep, 600) for _ in range(2)]
        until(lambda: all(f.running() for f in keep))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        preexec_fn=_refuse(("pidfd_open",), errno.ENOSYS),
    )
    try:
        run.finish()
        assert not run.leftovers(1.0), run.describe()
    finally:
        run.end_all()
