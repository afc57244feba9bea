# SPDX-License-Identifier: BSD-3-Clause
"""Being there when a module is imported, by whomever.

A finder stands before the others in ``sys.meta_path`` and asks them; a :class:`Loader` around
theirs knows when the module is there.  Nothing of either is left in the module.
"""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["Loader", "find_behind", "when_imported"]


class Loader:
    """Loads a module as *loader* does."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
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
    """The spec that the finders other than *own* have, with *wrap* of its loader."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if finder is own or find is None:
            continue
        spec: ModuleSpec | None = find(name, path, target)
        if spec is not None:
            if hasattr(spec.loader, "exec_module"):
                spec.loader = wrap(spec.loader)  # type: ignore[assignment]
            return spec
    return None


class _Then(Loader):
    def __init__(self, loader: Any, finder: _Finder) -> None:
        super().__init__(loader)
        self._finder = finder

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)  # type: ignore[arg-type]
        self._finder.then(module)


class _Finder:
    """Waits for one module, and goes when it has been imported."""

    def __init__(self, name: str, then: Callable[[ModuleType], object]) -> None:
        self._name = name
        self.then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the others have for the module waited for."""
        if name != self._name:
            return None
        return find_behind(self, lambda loader: _Then(loader, self), name, path, target)


def when_imported(name: str, then: Callable[[ModuleType], object]) -> None:
    """Call *then* with the module: now if it has been imported, else at the end of its import."""
    if name in sys.modules:
        then(import_module(name))  # which waits for a thread that is importing it
    else:
        sys.meta_path.insert(0, _Finder(name, then))  # type: ignore[arg-type]
