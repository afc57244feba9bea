# SPDX-License-Identifier: BSD-3-Clause
"""How functions, arguments and results become bytes, and back.

The C pickler goes first, because it is ten times faster than anything written in Python.  Its
output is trusted unless it names a module that a fresh process could not import (_importable.py),
or unless it failed.  Then cloudpickle does the same object again and sends functions and classes
by value (_byvalue.py).  A by-value function is pickled again only when something that it depends
on has changed (_watch.py).

Buffers of at least BUFFER_MIN bytes leave the stream (pickle protocol 5) and travel in shared
memory.  Arrays that a worker reads in place are read-only.

When nothing works, the error names the place: ``args[0]['model'].lock`` (_blame.py).

Everything that costs import time (cloudpickle most of all) is imported inside functions.
"""

from __future__ import annotations

import _pickle as pickle  # the C half; pickle.py would import re, codecs and more
import sys
import types

from ._byvalue import (
    _CONNECTIONS,
    PROTOCOL,
    DescriptorError,
    _dump_by_value,
    _target,
    become_worker,
    expects_code,
)
from ._importable import (
    MISSING,
    _judge,
    _look_for_strange_modules,
    _names_strange_module,
    _resolve,
    _strange,
)
from ._watch import IMMUTABLE_TYPES, function_watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# What others take from here, wherever it is made.
__all__ = [
    "BUFFER_MIN",
    "IMMUTABLE_TYPES",
    "MISSING",
    "PROTOCOL",
    "UnpicklableError",
    "UnpicklableRuntimeError",
    "_dump_by_value",
    "_judge",
    "_look_for_strange_modules",
    "_names_strange_module",
    "_resolve",
    "_strange",
    "become_worker",
    "dumps",
    "dumps_function",
    "dumps_inband",
    "dumps_result",
    "expects_code",
    "function_watch",
    "loads",
]

BUFFER_MIN = 4096

# The end of a class's name and the opcode that looks it up.
_CONNECTION = b"Connection\x94\x93"

# Owner: modules were reloaded, and workers are to do so before they look at a function.  _reload.py
after_reloads: Callable[[bytes], bytes] | None = None
keeps_modules = False  # worker: of a facade, where they stay what they were

_dumps = pickle.dumps
_loads = pickle.loads


class UnpicklableError(pickle.PicklingError, TypeError):
    """An object cannot be sent to another process; the message says which part of it, and why.

    Both a ``PicklingError`` and a ``TypeError``, because the standard library raises either.
    """


class UnpicklableRuntimeError(UnpicklableError, RuntimeError):
    """One whose object refuses with a RuntimeError, as multiprocessing's locks and queues do."""


def _is_array(obj: Any) -> bool:
    """Whether *obj* is an array of NumPy's, whose PickleBuffer nobody but the pickler has."""
    return isinstance(obj, getattr(sys.modules.get("numpy"), "ndarray", ()))


def _aside(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """A buffer_callback that takes large buffers out of the stream, into *buffers*.

    A read-only array goes there whatever its size, and arrives writable if its memory there is:
    see _core/block.c.
    """

    def callback(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BUFFER_MIN and not (raw.readonly and _is_array(raw.obj)):
            return True
        buffers.append(raw)
        return False

    return callback


def dumps(obj: Any, name: str = "value") -> tuple[bytes, list[memoryview]]:
    """Pickle *obj* for a worker: the stream, and the large buffers that travel beside it.

    The buffers are contiguous one-dimensional views of bytes, in the order in which loads() wants
    them; they keep *obj*'s memory alive.  *name* is what error messages call *obj*.

    Raises UnpicklableError naming the part of *obj* that cannot be sent.
    """
    buffers: list[memoryview] = []
    callback = _aside(buffers)
    plain = None
    try:
        plain = _dumps(obj, PROTOCOL, buffer_callback=callback)
        if not _names_strange_module(plain) and not _may_hold_connection(plain):
            return plain, buffers
    except Exception:
        pass
    plain_buffers = buffers.copy()
    buffers.clear()
    try:
        return _dump_for_worker(obj, callback, buffers), buffers
    except Exception as exc:
        if plain is not None and not _needs_value(plain) and type(exc) is not DescriptorError:
            return plain, plain_buffers
        raise _explain(obj, name, exc, False) from _cause(exc)


def _dump_for_worker(
    obj: Any,
    callback: Callable[[pickle.PickleBuffer], bool] | None = None,
    buffers: list[memoryview] | None = None,
) -> bytes:
    """Pickle *obj* by value, without those globals that its workers have themselves, if need be."""
    try:
        return _dump_by_value(obj, callback, False)
    except Exception:
        own = getattr(_target, "own", None)
        if own is None:
            raise
    if buffers is not None:
        buffers.clear()
    return own.look_again(_dump_by_value, obj, callback, False)  # type: ignore[no-any-return]


def dumps_result(obj: Any, name: str = "result") -> tuple[bytes, list[memoryview]]:
    """Pickle *obj* in a worker for its owner; like dumps() in all else.

    What a worker can pickle by name the owner can find by name, for it is where the worker's
    modules came from.  Classes that came from the owner by value go back as their id.
    """
    buffers: list[memoryview] = []
    callback = _aside(buffers)
    plain = None
    try:
        plain = _dumps(obj, PROTOCOL, buffer_callback=callback)
        if not _may_hold_connection(plain):
            return plain, buffers
    except Exception:
        pass
    plain_buffers = buffers.copy()
    buffers.clear()
    try:
        return _dump_by_value(obj, callback, True), buffers
    except Exception as exc:
        if plain is not None and type(exc) is not DescriptorError:
            return plain, plain_buffers
        raise _explain(obj, name, exc, True) from _cause(exc)


def dumps_inband(obj: Any, name: str = "value", is_result: bool = False) -> bytes:
    """Pickle *obj* into one string of bytes, large buffers included."""
    plain = None
    try:
        plain = _dumps(obj, PROTOCOL)
        if not _may_hold_connection(plain) and (is_result or not _names_strange_module(plain)):
            return plain
    except Exception:
        pass
    try:
        return _dump_by_value(obj, None, True) if is_result else _dump_for_worker(obj)
    except Exception as exc:
        if plain is not None and not _needs_value(plain) and type(exc) is not DescriptorError:
            return plain
        raise _explain(obj, name, exc, is_result) from _cause(exc)


def dumps_function(fn: Any) -> bytes:
    """Pickle a callable for a worker.

    By name if a fresh process can import it: functions and classes of importable modules,
    builtins.  By value otherwise: everything from ``__main__``, a notebook, a module that cannot
    be found again; lambdas, closures, local functions.  Bound methods, partials and callable
    instances follow the same rule part by part.

    Raises UnpicklableError naming the function and the variable in it that cannot be sent, and
    TypeError if *fn* is not callable.
    """
    if not callable(fn):
        from ._blame import _describe

        raise TypeError(f"a function is needed, not {_describe(fn)}")
    data = dumps_inband(fn, _function_name(fn))
    return data if after_reloads is None else after_reloads(data)


def loads(data: Any, buffers: Any = ()) -> Any:
    """Undo dumps(), dumps_result() and dumps_function().

    *buffers* are objects with the buffer protocol in the order dumps() gave them.  Arrays lie in
    them without a copy, and are read-only where the buffer is.  Unpickling runs user code, so any
    exception may come out of it.
    """
    return _loads(data, buffers=buffers)


def _may_hold_connection(data: bytes) -> bool:
    """Whether a pickle may hold what only the pickler by value refuses: see DescriptorError."""
    there = any(name in sys.modules for name in _CONNECTIONS)  # else there are none
    return there and _CONNECTION in data and _dumps is pickle.dumps


def _needs_value(data: bytes) -> bool:
    """Whether a pickle by name is certain to fail in a worker.

    It is if it names Python code of a module nobody can import.  Modules that extensions make up
    to hold C types are strange too, but importing the extension makes them, so a name may do.
    """
    for name, needle in list(_strange.items()):
        if needle in data:
            members = getattr(sys.modules.get(name), "__dict__", {})
            for value in [*members.values()]:
                inside = value.__dict__.values() if isinstance(value, type) else (value,)
                if any(type(member) is types.FunctionType for member in inside):
                    return True
    return False


def _function_name(fn: Any) -> str:
    """What to call a callable in a message."""
    if hasattr(fn, "func") and hasattr(fn, "keywords"):
        return f"partial({_function_name(fn.func)})"
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else type(fn).__qualname__ + " object"


def _cause(exc: Exception) -> BaseException | None:
    """The user's own exception is worth a chain; the pickler's is already in the message."""
    own = (pickle.PicklingError, TypeError, AttributeError, RecursionError)
    return None if isinstance(exc, own) else exc


def _explain(obj: Any, name: str, exc: Exception, is_result: bool) -> Exception:
    """The exception to raise because *obj* could not be pickled for the reason *exc*."""
    if isinstance(exc, ImportError) and "cloudpickle" in str(exc):
        return exc
    if isinstance(exc, RecursionError) or isinstance(exc.__cause__, RecursionError):
        return UnpicklableError(
            f"{name}: nested too deeply to be pickled; send a flatter structure"
        )
    from ._blame import _advice, find_path

    try:
        found = find_path(obj, name, is_result)
    except Exception:
        found = None
    path, part, reason = found if found is not None else (name, obj, exc)
    text = str(reason) or type(reason).__name__
    if not isinstance(reason, (pickle.PicklingError, TypeError, AttributeError)):
        text = f"{type(reason).__name__}: {text}"
    kind = UnpicklableRuntimeError if isinstance(exc, RuntimeError) else UnpicklableError
    return kind(f"{path}: {text}; {_advice(part, is_result)}")
