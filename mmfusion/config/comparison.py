"""Where two recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmfusion.config.recipe import Recipe


def changed_paths(earlier: Recipe, now: Recipe, free: Sequence[str] = ()) -> list[str]:
    """The options in which two recipes differ.

    Args:
        earlier: A recipe.
        now: Another.
        free: Options or sections that may differ.

    Returns:
        Their dotted paths, sorted.

    Example:
        >>> from mmfusion.config import recipe_from_dict
        >>> changed_paths(recipe_from_dict({}), recipe_from_dict({"seed": 1, "train": {"epochs": 3}}), free=["train"])
        ['seed']
    """
    first, second = _flat(earlier.model_dump()), _flat(now.model_dump())
    return [
        path
        for path in sorted({*first, *second})
        if first.get(path) != second.get(path) and not any(path == name or path.startswith(f"{name}.") for name in free)
    ]


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in content.items():
        values |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values
