"""Keeps parts of a model as they are while the others are trained."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import keras

from mmfusion.errors import ConfigError


def freeze(model: keras.Model, patterns: Sequence[str]) -> list[str]:
    """Makes weights untrainable, by their paths.

    A frozen weight gets neither gradient nor decay nor a slot in the optimizer, and is the same bit for bit after a training.
    Paths look like ``image_encoder/block_0/self_attention/query/kernel``; dropout in a frozen part stays active in training.

    Args:
        model: The model, built.
        patterns: Regular expressions; a weight is frozen if one of them is found in its path (``^`` and ``$`` bind to its ends).

    Returns:
        The paths of the frozen weights.

    Raises:
        ConfigError: If a pattern finds nothing, with the nearest paths, or nothing is left to train.

    Example:
        >>> import keras
        >>> from mmfusion.training import freeze
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(1, name="b")])
        >>> freeze(model, ["^a/", "bias"])
        ['a/kernel', 'a/bias', 'b/bias']
        >>> [weight.path.removeprefix(f"{model.name}/") for weight in model.trainable_weights]
        ['b/kernel']
    """
    weights = {weight.path.removeprefix(f"{model.name}/"): weight for weight in model.trainable_weights}
    frozen: dict[str, keras.Variable] = {}
    for pattern in patterns:
        found = {path: weight for path, weight in weights.items() if re.search(pattern, path)}
        if not found:
            raise ConfigError(
                "nothing to freeze by this name",
                where="train.freeze",
                expected="a regular expression that is found in the path of a weight",
                found=repr(pattern),
                fix=f"the nearest paths are {', '.join(_nearest(pattern, list(weights)))}",
            )
        frozen |= found
    if weights and len(frozen) == len(weights):
        raise ConfigError(
            "all weights are frozen, so there is nothing to train",
            where="train.freeze",
            found=", ".join(map(repr, patterns)),
            fix="leave a part out",
        )
    for weight in frozen.values():
        weight.trainable = False
    return [path for path in weights if path in frozen]


def _nearest(pattern: str, paths: list[str]) -> list[str]:
    """Whole paths, and the parts that they begin with, that look most like a pattern."""
    words = re.sub(r"[\\^$.*+?()\[\]{}|]+", "/", pattern).strip("/")
    starts = {"/".join(path.split("/")[:length]) for path in paths for length in range(1, path.count("/") + 2)}
    return difflib.get_close_matches(words, sorted(starts), n=3, cutoff=0.0)
