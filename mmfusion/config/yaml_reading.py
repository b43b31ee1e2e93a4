"""YAML as people write it: a key written twice is refused, and 1e-3 is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

from mmfusion.errors import ConfigError

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Refuses a key written twice, where the plain loader silently keeps the last."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    known: list[Any] = []
    for key_node, _ in node.value:
        if key_node.tag == _MERGE:  # "<<: *other" brings keys that may be written again
            continue
        key, line = loader.construct_object(key_node), f"line {key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise ConfigError("a key that is no text", where=line, found=repr(key), fix="write it in quotes")
        if key in known:
            raise ConfigError("a key stands twice", where=line, found=key, fix="keep one of them")
        known.append(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# YAML 1.1 reads 1e-3 and 1.5e3 as text; people write them all the time. In quotes they stay text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_yaml(text: str, where: str, what: str = "not YAML") -> Any:
    """Reads YAML.

    Args:
        text: The YAML.
        where: What to call it in errors.
        what: What to call it when it cannot be read. Default "not YAML".

    Returns:
        What it holds.

    Raises:
        ConfigError: If it is not YAML, has a key twice or one that is no text.

    Example:
        >>> read_yaml("{rate: 1e-3, name: '1e-3'}", "recipe")
        {'rate': 0.001, 'name': '1e-3'}
        >>> read_yaml("{rate: 1, rate: 2}", "recipe")
        Traceback (most recent call last):
        mmfusion.errors.ConfigError: a key stands twice [recipe, line 1]: found rate; keep one of them
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}, {error.where}", found=error.found, fix=error.fix) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        found = str(getattr(error, "problem", None) or error).removeprefix("but ").removeprefix("found ")
        raise ConfigError(what, where=f"{where}{line}", found=found) from error
    except (ValueError, RecursionError) as error:  # such as the date 2024-99-99
        raise ConfigError(what, where=where, found=error) from error
