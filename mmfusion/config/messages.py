"""What pydantic finds wrong with a recipe, in one line that a person understands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mmfusion.config.describing import describe
from mmfusion.config.recipe import Recipe
from mmfusion.errors import ConfigError


class Place(NamedTuple):
    """An option that an error is about.

    Attributes:
        path: Its dotted path.
        expected: What values it takes.
        value: What it has.
    """

    path: str
    expected: str
    value: Any


def one_line(error: ValidationError, content: dict[str, Any], where: str) -> ConfigError:
    """The error that people see.

    Args:
        error: What pydantic found.
        content: What was validated.
        where: What to call it, such as the file.

    Returns:
        An error about the first problem, unknown keys before all else, and the number of the others.
    """
    # An unknown key explains most of what else may look wrong.
    problems = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    problem, count = problems[0], len({_key(item, content) for item in problems}) - 1
    more = f"{count} more problem{'s' * (count > 1)}" if count else None
    if problem["type"] == "extra_forbidden":
        path = ".".join(str(part) for part in problem["loc"])
        near = nearest_path(path)
        return ConfigError("unknown key", where=f"{where}: {path}", fix=_joined(near and f"did you mean {near}?", more))
    if problem["type"] == "value_error":
        inner, _, rest = str(problem["ctx"]["error"]).partition(": ")
        path = ".".join([*(str(part) for part in problem["loc"]), inner])
        return ConfigError(f"impossible value [{where}: {path}]: {_joined(rest, more)}")
    place = _place(problem["loc"], content)
    fix = None
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        choices = [part.strip("' ") for part in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        near_values = difflib.get_close_matches(problem["input"], choices, n=1)
        fix = f"did you mean {near_values[0]}?" if near_values else None
    elif place.expected.startswith("text") and isinstance(place.value, int | float):
        fix = "write it in quotes"
    found = "null" if place.value is None else repr(place.value)
    return ConfigError(
        "wrong value", where=f"{where}: {place.path}", expected=place.expected, found=found, fix=_joined(fix, more)
    )


def nearest_path(path: str) -> str | None:
    """The valid dotted path nearest to an invalid one.

    Example:
        >>> nearest_path("trian.epochs"), nearest_path("fusion.styl")
        ('train.epochs', 'fusion.style')
    """
    valid = list(option_paths())
    section, _, last = path.rpartition(".")
    siblings = [item.rpartition(".")[2] for item in valid if item.rpartition(".")[0] == section]
    # The same name in another section, if there is one then below this one.
    moved = [item for item in valid if item.rpartition(".")[2] == last]
    same = [name for name in siblings if name == last.lower()]
    near = same or ([] if moved else difflib.get_close_matches(last, siblings, n=1, cutoff=0.5))
    if near:
        return ".".join(filter(None, (section, near[0])))
    moved.sort(key=lambda item: not item.startswith(f"{section}."))
    return next(iter(moved or difflib.get_close_matches(path, valid, n=1, cutoff=0.6)), None)


def option_paths(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterable[str]:
    """The dotted paths of all sections and options."""
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = _section(field.annotation)
        if inner is not None:
            yield from option_paths(inner, f"{prefix}{name}.")


def is_section(path: str) -> bool:
    """Whether a valid dotted path names a section, not an option."""
    return any(item.startswith(f"{path}.") for item in option_paths())


def _place(location: tuple[int | str, ...], content: Any) -> Place:
    """The option at pydantic's location, which goes on inside it: to members of unions and of lists."""
    section: type[BaseModel] | None = Recipe
    path: list[str] = []
    kind: Any = Recipe
    limits: list[Any] = []
    for part in location:
        if section is not None:
            field = section.model_fields[str(part)]
            kind, limits = field.annotation, field.metadata
            section = _section(kind)
        elif get_origin(kind) is dict:
            kind, limits = get_args(kind)[1], []
            section = _section(kind)
        else:
            break
        content = content.get(part) if isinstance(content, dict) else None
        path.append(str(part))
    return Place(".".join(path), describe(kind, limits), content)


def _key(problem: Any, content: Any) -> str:
    # The members of a union ("int" or "list of two") each complain of the same value.
    return ".".join(map(str, problem["loc"])) if problem["type"] == "extra_forbidden" else _place(problem["loc"], content).path


def _section(kind: Any) -> type[BaseModel] | None:
    found = [item for item in (kind, *get_args(kind)) if isinstance(item, type) and issubclass(item, BaseModel)]
    # The keys of a dictionary of sections are anyone's.
    return found[0] if found and get_origin(kind) is not dict else None


def _joined(*parts: str | None) -> str | None:
    return "; ".join(part for part in parts if part) or None
