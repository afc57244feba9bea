# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of trireme.multiprocessing's pools share: both doors, and tasks.

What must agree with the original is run against both.  Under the original's name nothing may be
asked that the original hangs on: a worker's death, an initializer that fails, an exit in a task.
"""

from __future__ import annotations

import importlib
import multiprocessing
from typing import Any

import pytest
from tasklib import square

ORIGINAL = "multiprocessing"
OURS = "trireme.multiprocessing"
METHODS = ("fork", "forkserver", "spawn")

BOTH = pytest.mark.parametrize("door", [ORIGINAL, OURS])
STARTS = pytest.mark.parametrize("method", METHODS)


def module(name: str, sub: str = "") -> Any:
    return importlib.import_module(f"{name}.{sub}" if sub else name)


def fail(x: int) -> int:
    raise KeyError(x)


def touch(path: str) -> None:
    """Make a file; fail, once it is made, when its name ends with 0."""
    with open(path, "w"):
        pass
    if path.endswith("0"):
        raise ValueError(path)


def return_lambda() -> Any:
    return lambda: 42


def child_refused() -> str:
    try:
        multiprocessing.Process(target=square, args=(1,)).start()
    except AssertionError as exc:
        return str(exc)
    return ""
