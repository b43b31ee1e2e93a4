"""The one contract that every way of joining text and image keeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import KerasTensor

from mmfusion.fusion.cost import Cost


class FusionCache(NamedTuple):
    """What step by step decoding carries through a fusion.

    Attributes:
        layers: One entry a layer, of a form that is the style's own (a `mmfusion.layers.BlockCache`, the state of a recurrent
            cell). Tensors inside have the batch as their first axis or are scalars, so that a search over beams can reorder
            them.
    """

    layers: tuple[Any, ...]


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
    return_scores=False, training=None) -> FusionOutput``, `init_cache` and `cost`. A style that cannot be causal sets
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

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs.

        Args:
            text_length: Text tokens, T.
            image_length: Image tokens, P.

        Returns:
            The `Cost`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement cost")
