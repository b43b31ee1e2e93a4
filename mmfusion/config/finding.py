"""Recipes that come with mmfusion, by name."""

from __future__ import annotations

import difflib
import sysconfig
from pathlib import Path

from mmfusion.errors import ConfigError


def find_recipe(path: str | Path) -> Path:
    """A recipe's file: the path itself, or the recipe of that name that comes with mmfusion.

    Args:
        path: A YAML file, or a bare name such as ``"quickstart"``.

    Returns:
        The file; the path itself where it is no bare name, whether it exists or not.

    Raises:
        ConfigError: If a bare name is neither a file here nor a recipe that comes with mmfusion.

    Example:
        >>> find_recipe("quickstart").name
        'quickstart.yaml'
    """
    path = Path(path)
    if path.exists() or path.suffix or path.parent != Path("."):
        return path
    own = {file.stem: file for folder in _folders() for file in sorted(folder.glob("*.yaml"))}
    if path.name in own:
        return own[path.name]
    near = difflib.get_close_matches(path.name, own, n=1)
    raise ConfigError(
        "no such recipe",
        where=path,
        expected=f"a YAML file, or one of {', '.join(sorted(own))}",
        fix=f"did you mean {near[0]}?" if near else None,
    )


def _folders() -> list[Path]:
    # Where pip puts them (setup.cfg, data_files), and where they are in a checkout of the repository, which wins.
    return [Path(sysconfig.get_path("data"), "share", "mmfusion", "configs"), Path(__file__).parents[2] / "configs"]
