# SPDX-License-Identifier: BSD-3-Clause
"""A module that is edited and reloaded is so for the workers of open pools, too.

A worker that imports it for the first time finds the file as it is then.  So tests in which an edit
is not to be seen have one worker, which has imported it before.
"""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trireme as tri
import trireme.futures
import trireme.multiprocessing
from conftest import PROCESSES, open_pool

STARTS = pytest.mark.parametrize("start", PROCESSES)


class Edited:
    """Modules that a test writes, each time as if a while had passed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: set[str] = set()
        self.time = 1_000_000_000

    def write(self, name: str, text: str) -> None:
        path = self.folder / f"{name}.py"
        path.write_text(textwrap.dedent(text))
        self.time += 10
        os.utime(path, (self.time, self.time))
        self.names.add(name)

    def load(self, name: str, text: str) -> Any:
        self.write(name, text)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    def reload(self, name: str, text: str) -> Any:
        self.write(name, text)
        return importlib.reload(sys.modules[name])


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edited]:
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = Edited(tmp_path)
    yield modules
    for name in modules.names:
        sys.modules.pop(name, None)


@STARTS
def test_functions_by_name_by_value_and_classes(start: str, edited: Edited) -> None:
    body = """
        class Box:
            version = {0}
            def __init__(self):
                self.made = {0}
        def f(x):
            return {0}, x
        def g(box):
            return box.version, box.made, type(box) is Box
    """
    edited_a = edited.load("edited_a", body.format(1))
    with open_pool(start) as pool:
        for version in (1, 2, 3):
            if version > 1:
                edited.reload("edited_a", body.format(version))
            for _ in range(2):
                by_value = lambda x: (edited_a.f(x), edited_a.Box().version)  # noqa: E731
                assert pool.map(edited_a.f, range(4), chunk=1) == [(version, i) for i in range(4)]
                assert pool.map(by_value, range(4), chunk=1) == [
                    ((version, i), version) for i in range(4)
                ]
                assert pool.submit(edited_a.g, edited_a.Box()).result() == (version, version, True)
                assert type(pool.submit(edited_a.Box).result()) is edited_a.Box


@STARTS
def test_a_function_that_was_sent_before_is_what_it_is_here(start: str, edited: Edited) -> None:
    """It goes by name, and the name says another now: as ever, it travels by value then."""
    old = edited.load("edited_b", "def f(x):\n    return 'old', x\n").f
    with open_pool(start) as pool:
        assert pool.map(old, [1]) == [("old", 1)]
        new = edited.reload("edited_b", "def f(x):\n    return 'new', x\n").f
        assert pool.map(new, [1]) == [("new", 1)]
        assert pool.map(old, [1]) == [old(1)] == [("old", 1)]


@STARTS
def test_modules_that_took_something_keep_it_as_here(start: str, edited: Edited) -> None:
    edited.load("edited_c", "def low():\n    return 1\n")
    user = edited.load("edited_d", "from edited_c import low\ndef high(x):\n    return low()\n")
    with open_pool(start, 1) as pool:
        assert pool.map(user.high, range(4), chunk=1) == [1] * 4
        edited.reload("edited_c", "def low():\n    return 2\n")
        assert pool.map(user.high, range(4), chunk=1) == [user.high(0)] * 4 == [1] * 4
        importlib.reload(user)
        assert pool.map(user.high, range(4), chunk=1) == [2] * 4


@STARTS
def test_workers_that_start_later_import_what_there_is(start: str, edited: Edited) -> None:
    module = edited.load("edited_e", "loads = 1\ndef f(x):\n    return loads\n")
    with open_pool(start, 1) as pool:
        assert pool.map(module.f, [0]) == [1]
        edited.reload("edited_e", "loads = 2\ndef f(x):\n    return loads\n")
        assert pool.map(module.f, [0]) == [2]
        with pytest.raises(tri.WorkerLost):
            pool.submit(os._exit, 3).result()
        assert pool.map(module.f, [0]) == [2]
        with open_pool(start, 1) as other:
            assert other.map(module.f, [0]) == [2]


def test_a_reload_that_fails_is_none(edited: Edited) -> None:
    module = edited.load("edited_f", "def f(x):\n    return 1\n")
    with open_pool("forkserver", 1) as pool:
        assert pool.map(module.f, [0]) == [1]
        for text in ("def f(x:\n", "raise OSError\n"):
            with pytest.raises((SyntaxError, OSError)):
                edited.reload("edited_f", text)
            assert pool.map(module.f, range(4), chunk=1) == [1] * 4
        try:
            raise ValueError
        except ValueError:
            edited.reload("edited_f", "def f(x):\n    return 2\n")
        assert pool.map(module.f, range(4), chunk=1) == [2] * 4


def test_what_a_worker_cannot_reload_fails_its_task(edited: Edited) -> None:
    module = edited.load("edited_g", "def f(x):\n    return 1\n")
    with open_pool("forkserver", 1) as pool:
        assert pool.map(module.f, [0]) == [1]
        edited.reload("edited_g", "def f(x):\n    return 2\n")
        edited.write("edited_g", "raise OSError('edited again')\n")
        with pytest.raises(OSError, match="edited again"):
            pool.map(module.f, range(4), chunk=1)
        edited.write("edited_g", "def f(x):\n    return 3\n")
        assert pool.map(module.f, range(4), chunk=1) == [3] * 4


@pytest.mark.parametrize("door", ["Pool", "executor"])
def test_facades_workers_keep_what_they_have_as_the_originals(door: str, edited: Edited) -> None:
    module = edited.load("edited_h", "def f(x):\n    return 1\n")
    context = trireme.multiprocessing.get_context("spawn")
    pool: Any = (
        context.Pool(1)
        if door == "Pool"
        else trireme.futures.ProcessPoolExecutor(1, mp_context=context)
    )
    with open_pool("forkserver") as native, pool:
        assert list(pool.map(module.f, [0])) == native.map(module.f, [0]) == [1]
        edited.reload("edited_h", "def f(x):\n    return 2\n")
        assert list(pool.map(module.f, [0])) == [1]
        assert native.map(module.f, [0]) == [2]
