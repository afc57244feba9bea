# SPDX-License-Identifier: BSD-3-Clause
"""The command line, run as its users run it: as a program, from outside.

The program is $TRIREME_CLI, or `trireme` beside this interpreter, or the newest build*/cli/trireme.
Scripts meet each other and the test through named pipes, never through sleeps.
"""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAG = "TRIREME_CLI_TEST_TAG"
LIMIT = 60.0


def find_cli() -> str | None:
    """The program under test, or None."""
    if chosen := os.environ.get("TRIREME_CLI"):
        return os.path.abspath(chosen)
    builds = sorted(ROOT.glob("build*/cli/trireme"), key=lambda p: p.stat().st_mtime)
    for path in [Path(sys.executable).parent / "trireme", *reversed(builds)]:
        if os.access(path, os.X_OK):
            return str(path)
    return None


CLI = find_cli()
pytestmark = pytest.mark.skipif(
    CLI is None, reason="no trireme program: set TRIREME_CLI, install the wheel or build"
)


class Desk:
    """A folder of scripts, and runs of the program in it whose processes can be recognised."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tag = uuid.uuid4().hex
        self.env = {**os.environ, TAG: self.tag, "TRIREME_PYTHON": sys.executable}

    def write(self, name: str, text: str) -> str:
        """A script; executable when it says who runs it."""
        file = self.path / name
        file.write_text(text)
        if text.startswith("#!"):
            file.chmod(0o755)
        return name

    def fifo(self, name: str) -> Path:
        os.mkfifo(self.path / name)
        return self.path / name

    def start(self, *args: str, **options: object) -> subprocess.Popen[bytes]:
        settings: dict[str, object] = {
            "cwd": self.path,
            "env": self.env,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        }
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [str(CLI), *args],
            **settings,  # type: ignore[call-overload]
        )
        return process

    def run(self, *args: str, **options: object) -> tuple[int, str, str]:
        """Exit code, stdout, stderr; nothing may be left when the program has ended."""
        with self.start(*args, **options) as process:
            out, err = process.communicate(timeout=LIMIT)
        assert self.tagged() == []
        return process.returncode, (out or b"").decode(), (err or b"").decode()

    def tagged(self) -> list[int]:
        """Processes that carry this desk's tag in their environment, zombies excepted."""
        mark = f"{TAG}={self.tag}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                environ = Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if mark in environ.split(b"\0"):
                found.append(int(entry))
        return found

    def wait_until_none_is_left(self, seconds: float) -> None:
        """Wait for the end of every tagged process, by pidfd."""
        deadline = time.monotonic() + seconds
        while pids := self.tagged():
            assert time.monotonic() < deadline, f"left behind: {pids}"
            for pid in pids:
                try:
                    fd = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
                with os.fdopen(fd):
                    select.select([fd], [], [], max(0.0, deadline - time.monotonic()))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    it = Desk(tmp_path)
    yield it
    for pid in it.tagged():
        os.kill(pid, signal.SIGKILL)


def read_line(stream: object) -> bytes:
    """One line, without waiting for more, from an unbuffered pipe."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(stream.fileno(), 1)  # type: ignore[attr-defined]
        if not byte:
            break
        line += byte
    return line


# ---------------------------------------------------------------- order and contents


def test_output_is_in_the_order_given(desk: Desk) -> None:
    gate = desk.fifo("gate")
    desk.write("slow.py", f"print('slow')\nopen({str(gate)!r}).read()\nprint('end')\n")
    desk.write("fast.sh", f"echo fast; echo why >&2; echo > {gate}\n")
    code, out, err = desk.run("run", "-j", "2", "-q", "slow.py", "fast.sh")
    assert (code, out, err) == (0, "slow\nend\nfast\n", "why\n")


def test_first_unfinished_script_is_live_and_later_ones_wait(desk: Desk) -> None:
    gate, ready = desk.fifo("gate"), desk.fifo("ready")
    desk.write("a.py", f"print('live', flush=True)\nopen({str(gate)!r}).read()\n")
    desk.write("b.sh", f"echo waited; echo > {ready}\n")
    with desk.start("run", "-j2", "-q", "a.py", "b.sh") as process:
        assert read_line(process.stdout) == b"live\n"
        ready.read_text()  # b has written its line
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 0)[0] == []
        gate.write_text("go")
        assert process.communicate(timeout=LIMIT)[0] == b"waited\n"


def test_large_outputs_come_out_whole(desk: Desk) -> None:
    desk.write(
        "big.py",
        "import sys\n"
        "word = sys.argv[1].encode()\n"
        "for i in range(1000):\n"
        "    sys.stdout.buffer.write(word * 10_000)\n"
        "    sys.stderr.buffer.write(word.upper() * 100)\n",
    )
    lines = [f"{sys.executable} big.py {c}" for c in "abcd"]
    with desk.start("run", "-j", "4", "-q", *lines) as process:
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert out == b"".join(c * 10_000_000 for c in (b"a", b"b", b"c", b"d"))
    assert err == b"".join(c * 100_000 for c in (b"A", b"B", b"C", b"D"))


def pattern(seed: int, megabytes: int) -> str:
    """A script that writes so much, no two pieces alike."""
    return (
        "import hashlib, sys\n"
        f"for i in range({megabytes} * 16):\n"
        f"    block = hashlib.sha512(b'{seed} %d' % i).digest() * 1024\n"
        "    sys.stdout.buffer.write(block)\n"
        "sys.stdout.flush()\n"
    )


def pattern_digest(*parts: tuple[int, int]) -> str:
    total = hashlib.sha256()
    for seed, megabytes in parts:
        for i in range(megabytes * 16):
            total.update(hashlib.sha512(b"%d %d" % (seed, i)).digest() * 1024)
    return total.hexdigest()


def digest_of(process: subprocess.Popen[bytes]) -> str:
    total = hashlib.sha256()
    assert process.stdout is not None
    while block := process.stdout.read(1 << 20):
        total.update(block)
    return total.hexdigest()


def test_output_beyond_memory_goes_to_a_file_without_a_name(desk: Desk) -> None:
    gate = desk.fifo("gate")
    spill = desk.path / "spill"
    spill.mkdir()
    desk.env["TMPDIR"] = str(spill)
    desk.write("wait.sh", f"cat {gate}\n")
    desk.write("b.py", pattern(1, 90))
    desk.write("c.py", pattern(2, 20) + f"open({str(gate)!r}, 'w').close()\n")
    with desk.start("run", "-j3", "-q", "wait.sh", "b.py", "c.py") as process:
        digest = digest_of(process)
    assert process.returncode == 0
    assert digest == pattern_digest((1, 90), (2, 20))
    assert list(spill.iterdir()) == []


def test_scripts_wait_when_the_file_cannot_grow(desk: Desk) -> None:
    gate = desk.fifo("gate")
    desk.write("wait.sh", f"cat {gate}\n")
    desk.write("open.sh", f"echo > {gate}\n")  # runs last: the two before must not need it
    desk.write("b.py", pattern(1, 80))
    command = f"ulimit -f 1000; exec {CLI} run -j4 -q wait.sh b.py open.sh"
    with subprocess.Popen(
        ["sh", "-c", command], cwd=desk.path, env=desk.env, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        digest = digest_of(process)
    assert process.returncode == 0
    assert digest == pattern_digest((1, 80))


def test_stdout_and_stderr_of_one_script_stay_apart(desk: Desk) -> None:
    desk.write("a.sh", "for i in 1 2 3; do echo o$i; echo e$i >&2; done\n")
    code, out, err = desk.run("run", "-q", "a.sh", "a.sh")
    assert (code, out, err) == (0, "o1\no2\no3\n" * 2, "e1\ne2\ne3\n" * 2)


def test_one_at_a_time_never_overlaps(desk: Desk) -> None:
    desk.write("a.sh", "mkdir lock || exit 9; echo $$ > lock/pid; cat lock/pid; rm -r lock\n")
    code, out, _ = desk.run("run", "-j", "1", "-q", *["a.sh"] * 12)
    assert code == 0
    assert len(set(out.split())) == 12


def test_as_many_run_as_asked(desk: Desk) -> None:
    left, right = desk.fifo("left"), desk.fifo("right")
    desk.write("a.sh", f"echo > {left}; cat {right}\n")  # each needs the other to be running
    desk.write("b.sh", f"cat {left}; echo > {right}\n")
    code, out, _ = desk.run("run", "--jobs=2", "-q", "a.sh", "b.sh")
    assert (code, out) == (0, "\n\n")


def test_hundreds_of_scripts(desk: Desk) -> None:
    lines = [f"echo {i}; exit $(({i} % 3))" for i in range(300)]
    code, out, err = desk.run("run", "-j", "8", *lines)
    assert code == 2
    assert out.split() == [str(i) for i in range(300)]
    assert "300 scripts" in err and "200 failed" in err


# ---------------------------------------------------------------- what is run, and how


def test_kinds_of_scripts(desk: Desk) -> None:
    desk.write("a.py", "import sys; print(sys.executable, *sys.argv[1:])\n")
    desk.write("b.sh", 'echo sh "$#" "$@"\n')
    desk.write("direct", '#!/bin/sh\necho direct "$@"\n')
    desk.write("name with space.sh", 'echo space "$@"\n')
    words = ["a.py", "b.sh", "direct", "name with space.sh", "echo line; echo", "echo"]
    code, out, _ = desk.run("run", "-q", *words, "--", "x y", "--z", "--", "")
    arguments = "x y --z -- "
    assert code == 0
    assert out.splitlines() == [
        f"{sys.executable} {arguments}",
        f"sh 4 {arguments}",
        f"direct {arguments}",
        f"space {arguments}",
        "line",
        arguments,
        arguments,
    ]


def test_a_line_without_arguments_is_left_as_it_is(desk: Desk) -> None:
    code, out, _ = desk.run("run", "-q", "echo one # two", "exit 3 ;")
    assert (code, out) == (3, "one\n")


def test_options_end_at_the_first_dashes(desk: Desk) -> None:
    desk.write("-odd.sh", "echo odd $1\n")
    code, out, _ = desk.run("run", "-q", "--", "-odd.sh", "--", "arg")
    assert (code, out) == (0, "odd arg\n")


def test_stdin_is_empty(desk: Desk) -> None:
    desk.write("a.py", "import sys; print(repr(sys.stdin.read()))\n")
    code, out, _ = desk.run("run", "-q", "a.py", "cat -", stdin=subprocess.PIPE)
    assert (code, out) == (0, "''\n")


def test_chosen_python_is_used(desk: Desk) -> None:
    chosen = desk.path / desk.write("mypython", '#!/bin/sh\necho mine "$@"\n')
    desk.env["TRIREME_PYTHON"] = str(chosen)
    desk.write("a.py", "")
    assert desk.run("run", "-q", "a.py", "--", "x")[:2] == (0, "mine a.py x\n")
    desk.env["TRIREME_PYTHON"] = "/nonexistent/python"
    code, out, err = desk.run("run", "-q", "a.py")
    assert (code, out) == (127, "")
    assert 'TRIREME_PYTHON is "/nonexistent/python", which is no program' in err
    del desk.env["TRIREME_PYTHON"]
    desk.env["PATH"] = "/nonexistent"
    alone = shutil.copy(str(CLI), desk.path / "trireme")  # that of an environment has a Python
    done = subprocess.run(
        [alone, "run", "-q", "a.py"], cwd=desk.path, env=desk.env, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (127, b"")
    assert b"no python3 on PATH; set TRIREME_PYTHON" in done.stderr


def test_python_of_the_environment_comes_before_the_path(desk: Desk) -> None:
    here = desk.path / "venv" / "bin"
    here.mkdir(parents=True)
    shutil.copy(str(CLI), here / "trireme")
    (here / "python3").write_text('#!/bin/sh\necho venv "$@"\n')
    (here / "python3").chmod(0o755)
    desk.write("a.py", "print('path')\n")
    del desk.env["TRIREME_PYTHON"]
    command = [str(here / "trireme"), "run", "-q", "a.py"]
    run: Callable[[], str] = lambda: (
        subprocess.run(  # noqa: E731
            command, cwd=desk.path, env=desk.env, capture_output=True, text=True, check=True
        ).stdout
    )
    assert run() == "path\n"  # a folder is not an environment because a python3 is in it
    (here.parent / "pyvenv.cfg").write_text("")
    assert run() == "venv a.py\n"


# ---------------------------------------------------------------- exit codes and messages


def test_exit_code_is_the_worst(desk: Desk) -> None:
    assert desk.run("run", "-q", "exit 0 ", "exit 7 ", "exit 3 ")[0] == 7
    assert desk.run("run", "-q", "exit 1 ", "kill -SEGV $$", "exit 3 ")[0] == 128 + signal.SIGSEGV


def test_missing_script_leaves_the_others_alone(desk: Desk) -> None:
    desk.write("a.sh", "echo a\n")
    desk.write("plain.txt", "text\n")
    code, out, err = desk.run("run", "-q", "a.sh", "none.py", "a.sh", "plain.txt", "no-such-cmd")
    assert (code, out) == (127, "a\na\n")
    assert err.splitlines() == [
        "trireme run: none.py: No such file or directory",
        "trireme run: plain.txt: not executable, and neither .py nor .sh",
        "trireme run: no-such-cmd: no such script, and no such command on PATH",
    ]
    assert desk.run("run", "-q", "plain.txt", ".")[0] == 126


def test_interpreter_that_does_not_exist(desk: Desk) -> None:
    desk.write("a", "#!/nonexistent/interpreter\n")
    code, _, err = desk.run("run", "-q", "a")
    assert code == 127 and "No such file" in err and "interpreter that its first line names" in err


def test_any_number_of_jobs_may_be_asked_for(desk: Desk) -> None:
    for most in ("1000000", "99999999999999999999"):
        assert desk.run("run", "-q", "-j", most, "echo a", "echo b") == (0, "a\nb\n", "")


@pytest.mark.parametrize(
    "args",
    [
        ["run"],
        ["run", "-j", "0", "x"],
        ["run", "-j", "x", "x"],
        ["run", "x", "-j"],
        ["run", "--bad", "x"],
        ["run", "--"],
        ["run", ""],
        ["info", "x"],
        ["nothing"],
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(desk: Desk, args: list[str]) -> None:
    code, out, err = desk.run(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("trireme")


def test_help_and_version(desk: Desk) -> None:
    for args in [("--help",), ("run", "--help"), ("info", "-h"), ("--version",)]:
        code, out, err = desk.run(*args)
        assert code == 0 and "trireme" in out and err == ""
    code, out, err = desk.run()
    assert code == 2 and out == "" and "usage" in err


def test_summary_tells_times_codes_and_speed_up(desk: Desk) -> None:
    code, out, err = desk.run("run", "exit 3 ", "kill -9 $$", "none.py")
    lines = err.splitlines()
    assert code == 137 and out == ""
    assert lines[1].startswith("trireme run: 3 scripts in ") and "speed-up" in lines[1]
    assert lines[1].count("3 failed") == 1
    assert [line.split()[0] for line in lines[3:]] == ["3", "137", "127"]
    assert "Killed" in lines[4]


def test_a_script_of_many_lines_is_one_line_of_the_summary(desk: Desk) -> None:
    _, out, err = desk.run("run", "--progress", "echo a\nexit 3", "exit 0 ")
    lines = err.splitlines()
    assert out == "a\n"
    assert lines[0].startswith("[1/2] ") and lines[1].startswith("[2/2] ")
    assert sorted(line.split(" s  ")[1] for line in lines[4:]) == ["echo a exit 3", "exit 0 "]


def test_progress_is_a_line_for_each_end(desk: Desk) -> None:
    code, out, err = desk.run("run", "--progress", "-q", "-j1", "echo a ", "exit 4 ")
    assert (code, out) == (4, "a\n")
    assert [line.split()[0] for line in err.splitlines()] == ["[1/2]", "[2/2]"]
    assert "exit 4" in err


def test_progress_on_a_terminal_leaves_no_trace(desk: Desk) -> None:
    master, slave = pty.openpty()
    gate = desk.fifo("gate")
    command = [f"echo one; cat {gate}", f"echo two; echo > {gate}"]
    process = desk.start("run", "--progress", "-q", "-j2", *command, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            block = os.read(master, 4096)
        except OSError:  # the other side is closed
            break
        shown += block
    os.close(master)
    assert process.wait(LIMIT) == 0
    assert process.stdout is None
    text = shown.replace(b"\r\n", b"\n").decode()
    kept = [line.split("\r\x1b[K")[-1] for line in text.split("\n")]
    assert kept == ["one", "", "two", ""]


def test_a_result_that_cannot_be_written_is_a_failure(desk: Desk) -> None:
    with open("/dev/full", "wb") as full:
        for args in [["info"], ["run", "-q", "echo hi"], ["--version"]]:
            code, _, err = desk.run(*args, stdout=full)
            assert code == 1 and "No space left" in err


def test_reader_that_leaves_ends_the_run(desk: Desk) -> None:
    with desk.start("run", "-q", "yes yes", "yes no") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"yes\n"
        process.stdout.close()
        assert process.wait(LIMIT) == 128 + signal.SIGPIPE
    assert desk.tagged() == []


# ---------------------------------------------------------------- nothing is left behind

STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pause = "import signal; print('child', flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", pause])
print("parent", flush=True)
child.wait()
"""


def start_three(desk: Desk) -> subprocess.Popen[bytes]:
    """Three scripts that never end, all known to be running: the last one says so."""
    gates = [desk.fifo(f"gate{i}") for i in range(2)]
    desk.write(
        "stubborn.py",
        STUBBORN.replace("child.wait()", f"open({str(gates[0])!r}, 'w').close(); child.wait()"),
    )
    desk.write("nested.sh", f"sh -c 'echo > {gates[1]}; exec tail -f /dev/null' & wait\n")
    desk.write("last.sh", f"cat {gates[0]} {gates[1]}; echo ready; exec tail -f /dev/null\n")
    process = desk.start("run", "-q", "-j3", "last.sh", "stubborn.py", "nested.sh")
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    assert process.stdout.readline() == b"ready\n"
    assert len(desk.tagged()) >= 6
    return process


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_ends_every_process(desk: Desk, sig: signal.Signals) -> None:
    with start_three(desk) as process:
        began = time.monotonic()
        process.send_signal(sig)
        process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + sig
    assert desk.tagged() == []
    assert time.monotonic() - began < 10  # 2 s for the one that ignores SIGTERM


def test_second_interrupt_does_not_wait(desk: Desk) -> None:
    with start_three(desk) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert desk.tagged() == []


def test_interrupt_with_a_reader_that_does_not_read(desk: Desk) -> None:
    with desk.start("run", "-q", "-j2", "yes 1", "yes 2") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
    assert desk.tagged() == []


def test_scripts_not_started_are_told(desk: Desk) -> None:
    gate = desk.fifo("gate")
    with desk.start("run", "-j1", f"echo > {gate}; tail -f /dev/null", "echo never") as process:
        gate.read_text()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130 and out == b""
    assert b"1 not started" in err


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_tells_the_real_times(desk: Desk, sig: signal.Signals) -> None:
    gates = [desk.fifo("gate0"), desk.fifo("gate1")]
    ends = f"sleep 0.5; echo > {gates[0]}; exec tail -f /dev/null"
    # Gets SIGKILL 2 s after the SIGTERM that it does not heed.
    stays = f"trap '' TERM; sleep 0.5; echo > {gates[1]}; exec tail -f /dev/null"
    with desk.start("run", "-j2", ends, stays) as process:
        for gate in gates:
            gate.read_text()
        process.send_signal(sig)
        _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + sig
    head, _, *rows = err.decode().splitlines()
    told = re.search(r" in (\S+) s, .* add up to (\S+) s: speed-up (\S+)$", head)
    assert told is not None, head
    wall, added, speed_up = map(float, told.groups())
    times = [float(row.split()[1]) for row in rows]
    assert 0.5 <= times[0] <= wall and 2.5 <= times[1] <= wall, err
    assert abs(added - sum(times)) < 0.02 and abs(speed_up - added / wall) < 0.05


def test_a_killed_program_takes_its_scripts_along(desk: Desk) -> None:
    with start_three(desk) as process:
        process.kill()
        desk.wait_until_none_is_left(5)
        process.communicate(timeout=LIMIT)


def test_processes_left_behind_by_a_script_are_ended(desk: Desk) -> None:
    code, out, err = desk.run("run", "-q", "tail -f /dev/null & echo done", "echo next")
    assert (code, out) == (0, "done\nnext\n")
    assert "left behind" in err


def test_processes_that_end_soon_after_their_script_lose_nothing(desk: Desk) -> None:
    desk.write("late.py", "import sys\nprint(sys.stdin.read() or 'late')\n")
    code, out, err = desk.run("run", "-q", f"{sys.executable} late.py & echo done")
    assert (code, sorted(out.split()), err) == (0, ["done", "late"], "")


def test_ignored_interrupt_stays_ignored(desk: Desk) -> None:
    gate, ready = desk.fifo("gate"), desk.fifo("ready")
    command = f"trap '' INT; exec {CLI} run -q 'echo > {ready}; cat {gate}; echo end'"
    with subprocess.Popen(
        ["sh", "-c", command], cwd=desk.path, env=desk.env, stdout=subprocess.PIPE
    ) as process:
        ready.read_text()
        process.send_signal(signal.SIGINT)
        gate.write_text("go\n")
        assert process.communicate(timeout=LIMIT)[0] == b"go\nend\n"
    assert process.returncode == 0


def test_few_descriptors_mean_fewer_at_once(desk: Desk) -> None:
    command = f"ulimit -n 16; exec {CLI} run -q -j 50 " + "'echo a ' " * 50
    done = subprocess.run(
        ["sh", "-c", command], cwd=desk.path, env=desk.env, capture_output=True, timeout=LIMIT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\n" * 50, b"")


# ---------------------------------------------------------------- info


def test_info_json(desk: Desk) -> None:
    code, out, err = desk.run("info", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    cpu = facts["cpu"]
    assert 1 <= cpu["allowed"] == len(os.sched_getaffinity(0)) <= cpu["online"]
    assert 1 <= cpu["cores"] <= cpu["allowed"]
    assert facts["memory"]["total"] > facts["memory"]["free"] > 0
    assert facts["versions"]["kernel"] == os.uname().release
    assert facts["python"] == sys.executable
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert isinstance(facts["missing"], list)
    assert facts["trireme"] == desk.run("--version")[1].split()[1]


def test_info_honours_the_user_and_the_mask(desk: Desk) -> None:
    one = {min(os.sched_getaffinity(0))}

    def usable() -> dict[str, int]:
        process = desk.start("info", "--json", preexec_fn=lambda: os.sched_setaffinity(0, one))
        facts: dict[str, int] = json.loads(process.communicate(timeout=LIMIT)[0])["cpu"]
        return facts

    desk.env["PYTHON_CPU_COUNT"] = "default"
    assert (usable()["usable"], usable()["allowed"]) == (1, 1)
    desk.env["PYTHON_CPU_COUNT"] = "7"
    assert (usable()["usable"], usable()["allowed"]) == (7, 1)


def test_info_without_proc_and_sys_says_what_is_unknown(desk: Desk) -> None:
    hidden = "mount -t tmpfs none /proc && mount -t tmpfs none /sys && exec "
    inside = ["unshare", "-m", "--propagation", "private", "sh", "-c"]
    try:
        subprocess.run([*inside, hidden + "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not hide /proc")
    done = subprocess.run([*inside, hidden + f"{CLI} info"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "memory     unknown\n" in done.stdout and "by sysfs" in done.stdout


def test_info_json_is_json_whatever_the_names(desk: Desk) -> None:
    desk.env["TRIREME_PYTHON"] = os.fsdecode(b'/tmp/\xff"\\\n\xc3\xa9')
    assert json.loads(desk.run("info", "--json")[1])["python"] is None
    odd = desk.path / os.fsdecode(b'p\xff"\\\n\xc3\xa9')
    odd.write_text("#!/bin/sh\necho Python 9.9.9\n")
    odd.chmod(0o755)
    desk.env["TRIREME_PYTHON"] = str(odd)
    facts = json.loads(desk.run("info", "--json")[1])
    assert facts["python"] == str(desk.path / 'p\ufffd"\\\né')
    assert facts["versions"]["python"] == "9.9.9"


def test_info_text(desk: Desk) -> None:
    code, out, err = desk.run("info")
    assert (code, err) == (0, "")
    heads = [line.split()[0] for line in out.splitlines()]
    assert heads[:4] == ["trireme", "cpu", "cores", "quota"]
