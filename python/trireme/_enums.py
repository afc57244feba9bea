# SPDX-License-Identifier: BSD-3-Clause
"""Enums by value: classes whose members are made with them.

cloudpickle makes such a class again from the values of its members.  That runs none of the class's
own ``__new__`` and ``__init__``, which are not there yet, and leaves out aliases and the named
combinations of flags.  So a member had no attributes, the wrong content where its type is a mix-in
(``class Coord(bytes, Enum)``), or another name.

Here a member travels as what it is: its content as an instance of the mix-in, its value, and later,
with the state of the class, its attributes, which may refer to the class or its members.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# How a member's content is had from it, whatever its class makes of str() and the like.
_CONTENT: dict[type, Callable[[Any], Any]] = {
    object: lambda member: None,
    int: int.__pos__,
    float: float.__pos__,
    complex: complex.__pos__,
    str: str.__str__,
    bytes: lambda member: bytes.__getitem__(member, slice(None)),
    tuple: lambda member: tuple.__getitem__(member, slice(None)),
}
_ENUMS_OWN = ("_value_", "_name_", "__objclass__", "_sort_order_")


def _new_member(cls: Any, *args: Any) -> Any:
    """Stands for the class's own __new__ while its members are made."""
    content, value = args if len(args) == 2 else args[0]  # of a tuple's, one argument
    kind = cls._member_type_
    made = object.__new__(cls) if kind is object else kind.__new__(cls, content)
    made._value_ = value
    return made


def make_enum(
    bases: tuple[type, ...],
    name: str,
    qualname: str,
    members: list[tuple[str, Any, Any]],
    module: str,
    tracker: str,
    extra: Any,
) -> Any:
    """Worker: the class with its members, or the one that it has under this id."""
    from cloudpickle import cloudpickle

    meta: Any = type(bases[-1])
    body = meta.__prepare__(name, bases)
    body["__new__"] = _new_member
    for member, content, value in members:
        body[member] = (content, value)
    made = meta.__new__(meta, name, bases, body)
    made.__module__ = module
    made.__qualname__ = qualname
    return cloudpickle._lookup_class_or_track(tracker, made)


def describe(cls: Any, args: tuple[Any, ...], body: dict[str, Any]) -> tuple[Any, Any]:
    """Owner: arguments for :func:`make_enum` in the place of cloudpickle's, and attributes.

    The latter are a dict by the members' names, to be set when the class is there.  Both are None
    where the mix-in is not one that we know: cloudpickle's way is as good as any then.  Aliases are
    taken out of *body*, the state of the class.
    """
    for name in cls.__members__:
        body.pop(name, None)
    content = _CONTENT.get(cls._member_type_)
    if content is None:
        return None, None
    members = [(n, content(m), m._value_) for n, m in cls.__members__.items()]
    later = {}
    for member in cls.__members__.values():
        own = {k: v for k, v in vars(member).items() if k not in _ENUMS_OWN}
        if own:
            later[member._name_] = own
    return (*args[:3], members, *args[4:]), later


def set_attributes(cls: Any, later: dict[str, dict[str, Any]]) -> None:
    """Worker: give the members their attributes."""
    for name, own in later.items():
        member = cls._member_map_.get(name)
        if member is not None:
            vars(member).update(own)
