# SPDX-License-Identifier: BSD-3-Clause
"""The functions that workers run.  A module, because most peers can only import their functions."""
from __future__ import annotations

import os
import time
from typing import Any

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]


def plus_one(x: int) -> int:
    return x + 1


def square(x: int) -> int:
    return x * x


def busy(seconds: float) -> float:
    """Keep a CPU for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds


def random_square(seed: int) -> int:
    np.random.seed(seed)
    return np.random.randint(0, 10) ** 2


def array_sum(a: Any) -> float:
    return float(a.sum())


def array_double(a: Any) -> Any:
    return a + a


def linger(_: int) -> int:
    """Which process runs this?  It stays long enough for the other worker to get one too."""
    time.sleep(0.02)
    return os.getpid()
