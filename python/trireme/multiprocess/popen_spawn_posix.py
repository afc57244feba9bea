# SPDX-License-Identifier: BSD-3-Clause
"""The module trireme.multiprocessing.popen_spawn_posix itself."""

from __future__ import annotations

import sys
from importlib import import_module

sys.modules[__name__] = import_module("trireme.multiprocessing.popen_spawn_posix")
