"""From YAML to a recipe and back, with errors of one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mmfusion.config.overrides import apply_overrides, merge
from mmfusion.config.recipe import Recipe
from mmfusion.errors import ConfigError


def load_recipe(path: str | Path, overrides: Sequence[str] = (), quick: bool = False) -> Recipe:
    """Reads a recipe.

    Args:
        path: The YAML file.
        overrides: Changes such as ``train.epochs=3``.
        quick: Whether the recipe's ``quick`` section applies (before the overrides). Default False.

    Returns:
        The validated recipe.

    Raises:
        ConfigError: One line: an unknown key with the nearest valid name, a wrong type, an impossible combination.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "not UTF-8 text"
        near = difflib.get_close_matches(path.name, [item.name for item in path.parent.glob("*.y*ml")], n=1)
        fix = f"did you mean {path.with_name(near[0])}?" if near and not path.exists() else None
        raise ConfigError("cannot read the recipe", where=path, expected="a YAML file", found=found, fix=fix) from error
    content = _parse(text, str(path))
    if quick:
        if not isinstance(content.get("quick") or {}, dict):
            raise ConfigError("wrong type", where=f"{path}: quick", expected="a section", found=content["quick"])
        content = merge(content, content.get("quick") or {})
    return recipe_from_dict(apply_overrides(content, overrides), where=str(path))


def recipe_from_dict(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validates a recipe given as nested dictionaries.

    Args:
        content: The recipe.
        where: What to call it in errors.

    Returns:
        The recipe.

    Raises:
        ConfigError: See `load_recipe`.

    Example:
        >>> recipe_from_dict({"train": {"epoch": 3}})
        Traceback (most recent call last):
        mmfusion.errors.ConfigError: unknown key [recipe: train.epoch]; did you mean train.epochs?
    """
    try:
        recipe = Recipe.model_validate(content)
        if recipe.quick:
            # The quick variant is part of the recipe: it must be right before anyone needs it.
            Recipe.model_validate(merge({key: value for key, value in content.items() if key != "quick"}, recipe.quick))
        for path, space in (recipe.tune.space if recipe.tune else {}).items():
            _check_path(path, where, space.choices)
    except ValidationError as error:
        raise _one_line(error, where) from error
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Writes the recipe as YAML."""
    Path(path).write_text(dump_recipe(recipe), encoding="utf-8")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice, where the plain loader silently keeps the last."""


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise ConfigError("a key stands twice", where=f"line {node.value[index][0].start_mark.line + 1}", found=key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}, {error.where}", found=error.found, fix="keep one of them") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError("not YAML", where=f"{where}{line}", found=getattr(error, "problem", None) or error) from error
    if content is None:
        raise ConfigError("the recipe is empty", where=where, expected="sections such as data, model, train")
    if not isinstance(content, dict):
        raise ConfigError(
            "not a recipe", where=where, expected="sections such as data, model, train", found=type(content).__name__
        )
    return _with_numbers(content)


def _with_numbers(value: Any) -> Any:
    from mmfusion.config.overrides import _number

    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    return [_with_numbers(item) for item in value] if isinstance(value, list) else _number(value)


def _one_line(error: ValidationError, where: str) -> ConfigError:
    problems = error.errors()
    # An unknown key explains most of what else may look wrong.
    problem = min(problems, key=lambda item: item["type"] != "extra_forbidden")
    path = _path(problem)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        near = nearest_path(path)
        return ConfigError(
            "unknown key", where=f"{where}: {path}", fix=f"did you mean {near}?{more}" if near else more.strip() or None
        )
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        inner, _, rest = message.partition(": ")
        full = f"{path}.{inner}" if path else inner
        return ConfigError(f"impossible value [{where}: {full}]: {rest}{more}")
    # The members of a union ("int" or "list of two") each complain of the same value.
    same = [item for item in problems if _path(item) == path or _path(item).startswith(f"{path}.")]
    expected = " or ".join(dict.fromkeys(_expected(item) for item in same if _path(item) == path))
    more = f" (and {len(problems) - len(same)} more)" if len(problems) > len(same) else ""
    found, fix = problem["input"], None
    if problem["type"] == "literal_error" and isinstance(found, str):
        choices = [part.strip("' ") for part in expected.replace(" or ", ",").split(",")]
        near_values = difflib.get_close_matches(found, choices, n=1)
        fix = f"did you mean {near_values[0]}?" if near_values else None
    return ConfigError(
        "wrong value", where=f"{where}: {path}", expected=expected, found=repr(found), fix=(fix or "") + more or None
    )


def _path(problem: Any) -> str:
    return ".".join(str(part) for part in problem["loc"] if not _is_type_name(part))


def _expected(problem: Any) -> str:
    kind, limits = problem["type"], problem.get("ctx", {})
    for start, words in _EXPECTED.items():
        if kind.startswith(start):
            return words.format(**limits)
    message: str = problem["msg"]
    return (message[:1].lower() + message[1:]).removeprefix("input should be ")


_EXPECTED = {
    "int_": "an integer",
    "float_": "a number",
    "bool_": "true or false",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "text that is not empty",
    "string_": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a section of keys and values",
    "model_": "a section of keys and values",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "missing": "a value",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
}


def _is_type_name(part: int | str) -> bool:
    # Pydantic names the member of a union ("tuple[constrained-int, …]", "int", "AugmentConfig") inside the path.
    return isinstance(part, str) and (part in ("int", "str", "float", "constrained-int") or "[" in part or part[:1].isupper())


def nearest_path(path: str) -> str | None:
    """The valid dotted path nearest to an invalid one.

    Example:
        >>> nearest_path("trian.epochs"), nearest_path("fusion.styl")
        ('train.epochs', 'fusion.style')
    """
    valid = _paths(Recipe)
    last = path.split(".")[-1]
    siblings = [item for item in valid if item.rpartition(".")[0] == path.rpartition(".")[0]]
    names = difflib.get_close_matches(last, [item.split(".")[-1] for item in siblings], n=1, cutoff=0.5)
    if names:
        return ".".join(filter(None, (path.rpartition(".")[0], names[0])))
    moved = [item for item in valid if item.split(".")[-1] == last]
    return next(iter(moved or difflib.get_close_matches(path, valid, n=1, cutoff=0.6)), None)


def _paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    paths = []
    for name, field in section.model_fields.items():
        paths.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                paths += _paths(kind, f"{prefix}{name}.")
    return paths


def _check_path(path: str, where: str, choices: Any) -> None:
    if path not in _paths(Recipe):
        near = nearest_path(path)
        raise ConfigError("unknown path", where=f"{where}: tune.space.{path}", fix=f"did you mean {near}?" if near else None)
