# SPDX-License-Identifier: BSD-3-Clause
"""Owner: a chunk of results of which one does not unpickle, taken to pieces.

The results of a chunk are one pickle of a list.  When loading it fails, nothing says which item
was to blame, and there is no going on behind it.  So the pickle is run a second time on a machine
that calls nothing: where a class would be looked up, called or filled, it only notes down that it
was to be.  That cannot fail.  Then each item is made from its notes, and what fails then, fails
alone.  What two items have in common is made once, and if that fails, both do.
"""

from __future__ import annotations

import io
import pickle

from ._losses import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, ClassVar


class _Note:
    """An object that is not made yet: how to begin it, and what to do to it after that."""

    __slots__ = ("begin", "parts", "steps")

    def __init__(self, begin: str, parts: Any) -> None:
        self.begin = begin
        self.parts = parts
        self.steps: list[tuple[str, Any]] = []

    # The methods by which an unpickler works on what it has made.

    def __call__(self, *args: Any) -> _Note:
        return _Note("call", (self, args))

    def __setstate__(self, state: Any) -> None:
        self.steps.append(("state", state))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.steps.append(("item", (key, value)))

    def append(self, value: Any) -> None:
        self.steps.append(("append", value))

    def extend(self, values: Iterable[Any]) -> None:
        self.steps.extend(("append", value) for value in values)

    def add(self, value: Any) -> None:
        self.steps.append(("add", value))


# The one that is written in Python: its steps can be replaced one by one.
_Unpickler: Any = getattr(pickle, "_Unpickler")  # noqa: B009


class _Reader(_Unpickler):  # type: ignore[misc]
    """Makes notes in the place of everything that would run code."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        return _Note("global", (module, name))

    def get_extension(self, code: int) -> None:
        self.append(_Note("extension", code))

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _Note("new", (self.stack[-1], args, {}))

    def load_newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        args = self.stack.pop()
        self.stack[-1] = _Note("new", (self.stack[-1], args, kwargs))

    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex


class _Maker(_Unpickler):  # type: ignore[misc]
    """Makes objects of notes.  An unpickler, for how that finds classes and sets states."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.made: dict[int, Any] = {}
        self.failed: dict[int, BaseException] = {}

    def make(self, what: Any) -> Any:
        kind = type(what)
        if kind not in (_Note, list, dict, tuple, set, frozenset):
            return what
        key = id(what)
        if key in self.failed:
            raise self.failed[key]
        if key in self.made:
            return self.made[key]
        try:
            return self._note(what) if kind is _Note else self._container(what, kind)
        except BaseException as exc:
            self.failed[key] = exc
            raise

    # What an object holds may refer back to it, so it is put down before it is filled.

    def _container(self, what: Any, kind: type) -> Any:
        if kind in (tuple, frozenset):
            out = kind([self.make(v) for v in what])
            return self.made.setdefault(id(what), out)
        out = self.made[id(what)] = kind()
        if kind is dict:
            for name, value in what.items():
                out[self.make(name)] = self.make(value)
        elif kind is list:
            for value in what:
                out.append(self.make(value))
        else:
            for value in what:
                out.add(self.make(value))
        return out

    def _note(self, note: _Note) -> Any:
        out = self.made[id(note)] = self._begin(note.begin, note.parts)
        for step, value in note.steps:
            value = self.make(value)
            if step == "state":
                self.stack = [out, value]
                self.dispatch[pickle.BUILD[0]](self)
            elif step == "item":
                out[value[0]] = value[1]
            else:
                getattr(out, step)(value)
        return out

    def _begin(self, how: str, parts: Any) -> Any:
        if how == "global":
            self.proto = pickle.HIGHEST_PROTOCOL
            return self.find_class(*parts)
        if how == "extension":
            self.stack = []
            self.append = self.stack.append
            self.get_extension(parts)
            return self.stack.pop()
        if how == "call":
            return self.make(parts[0])(*self.make(parts[1]))
        cls, args, kwargs = map(self.make, parts)
        return cls.__new__(cls, *args, **kwargs)


def loads_apart(data: Any, buffers: Any) -> list[Any]:
    """The list in pickle *data*, with a :class:`Failed` in the place of each item that raises.

    Raises if the pickle is no list, or is malformed.
    """
    items = _Reader(io.BytesIO(bytes(data)), buffers=buffers).load()
    if type(items) is not list:
        raise pickle.UnpicklingError("the results of a chunk are no list")
    maker = _Maker()
    out: list[Any] = []
    for item in items:
        try:
            out.append(maker.make(item))
        except KeyboardInterrupt:
            raise
        except Exception as exc:
            out.append(Failed(exc))
        except BaseException as exc:
            from ._errors import unreadable_result

            out.append(Failed(unreadable_result(exc)))
    return out
