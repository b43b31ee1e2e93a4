"""What a published configuration says, in our words; what ours do not have is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmfusion.errors import ConfigError

#: Names of activations in PyTorch's world, and ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "tanh_gelu",
    "gelu_pytorch_tanh": "tanh_gelu",
    "relu": "relu",
    "silu": "silu",
}


def known_section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any], family: str) -> dict[str, Any]:
    """A section of a configuration over the family's defaults; names that no default has are left out.

    Raises:
        ConfigError: If it is no mapping.
    """
    section = config.get(name) or {}
    if not isinstance(section, Mapping):
        raise ConfigError(
            "a section is no mapping", where=f"{family}: {name}", expected="a mapping", found=type(section).__name__
        )
    return {option: section.get(option, default) for option, default in defaults.items()}


def check_fixed(section: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Refuses values that ours do not have.

    Args:
        section: Their options.
        fixed: Of an option the values that are known; one that is not there has the first.
        where: What is read, for the error.

    Raises:
        ConfigError: With the first that is another.

    Example:
        >>> check_fixed({"pool_type": "avg"}, {"pool_type": ("tok",)}, "vision_cfg")
        Traceback (most recent call last):
        ...
        mmfusion.errors.ConfigError: an option that is not converted [vision_cfg: pool_type]: expected 'tok', found 'avg'
    """
    for option, values in fixed.items():
        if section.get(option, values[0]) not in values:
            expected = " or ".join(map(repr, values))
            raise ConfigError(
                "an option that is not converted", where=f"{where}: {option}", expected=expected, found=repr(section[option])
            )


def activation(name: str, where: str) -> str:
    """Our name of an activation.

    Raises:
        ConfigError: If it is none of `ACTIVATIONS`.
    """
    check_fixed({"hidden_act": name}, {"hidden_act": tuple(ACTIVATIONS)}, where)
    return ACTIVATIONS[name]


def ratio_of(hidden: int, dim: int) -> float:
    """The ``mlp_ratio`` of which ``int(dim · ratio)`` is exactly `hidden`.

    Example:
        >>> ratio_of(3072, 768)
        4.0
    """
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
