# SPDX-License-Identifier: BSD-3-Clause
"""Programs whose threads are greenlets: gevent's monkey.patch_all(), eventlet's monkey_patch().

There, what a "thread" waits for in C stops all of them, and a thread that C has started is one that
their loop knows nothing of.  So the thread doors give the originals, which stand on ``threading``.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The module, its function that says what was patched, and the name that it has for threads.
_PATCHERS = (
    ("gevent.monkey", "is_module_patched", "threading"),
    ("eventlet.patcher", "is_monkey_patched", "thread"),
)


def threads_are_green() -> bool:
    """Whether one of the two has put its own threads in the place of Python's."""
    for name, ask, threads in _PATCHERS:
        module: Any = sys.modules.get(name)
        if module is not None and hasattr(module, ask) and getattr(module, ask)(threads):
            return True
    return False
