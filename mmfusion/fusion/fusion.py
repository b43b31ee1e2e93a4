"""The one contract that every way of joining text and image keeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import KerasTensor

from mmfusion.layers import BlockCache


class FusionCache(NamedTuple):
    """What step by step decoding carries through a fusion.

    Attributes:
        blocks: One `BlockCache` a layer: the text's own keys and values so far, and the image's, computed once.
    """

    blocks: tuple[BlockCache, ...]


class FusionOutput(NamedTuple):
    """What every fusion returns.

    Attributes:
        text: ``float[B, T, D]``, the text tokens, informed by the image.
        image: ``float[B, P, Di]``, the image tokens (informed by the text where the style does that).
        scores: ``float[B, layers, heads, T, P]``, attention from text to image, or None if not asked for.
        cache: The advanced `FusionCache`, or None.
    """

    text: KerasTensor
    image: KerasTensor | None
    scores: KerasTensor | None = None
    cache: FusionCache | None = None


class Fusion(keras.layers.Layer):
    """Base of all fusion styles.

    A style implements ``call(text, image, text_mask=None, image_mask=None, causal=False, cache=None,
    return_scores=False, training=None) -> FusionOutput`` and `init_cache`. A style that cannot be causal sets
    `supports_causal` to False: a model that captions refuses it when it is built.

    Masks are ``bool``, ``True`` = real token; what is behind them never changes the result at real tokens.

    Args:
        **kwargs: Keras's own layer arguments.

    Example:
        >>> from mmfusion.fusion import CrossFusion, Fusion
        >>> isinstance(CrossFusion(dim=8, depth=1, num_heads=2), Fusion)
        True
    """

    supports_causal: bool = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: room for `max_length` text tokens, and the image's keys and values."""
        raise NotImplementedError(f"{type(self).__name__} does not implement init_cache")
