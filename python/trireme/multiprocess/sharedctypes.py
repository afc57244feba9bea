# SPDX-License-Identifier: BSD-3-Clause
"""The module trireme.multiprocessing.sharedctypes itself."""

from __future__ import annotations

import sys
from importlib import import_module

from ..multiprocessing.sharedctypes import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = import_module("trireme.multiprocessing.sharedctypes")
