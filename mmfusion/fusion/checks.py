"""What fusions check of their options, sizes and caches, with one clear line where something is wrong."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import keras

from mmfusion.errors import ConfigError


def check_options_are_known(style: type, options: Mapping[str, Any]) -> None:
    """Refuses options that neither a style's constructor nor Keras's layers have.

    Args:
        style: The style's class.
        options: What its constructor left over.

    Raises:
        ConfigError: With all that the style takes.

    Example:
        >>> from mmfusion.fusion import MergedFusion
        >>> check_options_are_known(MergedFusion, {"name": "joined"})
        >>> MergedFusion(dim=8, norm_frist=False)
        Traceback (most recent call last):
        ...
        mmfusion.errors.ConfigError: MergedFusion has no option 'norm_frist': expected one of dim, image_dim, depth, num_heads, \
mlp_ratio, dropout, attention_dropout, stochastic_depth, layer_scale, kernel, norm_first, norm_epsilon, or of Keras's layers, \
activity_regularizer, trainable, dtype, autocast, name; perhaps norm_first was meant
    """
    known, of_keras = _options_of(style), _options_of(keras.layers.Layer)
    unknown = [name for name in options if name not in of_keras]
    if not unknown:
        return
    nearest = difflib.get_close_matches(unknown[0], known, 1)
    raise ConfigError(
        f"{style.__name__} has no option {' and no option '.join(map(repr, unknown))}",
        where=options.get("name"),
        expected=f"one of {', '.join(known)}, or of Keras's layers, {', '.join(of_keras)}",
        fix=f"perhaps {nearest[0]} was meant" if nearest else None,
    )


def _options_of(layer: Any) -> list[str]:
    parameters = inspect.signature(layer.__init__).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def is_made_of(cache: Any, entry: type, count: int) -> bool:
    """Whether a `mmfusion.fusion.FusionCache` holds so many entries, all of one type."""
    layers = getattr(cache, "layers", None)
    return isinstance(layers, tuple) and len(layers) == count and all(isinstance(layer, entry) for layer in layers)


def told_cache(cache: Any) -> str:
    """What a cache is, in words.

    Example:
        >>> from mmfusion.fusion import FusionCache
        >>> told_cache(FusionCache((1, 2))), told_cache("nothing of the kind")
        ('FusionCache of 2 x int', 'str')
    """
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, tuple):
        return type(cache).__name__
    names = " and ".join(sorted({type(layer).__name__ for layer in layers})) or "nothing"
    return f"{type(cache).__name__} of {len(layers)} x {names}"
