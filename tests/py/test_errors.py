# SPDX-License-Identifier: BSD-3-Clause
"""A task's exception arrives as itself where it can, and as a RemoteError that says why not."""

from __future__ import annotations

import linecache
import pickle
import threading
import traceback
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
from trireme import _errors
from trireme._errors import (
    RemoteError,
    RemoteTraceback,
    TaskTimeout,
    decode_exception,
    encode_exception,
    worker_lost_class,
)


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Silent(Exception):
    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(f"{text} (code {code})")


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


def _explode() -> None:
    raise SystemExit(9)


class RaisesAtUnpickle(Exception):
    def __reduce__(self) -> object:
        return _explode, ()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class FileError(OSError):
    def __init__(self, path: str, detail: str) -> None:
        super().__init__(2, detail, path)
        self.detail = detail


def journey(exc: BaseException, naked: bool = False) -> BaseException:
    """Raise, catch, encode and decode."""
    try:
        raise exc
    except BaseException as caught:
        return decode_exception(encode_exception(caught), naked)


def test_an_ordinary_exception_arrives_as_itself() -> None:
    back = journey(ValueError("bad", 3))
    assert type(back) is ValueError and back.args == ("bad", 3)
    cause = back.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "raise exc" in str(cause) and "ValueError: ('bad', 3)" in str(cause)
    shown = "".join(traceback.format_exception(back))
    assert "direct cause" in shown and "raise exc" in shown


def test_an_init_with_other_arguments_does_not_matter() -> None:
    back = journey(TwoArguments(4, "four"))
    assert type(back) is TwoArguments and str(back) == "4: four" and back.code == 4
    back = journey(Silent("lost", 7))
    assert type(back) is Silent and str(back) == "lost (code 7)"
    back = journey(FileError("/tmp/x", "gone"))
    assert type(back) is FileError
    assert (back.errno, back.filename, back.detail) == (2, "/tmp/x", "gone")


def test_a_reduce_that_raises_does_not_matter() -> None:
    back = journey(RaisesAtUnpickle("now"))
    assert type(back) is RaisesAtUnpickle and str(back) == "now"


class RaisesWhenMade(Exception):
    ready = False

    def __new__(cls, *args: object) -> RaisesWhenMade:
        if cls.ready:
            raise SystemExit(9)
        return super().__new__(cls, *args)


@pytest.mark.parametrize("kind", [HoldsLock, RaisesWhenMade])
def test_what_cannot_travel_becomes_a_remote_error(kind: type, monkeypatch: Any) -> None:
    exc = kind()
    monkeypatch.setattr(kind, "ready", True, raising=False)
    back = journey(exc)
    assert type(back) is RemoteError
    assert type(exc).__name__ in back.type_name and back.message == str(exc)
    assert "cannot be pickled" in str(back)
    assert "raise exc" in back.traceback_text and "raise exc" in str(back.__cause__)
    again = pickle.loads(pickle.dumps(back))
    assert str(again) == str(back) and again.type_name == back.type_name


def test_an_exception_that_cannot_be_printed_arrives() -> None:
    back = journey(Unprintable())
    assert type(back) is Unprintable or type(back) is RemoteError
    assert isinstance(back.__cause__, RemoteTraceback)


@pytest.mark.parametrize("exc", [SystemExit(3), KeyboardInterrupt("k"), GeneratorExit()])
def test_what_would_end_the_owner_is_wrapped(exc: BaseException) -> None:
    back = journey(exc)
    assert type(back) is RemoteError and type(back.original) is type(exc)
    assert back.original.args == exc.args
    assert type(journey(exc, naked=True)) is type(exc)


def test_local_classes_travel_by_value() -> None:
    class Local(Exception):
        pass

    back = journey(Local("x"))
    assert type(back) is Local


def test_notes_groups_and_chains_are_kept() -> None:
    exc = ValueError("v")
    exc.add_note("while reading line 3")
    back = journey(exc)
    assert back.__notes__ == ["while reading line 3"]
    assert "while reading line 3" in str(back.__cause__)

    group = journey(ExceptionGroup("several", [ValueError(1), TypeError(2)]))
    assert isinstance(group, ExceptionGroup) and len(group.exceptions) == 2

    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise RuntimeError("second") from first
    except RuntimeError as second:
        back = decode_exception(encode_exception(second))
    text = str(back.__cause__)
    assert "KeyError: 'first'" in text and "direct cause" in text

    held = HoldsLock()
    held.add_note("n")
    assert journey(held).__notes__ == ["n"]


def test_frames_of_the_package_are_hidden() -> None:
    from trireme import _pickling

    try:
        _pickling.dumps_function(5)
    except TypeError as exc:
        text = str(decode_exception(encode_exception(exc)).__cause__)
        assert "_pickling.py" not in text and "dumps_function(5)" in text
        skipped = str(decode_exception(encode_exception(exc, skip_frames=1)).__cause__)
    assert "dumps_function(5)" not in skipped


def test_deep_recursion_and_long_messages_stay_small() -> None:
    def down() -> None:
        down()

    try:
        down()
    except RecursionError as exc:
        data = encode_exception(exc)
    assert len(data) < 20_000 and type(decode_exception(data)) is RecursionError
    long = journey(ValueError("x" * 5_000_000))
    assert len(str(long.__cause__)) < 1_000_000


def test_the_owner_adds_source_lines_that_only_it_knows() -> None:
    name = "<cell 7 of a notebook>"
    source = "def f():\n    return 1 / 0\n"
    namespace: dict[str, object] = {}
    exec(compile(source, name, "exec"), namespace)
    try:
        namespace["f"]()  # type: ignore[operator]
    except ZeroDivisionError as exc:
        data = encode_exception(exc)
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        assert "    return 1 / 0" in str(decode_exception(data).__cause__)
    finally:
        del linecache.cache[name]


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps(5), pickle.dumps((1, 2))])
def test_a_damaged_report_is_still_an_exception(data: bytes) -> None:
    back = decode_exception(data)
    assert type(back) is RemoteError and "damaged" in str(back)


def test_what_only_fails_at_the_owner_is_told() -> None:
    report = ("m.Odd", "text", "Traceback\n", pickle.dumps(RaisesAtUnpickle("x")), [])
    back = decode_exception(pickle.dumps(report))
    assert type(back) is RemoteError and back.type_name == "m.Odd" and "SystemExit" in str(back)
    report = ("m.Odd", "text", "", pickle.dumps(7), [])
    assert "unpickled as int" in str(decode_exception(pickle.dumps(report)))


def test_worker_lost_is_one_precise_broken_process_pool() -> None:
    lost = worker_lost_class()
    assert lost is worker_lost_class() is _errors.WorkerLost
    assert issubclass(lost, BrokenProcessPool)
    exc = lost(pid=123, signal=9, oom=True, task="f(1, 2)", deaths=["pid 123: SIGKILL"])
    assert str(exc) == (
        "worker pid 123 was killed by SIGKILL while running task f(1, 2); "
        "the kernel's OOM killer did it"
    )
    assert str(lost(pid=5, exitcode=3)) == "worker pid 5 exited with code 3"
    assert "2 workers were lost" in str(lost(pid=5, signal=11, deaths=["a", "b"]))
    back = pickle.loads(pickle.dumps(exc))
    assert type(back) is lost and str(back) == str(exc) and back.__dict__ == exc.__dict__
    assert str(lost("as I say")) == "as I say"


def test_a_task_timeout_is_a_timeout_error() -> None:
    assert issubclass(TaskTimeout, TimeoutError)
    assert type(journey(TaskTimeout("task f(1) ran longer than 2 s"))) is TaskTimeout
