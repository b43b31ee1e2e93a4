"""Says in plain words what values an option takes."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

_SECTION = "a section of keys and values"


def describe(kind: Any, limits: Sequence[Any] = ()) -> str:
    """Describes a type and its limits.

    Args:
        kind: The type, as annotated.
        limits: Limits such as `annotated_types.Ge`.

    Returns:
        The description.

    Example:
        >>> from typing import Annotated, Literal
        >>> from pydantic import Field
        >>> describe(Annotated[int, Field(ge=1, le=9)] | tuple[float, float] | None)
        'an integer from 1 to 9, a list of 2 numbers or null'
        >>> describe(tuple[Literal["a", "b"], ...])
        "a list of any of 'a' and 'b'"
        >>> describe(tuple[str, ...], [Field(min_length=1).metadata[0]])
        'a list of one or more texts'
    """
    kind, limits = _unwrapped(kind, limits)
    origin = get_origin(kind)
    if origin is Literal:
        return _listed([repr(value) for value in get_args(kind)], "or")
    if origin in (Union, types.UnionType):
        members = [describe(member, limits) for member in get_args(kind) if member is not type(None)]
        return _listed(members + ["null"] * (type(None) in get_args(kind)), "or")
    if origin in (tuple, list):
        return _list_of(get_args(kind), limits)
    if origin is dict or kind is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return _SECTION
    if kind is str:
        pattern = next((limit.pattern for limit in limits if getattr(limit, "pattern", None)), None)
        return f"text that matches {pattern}" if pattern else "text"
    words: str = {bool: "true or false", int: "an integer", float: "a number"}.get(kind, "a value")
    return f"{words} {_bounds(limits)}".strip()


def _unwrapped(kind: Any, limits: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(kind) is not Annotated:
        return kind, tuple(limits)
    inner, *extras = get_args(kind)
    own = [limit for extra in extras for limit in getattr(extra, "metadata", [extra])]
    return inner, (*limits, *own)


def _list_of(members: tuple[Any, ...], limits: Sequence[Any]) -> str:
    member, own = _unwrapped(members[0], ())
    several = len(members) == 1 or members[-1] is Ellipsis
    least = next((limit.min_length for limit in limits if getattr(limit, "min_length", None)), 0)
    if get_origin(member) is Literal:
        words = _listed([repr(value) for value in get_args(member)], "and")
        return f"a list of {'one or more' if least else 'any'} of {words}"
    plural = {str: "texts", int: "integers", float: "numbers"}.get(member, "values")
    count = ("one or more " if least else "") if several else f"{len(members)} "
    return f"a list of {count}{plural} {_bounds(own)}".strip()


def _bounds(limits: Sequence[Any]) -> str:
    bounds: dict[str, Any] = {}
    for limit in limits:
        bounds.update({name: getattr(limit, name) for name in ("ge", "gt", "le", "lt") if getattr(limit, name, None) is not None})
    low = [f"of at least {bounds['ge']:.10g}"] if "ge" in bounds else [f"above {bounds['gt']:.10g}"] if "gt" in bounds else []
    high = [f"of at most {bounds['le']:.10g}"] if "le" in bounds else [f"below {bounds['lt']:.10g}"] if "lt" in bounds else []
    if {"ge", "le"} <= bounds.keys():
        return f"from {bounds['ge']:.10g} to {bounds['le']:.10g}"
    return " and ".join(low + high)


def _listed(words: list[str], last: str) -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]
