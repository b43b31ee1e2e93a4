"""From YAML to a recipe and back, with errors of one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmfusion.config.finding import find_recipe
from mmfusion.config.messages import is_section, nearest_path, one_line, option_paths
from mmfusion.config.overrides import apply_overrides, merge, set_dotted
from mmfusion.config.preset_merging import beneath, check_words, replaced
from mmfusion.config.recipe import Recipe
from mmfusion.config.use_config import RangeConfig
from mmfusion.config.yaml_reading import read_yaml
from mmfusion.errors import ConfigError


def load_recipe(path: str | Path, overrides: Sequence[str] = (), quick: bool = False) -> Recipe:
    """Reads a recipe.

    Args:
        path: The YAML file, or the bare name of a recipe that comes with mmfusion.
        overrides: Changes such as ``train.epochs=3``. ``preset=albef`` replaces the file's composition, see
            `mmfusion.config.preset_merging.replaced`; wherever it stands, it comes before the other changes.
        quick: Whether the recipe's ``quick`` section applies (before the overrides). Default False.

    Returns:
        The validated recipe.

    Raises:
        ConfigError: One line: an unknown key with the nearest valid name, a wrong type, an impossible combination.
    """
    path = find_recipe(path)
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
    for override in overrides:
        if override.partition("=")[0].strip() == "preset":
            name = apply_overrides({}, [override])["preset"]
            check_words(name, apply_overrides({}, overrides), str(path))
            content = replaced(content, name)
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
    check_words(content.get("preset"), content, where)
    content = beneath(content)
    recipe = _validated(content, where)
    if recipe.quick:
        # The quick variant is part of the recipe: it must be right before anyone needs it.
        for key in {"quick", "preset"} & recipe.quick.keys():
            raise ConfigError("unknown key", where=f"{where}: quick.{key}", fix="a quick variant has none of its own")
        full = {key: value for key, value in content.items() if key != "quick"}
        _validated(merge(full, recipe.quick), f"{where}, quick variant")
    for path, space in (recipe.tune.space if recipe.tune else {}).items():
        _check_space(content, path, space, where)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Writes the recipe as YAML."""
    Path(path).write_text(dump_recipe(recipe), encoding="utf-8")


def _parse(text: str, where: str) -> dict[str, Any]:
    content = read_yaml(text, where)
    if content is None:
        raise ConfigError("the recipe is empty", where=where, expected="sections such as data, model, train")
    if not isinstance(content, dict):
        raise ConfigError(
            "not a recipe", where=where, expected="sections such as data, model, train", found=type(content).__name__
        )
    return content


def _validated(content: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise one_line(error, content, where) from error


def _check_space(content: dict[str, Any], path: str, space: RangeConfig, where: str) -> None:
    """Whether a path that is searched exists and takes such values, each by itself."""
    where = f"{where}: tune.space.{path}"
    if path not in option_paths():
        near = nearest_path(path)
        raise ConfigError("unknown path", where=where, fix=f"did you mean {near}?" if near else None)
    if is_section(path) or path.partition(".")[0] in ("name", "preset", "quick", "tune"):
        raise ConfigError("nothing to search over", where=where, expected="an option such as train.learning_rate", found=path)
    low, high = space.min, space.max
    if space.choices is not None:
        values: list[Any] = list(space.choices)
    elif low is not None and high is not None:
        values = [int(low), int(high)] if space.type == "int" else [low, low + 0.377 * (high - low), high]
    else:
        values = []
    for value in values:
        changed = merge({}, {key: item for key, item in content.items() if key not in ("tune", "quick")})
        set_dotted(changed, path, value)
        try:
            Recipe.model_validate(changed)
        except ValidationError as error:
            # What is impossible only together with other values, another choice may make possible.
            problems = [item for item in error.errors() if item["type"] != "value_error"]
            if any(".".join(map(str, item["loc"])).startswith(path) for item in problems):
                message = one_line(error, changed, where)
                fractional = space.choices is None and space.type == "float" and "integer" in str(message.expected)
                raise ConfigError(
                    "a value that cannot be",
                    where=where,
                    expected=message.expected,
                    found=message.found,
                    fix="set type: int" if fractional else None,
                ) from error
