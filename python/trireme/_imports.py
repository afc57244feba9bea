# SPDX-License-Identifier: BSD-3-Clause
"""Being there when a module is imported, by whomever.

A finder stands before others in ``sys.meta_path`` and asks those behind it; a :class:`Loader`
around theirs knows when the module is there.  Nothing of either is left in the module.

Classes of ours derive from classes of the standard library whose modules import much that we have
no use for.  Nobody can compare with such a class before its module is imported, and to import it
when a worker has died may be too late: the program ends, or has no descriptors left.  So those
classes get their base with the import (:func:`when_imported`).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["Loader", "find_behind", "look", "when_imported"]


class Loader:
    """Loads a module as *loader* does."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # not yet, in a copy
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does."""
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        """As the loader does; the module keeps no trace of us."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)


def find_behind(
    own: Any,
    wrap: Callable[[Any], Loader],
    name: str,
    path: Sequence[str] | None,
    target: ModuleType | None,
) -> ModuleSpec | None:
    """The spec that the finders behind *own* have, with *wrap* of its loader.

    Not those before it: one of them may have asked us.
    """
    finders = list(sys.meta_path)
    if own in finders:
        del finders[: finders.index(own) + 1]
    for finder in finders:
        find = getattr(finder, "find_spec", None)
        if find is None:
            continue
        spec: ModuleSpec | None = find(name, path, target)
        if spec is not None:
            if hasattr(spec.loader, "exec_module"):
                spec.loader = wrap(spec.loader)  # type: ignore[assignment]
            return spec
    return None


# Module -> what is to be called with it.
_waiting: dict[str, list[Callable[[ModuleType], object]]] = {}


class _Then(Loader):
    """Loads a module that somebody waits for."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _arrived(module.__name__, module)


class _Finder:
    """Is there while modules are waited for."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the others have, of a module waited for."""
        return find_behind(_finder, _Then, name, path, target) if name in _waiting else None


_finder = _Finder()


def _arrived(name: str, module: ModuleType) -> None:
    for then in _waiting.pop(name, ()):
        then(module)
    if not _waiting:
        try:
            sys.meta_path.remove(_finder)  # type: ignore[arg-type]
        except ValueError:
            pass  # another thread was first


def look() -> None:
    """See whether something has been imported past the finder.

    Another thread may have been in the middle of it when we began to wait.
    """
    for name in list(_waiting):
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if module is not None and not getattr(spec, "_initializing", False):
            _arrived(name, module)


def when_imported(name: str, then: Callable[[ModuleType], object]) -> None:
    """Call *then* with the module: now if it has been imported, else at the end of its import."""
    _waiting.setdefault(name, []).append(then)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)  # type: ignore[arg-type]
    look()
