# SPDX-License-Identifier: BSD-3-Clause
"""Tasks that tests of several files send.

Workers import this file to find them, so it imports next to nothing.
"""

from __future__ import annotations

import os
import time


def square(x: int) -> int:
    return x * x


def add(x: int, y: int) -> int:
    return x + y


def fails_at_3(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def wait_for(path: str) -> None:
    """A task that lasts until there is such a file: the test says when, no clock does."""
    end = time.monotonic() + 60
    while not os.path.exists(path):
        assert time.monotonic() < end, "nobody made the file"
        time.sleep(0.002)
