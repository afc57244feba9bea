# SPDX-License-Identifier: BSD-3-Clause
"""The original's module multiprocessing.popen_fork itself."""

from __future__ import annotations

import sys
from importlib import import_module

sys.modules[__name__] = import_module("multiprocessing.popen_fork")
