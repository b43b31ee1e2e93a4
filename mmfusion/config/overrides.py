"""Values changed on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmfusion.config.use_config import RangeConfig
from mmfusion.config.yaml_reading import read_yaml
from mmfusion.errors import ConfigError

_SPACE = "tune.space."


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Sets ``dotted.path=value`` in a recipe's content; values are read as YAML.

    Args:
        content: The recipe as nested dictionaries; it is not changed.
        overrides: The changes, later ones win.

    Returns:
        The changed copy.

    Raises:
        ConfigError: If a change is not of that form.

    Example:
        >>> apply_overrides({"train": {"epochs": 1}}, ["train.epochs=3", "data.image_size=[8, 8]"])
        {'train': {'epochs': 3}, 'data': {'image_size': [8, 8]}}
    """
    changed = merge({}, content)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(path.strip().split(".")):
            raise ConfigError("not an override", where=override, expected="section.key=value", found=repr(override))
        path = path.strip()
        value = read_yaml(text, path, f"unreadable value {text!r}") if text else None
        if path.startswith(_SPACE) and path.removeprefix(_SPACE).count("."):
            _set_searched(changed, path.removeprefix(_SPACE), value)
        else:
            set_dotted(changed, path, value)
    return changed


def set_dotted(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets a value at a dotted path, making the sections on the way.

    Example:
        >>> content = {}
        >>> set_dotted(content, "a.b", 1)
        >>> content
        {'a': {'b': 1}}
    """
    *sections, key = path.split(".")
    for section in sections:
        if not isinstance(content.get(section), dict):
            content[section] = {}
        content = content[section]
    content[key] = value


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with the changes in place, section by section; dotted keys reach inside.

    Example:
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d.e": 4})
        {'a': {'b': 3, 'c': 2}, 'd': {'e': 4}}
    """
    merged = {key: merge({}, value) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in changes.items():
        if isinstance(key, str) and "." in key and not isinstance(value, dict):
            set_dotted(merged, key, value)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = merge({}, value) if isinstance(value, dict) else value
    return merged


def _set_searched(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets a range, or a part of one; null drops it. Keys of ``tune.space`` are dotted paths themselves."""
    if not isinstance(content.get("tune"), dict):
        content["tune"] = {}
    tune = content["tune"]
    if not isinstance(tune.get("space"), dict):
        tune["space"] = {}
    searched, _, part = path.rpartition(".")
    if part in RangeConfig.model_fields:
        known = tune["space"].get(searched)
        tune["space"][searched] = {**(known if isinstance(known, dict) else {}), part: value}
    elif value is None:
        tune["space"].pop(path, None)
    else:
        tune["space"][path] = value
