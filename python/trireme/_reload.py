# SPDX-License-Identifier: BSD-3-Clause
"""A module that the program reloads is reloaded by the workers of its open pools.

Workers outlive a call, and functions of modules travel by name: without this a notebook in which a
module was edited and reloaded would go on with what its workers imported first.

The owner counts what it reloads: importlib.reload(), and so IPython's %autoreload, keeps the names
of the modules it is about in a dictionary, in whose place is one of ours.  From the first on, each
function that is sent says which modules are new since when, and every function is sent again
(_core.reloaded()); a worker that knows of fewer reloads those that it has imported, before it looks
anything up.  It is the owner's reload() once more: who has taken a function out of the module keeps
the old one, there as here.  %autoreload also brings up to date what others have taken, and since
IPython 9 without a reload(); where it is on, modules are those whose files have changed when a cell
begins, and workers use its superreload().

Pools of facades do as the originals, whose workers keep what they have imported.
"""

from __future__ import annotations

import importlib
import os
import sys

from . import _core, _pickling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Entry = tuple[str, int, bool]

# How many reloads there were; in a worker, how many it has followed.  A fork has its owner's.
count = 0
# By name: the number of the module's last reload, and whether old objects were brought up to date.
_log: dict[str, tuple[int, bool]] = {}

# ---------------------------------------------------------------------------------------------
# Owner
# ---------------------------------------------------------------------------------------------


def _note(name: str, patched: bool) -> None:
    global count
    count += 1
    _log.pop(name, None)
    _log[name] = count, patched
    _pickling.after_reloads = _after
    _core._reloaded()


class _Reloading(dict):  # type: ignore[type-arg]
    """importlib's dictionary of the modules that are being reloaded."""

    def __setitem__(self, name: str, module: Any) -> None:
        super().__setitem__(name, module)
        self.around = sys.exc_info()[1]

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        if sys.exc_info()[1] is self.around:  # else the reload has failed
            _note(name, _is_superreload(sys._getframe(2)))


def _is_superreload(frame: Any) -> bool:
    return frame is not None and frame.f_code.co_name == "superreload"


def watch() -> None:
    """A pool is opened: its workers are to hear of reloads."""
    if "_RELOADING" in vars(importlib) and type(vars(importlib)["_RELOADING"]) is dict:
        vars(importlib)["_RELOADING"] = _Reloading(vars(importlib)["_RELOADING"])
    ipython = sys.modules.get("IPython")
    if ipython is not None:
        try:
            _watch_cells(ipython.get_ipython())
        except Exception:
            pass  # another version: there is reload() still


class _Reload:
    """What a function's pickle begins with: unpickled, it is the function."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return follow, (count, [(name, *when) for name, when in _log.items()], self.data)


def _after(data: bytes) -> bytes:
    return _pickling._dumps(_Reload(data), _pickling.PROTOCOL)


# ---------------------------------------------------------------------------------------------
# Owner: a notebook with %autoreload
# ---------------------------------------------------------------------------------------------

_changed: dict[str, float] = {}  # by module: when its file was changed last
_shell: Any = None


def _watch_cells(shell: Any) -> None:
    global _shell
    if shell is None or shell is _shell:
        return
    _shell = shell
    _look()
    shell.events.register("pre_run_cell", _cell_begins)
    shell.events.register("post_run_cell", _cell_ended)


def _cell_begins(*_: Any) -> None:
    """What %autoreload is about to reload, or has just reloaded, is new in workers, too."""
    magic = _shell.find_line_magic("autoreload")  # None until the extension is loaded
    reloader = getattr(getattr(magic, "__self__", None), "_reloader", None)
    changed = _look()
    if reloader is not None and reloader.enabled:
        for name in changed:
            if reloader.check_all or name in reloader.modules:
                _note(name, True)


def _cell_ended(*_: Any) -> None:
    """Modules that were imported in this cell are known from now on."""
    _look(new=True)


def _look(new: bool = False) -> list[str]:
    """Modules of the user's whose files have changed since the last time; or only know new ones."""
    changed = []
    for name, module in list(sys.modules.items()):
        if new and name in _changed:
            continue
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py") or _is_installed(file):
            continue
        try:
            at = os.stat(file).st_mtime
        except OSError:
            continue
        if _changed.setdefault(name, at) != at:
            _changed[name] = at
            changed.append(name)
    return changed


_STDLIB = os.path.dirname(os.__file__) + os.sep


def _is_installed(file: str) -> bool:
    return file.startswith(_STDLIB) or "site-packages" in file or "dist-packages" in file


# ---------------------------------------------------------------------------------------------
# Worker
# ---------------------------------------------------------------------------------------------


def follow(number: int, log: list[Entry], data: bytes) -> Any:
    """Reload what the owner has reloaded since, if it is here; then unpickle *data*.

    Raises what a module raises, each time until it does not: a task must not run with an old one.
    """
    global count
    if number > count and not _pickling.keeps_modules:
        for name, when, patched in log:
            if when > count and name in sys.modules:
                _reload(sys.modules[name], patched)
        count = number
    return _pickling.loads(data)


_old: dict[Any, Any] = {}  # superreload()'s memory of what was in modules, weakly


def _reload(module: Any, patched: bool) -> None:
    if not patched:
        importlib.reload(module)
        return
    try:
        try:
            from IPython.extensions.autoreload import superreload
        except ImportError:
            importlib.reload(module)
        else:
            superreload(module, old_objects=_old)
    except Exception:
        pass  # %autoreload has said so in the notebook, and goes on with the old one
