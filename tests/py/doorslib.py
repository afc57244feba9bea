# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the doors share: programs run by Python, and through the doors."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import script_env

LIMIT = 60
DOORS = ("-m", "trireme")

Run = Callable[..., tuple[int, str, str]]


def run(
    *words: str, cwd: Path, stdin: str | None = None, env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a Python with these words."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=script_env(**(env or {})),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """write(name, source): a file in the test's folder."""

    def make(name: str, source: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    return make


@pytest.fixture
def both(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """both(*words): run them by Python and through the doors; what both said, if it is the same."""

    def compare(*words: str, **options: Any) -> tuple[int, str, str]:
        code, out, err = run(*words, cwd=tmp_path, **options)
        # The originals' workers are killed, at times with a lock that they have not unregistered.
        err = re.sub(r".* resource_tracker: There appear .*\n  warnings\.warn\(\n", "", err)
        ours = run(*DOORS, *words, cwd=tmp_path, **options)
        assert ours == (code, out, err)
        return ours

    return compare


@pytest.fixture
def program(write: Any, both: Any) -> Callable[..., str]:
    """program(source, *args): its output, the same both ways; its exit code is to be 0."""

    def compare(source: str, *args: str) -> str:
        write("program.py", source)
        code, out, err = both("program.py", *args)
        assert code == 0, err
        return str(out)

    return compare


def ours(source: str, tmp_path: Path, *options: str) -> str:
    """The output of a program that must see the doors."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(source))
    code, out, err = run(*DOORS, *options, "program.py", cwd=tmp_path)
    assert code == 0, err
    return out
