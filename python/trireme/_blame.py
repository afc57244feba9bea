# SPDX-License-Identifier: BSD-3-Clause
"""Which part of an object cannot be pickled: ``args[0]['model'].lock``, and what to do about it.

The pickler's own message names a type and no place.  The place is found by pickling the parts of
what failed, the parts of the first of them that fails, and so on down to one whose parts all
travel.  That costs many pickles, so it is bounded, and this file is read only once one has failed.
"""

from __future__ import annotations

import types

from ._byvalue import PROTOCOL, _dump_by_value
from ._watch import _SCALARS, _global_names, _wanted_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_NODE_LIMIT = 10_000
_SEARCH_SECONDS = 2.0


def _describe(obj: Any) -> str:
    """A short, safe description of any object for a message."""
    try:
        text = repr(obj)
    except Exception:
        text = f"<{type(obj).__name__} object>"
    return text if len(text) <= 80 else text[:77] + "..."


def _children(obj: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The parts of *obj* that a pickler visits, each with the path a user would write for it."""
    kind = type(obj)
    if isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield f"{path}[{_describe(key)}]", value
        for key in list(obj):
            yield f"{path} key {_describe(key)}", key
        if kind is dict:
            return
    if isinstance(obj, (list, tuple)):
        fields = getattr(obj, "_fields", None)
        for i, value in enumerate(obj):
            yield (f"{path}.{fields[i]}" if fields else f"{path}[{i}]"), value
        if kind in (list, tuple):
            return
    if isinstance(obj, (set, frozenset)):
        for value in list(obj):
            yield f"{path} element {_describe(value)}", value
        if kind in (set, frozenset):
            return
    if kind is types.FunctionType:
        for name in _global_names(obj.__code__) if _wanted_module(obj) is None else ():
            if name in obj.__globals__:
                yield f"{path} -> global {name}", obj.__globals__[name]
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=False):
            try:
                yield f"{path} -> closure variable {name}", cell.cell_contents
            except ValueError:
                pass
        for i, value in enumerate(obj.__defaults__ or ()):
            yield f"{path} -> default value {i}", value
        for name, value in (obj.__kwdefaults__ or {}).items():
            yield f"{path} -> default of {name}", value
        for name, value in list(obj.__dict__.items()):
            yield f"{path}.{name}", value
    elif kind is types.MethodType:
        yield f"{path}.__self__", obj.__self__
        yield path, obj.__func__
    elif isinstance(obj, type):
        for name, value in list(obj.__dict__.items()):
            if name not in ("__dict__", "__weakref__"):
                yield f"{path}.{name}", getattr(value, "__func__", value)
    elif kind.__name__ == "_lru_cache_wrapper":
        yield path, obj.__wrapped__
    elif kind.__name__ == "partial" and hasattr(obj, "keywords"):
        yield f"{path}.func", obj.func
        yield f"{path}.args", obj.args
        yield f"{path}.keywords", obj.keywords
    elif not isinstance(obj, types.ModuleType):
        yield from _parts_of_instance(obj, path)


def _parts_of_instance(obj: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The parts of an object that is pickled through its reduce method."""
    try:
        reduced = obj.__reduce_ex__(PROTOCOL)
    except Exception:
        # What it holds may still be the reason, so look at the attributes.
        yield from _attributes(getattr(obj, "__dict__", None), path)
        return
    if not isinstance(reduced, tuple):
        return
    args, state, items, pairs = (tuple(reduced) + (None,) * 5)[1:5]
    yield from _attributes(state, path)
    for i, value in enumerate(args or ()):
        if value is not type(obj):
            yield f"{path} (argument {i} of its constructor)", value
    for i, value in enumerate(items or ()):
        yield f"{path}[{i}]", value
    for key, value in pairs or ():
        yield f"{path}[{_describe(key)}]", value
    yield f"{path} (its class)", type(obj)


def _attributes(state: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The attributes in what __getstate__ gave."""
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        yield from _attributes(state[0], path)
        state = state[1]
    if isinstance(state, dict):
        for name, value in list(state.items()):
            yield (f"{path}.{name}" if isinstance(name, str) else f"{path} state"), value
    elif state is not None:
        yield f"{path} (its state)", state


def _failure(obj: Any, is_result: bool) -> Exception | None:
    """Why *obj* alone cannot be pickled, or None if it can."""
    try:
        _dump_by_value(obj, lambda buffer: False, is_result)
    except Exception as exc:
        return exc
    return None


def find_path(
    obj: Any, name: str = "value", is_result: bool = False
) -> tuple[str, Any, Exception] | None:
    """Find the smallest part of *obj* that cannot be pickled.

    Returns its path written from *name*, the part, and the exception; None if *obj* can be
    pickled.  Looks at no more than 10,000 parts and for no more than two seconds, and gives the
    deepest it has found by then.  Cycles are safe.
    """
    reason = _failure(obj, is_result)
    if reason is None:
        return None
    import time

    deadline = time.monotonic() + _SEARCH_SECONDS
    best = (name, obj, reason)
    seen = {id(obj): obj}  # keeps temporary states alive, so that ids stay unique
    # Each level: its culprit so far, the parts left to try, whether a part was met before.
    stack: list[list[Any]] = [[best, _children(obj, name), False]]
    nodes = 0
    while stack:
        level = stack[-1]
        deeper = None
        for path, part in level[1]:
            nodes += 1
            if nodes > _NODE_LIMIT or time.monotonic() > deadline:
                return best
            if type(part) in _SCALARS:
                continue
            if id(part) in seen:
                level[2] = True
                continue
            reason = _failure(part, is_result)
            if reason is not None:
                seen[id(part)] = part
                deeper = (path, part, reason)
                break
        if deeper is not None:
            if len(deeper[0]) > 400:
                return best
            best = deeper
            stack.append([deeper, _children(deeper[1], deeper[0]), False])
        elif not level[2]:
            return level[0]  # type: ignore[no-any-return]
        else:
            # It fails, perhaps only because it leads back to something above: try its siblings.
            stack.pop()
            best = level[0]
    return best


_ADVICE = (
    ("generator", "make it a list first"),
    ("SemLock", "give it to the workers by initargs=, made by trireme.multiprocessing"),
    ("lock", "create it in the worker, or with initializer="),
    ("RLock", "create it in the worker, or with initializer="),
    ("TextIOWrapper", "send the path and open the file in the worker"),
    ("Buffered", "send the path and open the file in the worker"),
    ("socket", "open it in the worker, or with initializer="),
    ("SSLContext", "make it in the worker, or with initializer="),
    ("Connection", "send it to a pool of trireme.multiprocessing, or to a Process"),
    ("weakref", "send the object itself"),
    ("ReferenceType", "send the object itself"),
    ("frame", "send only the values that are needed"),
    ("traceback", "send traceback.format_tb() of it"),
    ("coroutine", "call it in the worker with asyncio.run()"),
)


def _advice(part: Any, is_result: bool) -> str:
    if is_result:
        return "return plain data in its place, or give its class a __reduce__ method"
    kind = type(part).__name__
    for word, advice in _ADVICE:
        if word in kind:
            return advice
    return "create it in the worker (initializer=), or give its class a __reduce__ method"
