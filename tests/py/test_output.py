# SPDX-License-Identifier: BSD-3-Clause
"""What a worker prints and logs comes out at the owner, whole, and never disturbs a task."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trireme import _output, _worker
from trireme._worker import _PENDING_MAX, _RECORD_MAX, _Stream


class Wire:
    """Records what a stream sends."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes]] = []
        self.broken = False

    def __call__(self, stream: int, data: bytes) -> bool:
        if not self.broken:
            self.records.append((stream, data))
        return not self.broken


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def fd() -> Iterator[tuple[int, int]]:
    """A pipe: (read end, write end)."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture
def stream(wire: Wire, fd: tuple[int, int]) -> _Stream:
    return _Stream(1, fd[1], wire)


def in_worker(body: str) -> Any:
    """Run *body* in a fresh interpreter after begin(); returns what it assigned to result."""
    code = (
        "import io, json, os, sys\n"
        "from trireme import _worker\n"
        "real = os.fdopen(os.dup(1), 'w')\n"
        "wire = []\n"
        "send = lambda stream, data: wire.append((stream, bytes(data)))\n"
        f"{body}\n"
        "real.write(json.dumps(result)); real.flush(); os._exit(0)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the worker's streams ---------------------------------------------------------------------


def test_lines_go_out_when_they_end(stream: _Stream, wire: Wire) -> None:
    print("a", 1, file=stream)
    stream.write("half")
    assert wire.records == [(1, b"a 1\n")]
    stream.write(" whole\nnext")
    assert wire.records[1:] == [(1, b"half whole\n")]
    stream.flush()
    assert wire.records[2:] == [(1, b"next")]


def test_it_is_a_text_stream(stream: _Stream, fd: tuple[int, int], wire: Wire) -> None:
    assert isinstance(stream, io.TextIOBase)
    assert stream.fileno() == fd[1] and not stream.isatty() and stream.writable()
    assert stream.encoding == "utf-8" and not stream.closed and stream.name == "<stdout>"
    stream.writelines(["x\n", "y\n"])
    stream.buffer.write(bytearray(b"\xff\n"))
    stream.close()
    print("still open \udcff \u20ac", file=stream)
    stream.reconfigure(line_buffering=False)
    with pytest.raises(io.UnsupportedOperation):
        stream.detach()
    with pytest.raises(TypeError, match="must be str"):
        stream.write(b"bytes")  # type: ignore[arg-type]
    sent = b"".join(data for _, data in wire.records)
    assert sent == b"x\ny\n\xff\nstill open \\udcff \xe2\x82\xac\n"


def test_a_line_without_end_is_not_kept_for_ever(stream: _Stream, wire: Wire) -> None:
    for _ in range(40):
        stream.write("x" * 10_000)
    stream.flush()
    sizes = [len(data) for _, data in wire.records]
    assert sum(sizes) == 400_000
    assert len(sizes) > 1 and max(sizes) <= max(_RECORD_MAX, _PENDING_MAX)


def test_threads_do_not_mix_their_lines(stream: _Stream, wire: Wire) -> None:
    barrier = threading.Barrier(4)

    def talk(letter: str) -> None:
        barrier.wait()
        for _ in range(200):
            for _ in range(5):
                stream.write(letter)
            stream.write("\n")

    threads = [threading.Thread(target=talk, args=(c,)) for c in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = b"".join(data for _, data in wire.records).decode().splitlines()
    assert len(lines) == 800 and all(len(set(line)) == 1 and len(line) == 5 for line in lines)


def test_a_thread_that_ended_leaves_nothing_behind(stream: _Stream, wire: Wire) -> None:
    thread = threading.Thread(target=stream.write, args=("tail",))
    thread.start()
    thread.join()
    stream.flush_all()
    assert wire.records == [(1, b"tail")]


def test_without_an_owner_text_goes_to_the_descriptor(
    stream: _Stream, wire: Wire, fd: tuple[int, int]
) -> None:
    wire.broken = True
    print("lost?", file=stream)
    assert os.read(fd[0], 100) == b"lost?\n"
    os.close(fd[1])
    print("nobody reads this", file=stream)


def test_what_is_raised_while_text_is_sent_comes_out(fd: tuple[int, int]) -> None:
    """By a signal's handler, as time limits do."""

    def send(stream: int, data: bytes) -> bool:
        raise TimeoutError("of a handler")

    stream = _Stream(1, fd[1], send)
    with pytest.raises(TimeoutError, match="of a handler"):
        print("x", file=stream)
    os.set_blocking(fd[0], False)
    with pytest.raises(BlockingIOError):
        os.read(fd[0], 100)


def test_a_fork_of_the_worker_writes_for_itself(
    stream: _Stream, wire: Wire, fd: tuple[int, int]
) -> None:
    stream.write("of the worker")
    child = os.fork()
    if child == 0:
        print("of the child", file=stream)
        os._exit(len(wire.records))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.read(fd[0], 100) == b"of the child\n"
    stream.flush()
    assert wire.records == [(1, b"of the worker")]


# --- begin, flush, end ------------------------------------------------------------------------


def test_begin_sets_up_a_worker() -> None:
    result = in_worker(
        """
from trireme import _pickling
def init(a): print("init", a)
_worker.begin({"output": send, "path": ["/here", *sys.path], "argv": ["prog", "1"], "threads": 2,
               "initializer": _pickling.dumps_inband((print, ("init", 5)))})
os.write(1, b"")
print("out", end=""); print("err", file=sys.stderr); print("deep", file=sys.__stdout__)
sys.stdout.flush()
_worker.flush()
_worker.end()
result = [sys.path[0], sys.argv, os.environ["OMP_NUM_THREADS"],
          [[s, d.decode()] for s, d in wire]]
"""
    )
    path, argv, threads, records = result
    assert path == "/here" and argv == ["prog", "1"] and threads == "2"
    assert records[0] == [1, "init 5\n"] and [2, "err\n"] in records
    assert "".join(d for s, d in records if s == 1) == "init 5\noutdeep\n"


def test_forked_workers_do_not_share_random_state() -> None:
    pytest.importorskip("numpy")
    result = in_worker(
        """
import random, numpy as np
def one():
    r, w = os.pipe()
    if os.fork() == 0:
        random.seed(1); np.random.seed(1)
        _worker.begin({"output": send})
        os.write(w, json.dumps([random.random(), np.random.random()]).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(r, 1000))
result = [one(), one()]
"""
    )
    (a, x), (b, y) = result
    assert a != b and x != y


def test_begin_without_forwarding_leaves_the_streams() -> None:
    result = in_worker(
        "old = sys.stdout\n_worker.begin({})\nresult = [sys.stdout is old, old.line_buffering]"
    )
    assert result == [True, True]


FORKED = """
_worker.expect_forks()
old = sys.stdout
sys.stdout = io.TextIOWrapper(io.BytesIO())  # a library that is imported ahead
print("a library"); print("half", end="")
_worker.expect_forks()
if os.fork():
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_what_is_imported_ahead_neither_prints_nor_prevents_it() -> None:
    result = in_worker(
        FORKED
        + """
_worker.begin({"output": send})
print("a task"); print("and", end="", file=sys.__stderr__)
_worker.flush()
result = [[s, d.decode()] for s, d in wire]
"""
    )
    assert result == [[1, "a task\n"], [2, "and"]]


def test_a_fork_servers_worker_without_forwarding_has_the_streams_of_old() -> None:
    result = in_worker(
        FORKED + "sys.stdout = old; _worker.begin({})\nresult = [sys.stdout is old, "
        "old.line_buffering, _worker._streams, sys.stderr.fileno()]"
    )
    assert result == [True, True, [], 2]


def test_a_mask_that_a_task_changes_is_restored_in_a_fork_servers_worker() -> None:
    result = in_worker(
        FORKED
        + """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # before its first task
_worker.begin({"output": send})
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
_worker.flush()
result = sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    )
    assert result == [int(signal.SIGUSR1)]


def test_end_runs_finalizers_of_multiprocessing_but_not_those_inherited() -> None:
    result = in_worker(
        """
import multiprocessing.util as util
seen = []
util.Finalize(None, lambda: seen.append("inherited"), exitpriority=1)
_worker.begin({"output": send})
util.Finalize(None, lambda: seen.append("own"), exitpriority=1)
_worker.end()
result = seen
"""
    )
    assert result == ["own"]


def test_log_records_reach_the_owners_handlers(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("quiet.module").setLevel(logging.ERROR)
    with caplog.at_level(logging.INFO):
        config = _output.logging_config()
        assert config is not None and config["level"] == logging.INFO
        records = in_worker(
            f"""
import logging
logging.basicConfig()
_worker.begin({{"output": send, "logging": {config!r}}})
log = logging.getLogger("app.part")
log.info("hello %s", "you", extra={{"lock": __import__("threading").Lock(), "n": 3}})
log.debug("not this")
logging.getLogger("quiet.module").warning("nor this")
try: 1 / 0
except ZeroDivisionError: log.exception("failed")
result = [[s, d.hex()] for s, d in wire]
"""
        )
        assert [s for s, _ in records] == [3, 3]
        for number, data in records:
            _output.deliver(number, bytes.fromhex(data), 7)
    first, second = caplog.records
    assert first.getMessage() == "hello you" and first.name == "app.part"
    assert first.n == 3 and "lock" in first.lock  # type: ignore[attr-defined]
    assert first.process != os.getpid()
    assert second.exc_text is not None and "ZeroDivisionError" in second.exc_text
    logging.getLogger("quiet.module").setLevel(logging.NOTSET)


# --- the owner --------------------------------------------------------------------------------


def test_text_goes_to_the_stream_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    _output.deliver(1, b"one\n", 7)
    elsewhere = io.StringIO()
    with contextlib.redirect_stdout(elsewhere):
        _output.deliver(1, b"two\n", 7)
    _output.deliver(2, b"three\n", 7)
    assert elsewhere.getvalue() == "two\n"
    assert capsys.readouterr() == ("one\n", "three\n")


def test_characters_cut_between_records_are_joined(capsys: pytest.CaptureFixture[str]) -> None:
    euro = "\u20ac".encode()
    _output.deliver(1, b"a" + euro[:1], 7)
    _output.deliver(1, b"other worker\n", 8)
    _output.deliver(1, euro[1:] + b"b\n", 7)
    assert capsys.readouterr().out == "aother worker\n\u20acb\n"
    _output.deliver(1, euro[:2], 9)
    _output.forget(9)
    _output.deliver(1, b"\xff\n", 9)
    assert capsys.readouterr().out == "\ufffd\n"
    assert not _output._decoders


def test_no_stream_and_no_sense_are_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    _output.deliver(1, b"x\n", 7)
    assert _output.want_forwarding()
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    _output.deliver(1, b"x\n", 7)
    _output.deliver(3, b"garbage", 7)
    _output.deliver(3, pickle.dumps(5), 7)
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    _output.deliver(1, "\u20ac\n".encode(), 7)
    narrow.flush()
    assert narrow.buffer.getvalue() == b"\\u20ac\n"  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert not _output.want_forwarding()


def test_numbers_of_the_streams_agree() -> None:
    assert (_output.STDOUT, _output.STDERR, _output.LOG) == (
        _worker.STDOUT,
        _worker.STDERR,
        _worker.LOG,
    )


def said_by(source: str, door: str, tmp_path: Path) -> str:
    """What a program prints that is told the name of a door, and a folder to write to."""
    script = tmp_path / "program.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, str(script), door, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


AT_EXIT = """
import logging, os, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
door = sys.argv[1]
def task(x):
    print("task", x)
    logging.warning("log of %d", x)
    open(f"{sys.argv[2]}/ended{x}", "w").close()
    return x
if door == "native":
    import trireme
    pool = trireme.Pool(2)
    futures = [pool.submit(task, x) for x in range(3)]
elif door == "default":
    import trireme
    futures = [trireme.submit(task, x) for x in range(3)]
else:
    import trireme.multiprocessing
    pool = trireme.multiprocessing.Pool(2)
    futures = [pool.apply_async(task, (x,)) for x in range(3)]
while not all(os.path.exists(f"{sys.argv[2]}/ended{x}") for x in range(3)):
    time.sleep(0.01)  # nobody looks
"""


@pytest.mark.parametrize("door", ["native", "default", "Pool"])
def test_what_is_left_at_exit_is_shown(tmp_path: Path, door: str) -> None:
    out = said_by(AT_EXIT, door, tmp_path)
    said = {f"{what} {x}" for what in ("task", "log of") for x in range(3)}
    assert set(out.splitlines()) == said


UNSEEN = """
import logging, os, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
door, folder = sys.argv[1:]
def task(k):
    for i in range(3000):
        print(k, i)
        if i % 10 == 0:
            logging.info("%d log %d", k, i)
    print(k, "last", "x" * 20_000)
    open(f"{folder}/ended{k}", "w").close()
if door == "native":
    import trireme
    pool = trireme.Pool(2)
    futures = [pool.submit(task, k) for k in range(4)]
else:
    import trireme.multiprocessing
    pool = trireme.multiprocessing.Pool(2)
    futures = [pool.apply_async(task, (k,)) for k in range(4)]
end = time.monotonic() + 50
while not all(os.path.exists(f"{folder}/ended{k}") for k in range(4)):  # nobody looks
    assert time.monotonic() < end, "a task stands still"
    time.sleep(0.01)
for future in futures:
    future.result() if door == "native" else future.get()
"""


@pytest.mark.parametrize("door", ["native", "Pool"])
def test_tasks_print_on_while_nobody_looks(tmp_path: Path, door: str) -> None:
    out = said_by(UNSEEN, door, tmp_path)
    of_task: dict[str, list[str]] = {}
    for line in out.splitlines():
        of_task.setdefault(line[0], []).append(line[2:])
    said = [line for i in range(3000) for line in ([f"{i}"] + [f"log {i}"] * (i % 10 == 0))]
    for k in range(4):
        assert of_task[str(k)] == [*said, "last " + "x" * 20_000]
