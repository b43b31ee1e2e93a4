"""Attention over a feature map, as a residual branch that starts closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.attention import Attention
from mmfusion.layers.masks import length_of


@keras.saving.register_keras_serializable(package="mmfusion")
class MapAttention(keras.layers.Layer):
    """``x + gain · Attention(LayerNorm(x))`` over the places of a feature map, or over tokens; the gains start at 0.

    There is a gain a channel.

    Args:
        attention: The `Attention`, not yet built or built for that many channels. Its ``rotary="2d"`` takes the map's own grid.

    Call arguments:
        features: ``float[B, rows, columns, C]``, or a token stream ``float[B, N, C]``.
        training: Whether dropout of the attention is active.

    Returns:
        As `features`; equal to it while the gain is 0.

    Raises:
        ConfigError: If the features are neither a map nor tokens, or have no known number of channels.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import Attention, MapAttention
        >>> layer, features = MapAttention(attention=Attention(num_heads=2)), np.ones((1, 2, 3, 4), "float32")
        >>> bool(np.all(layer(features) == features))
        True

    Source: Wang et al., Non-local Neural Networks, 2018 (arXiv:1711.07971); a gain from 0: Zhang et al., SAGAN, 2019
    (arXiv:1805.08318), section 3.
    """

    def __init__(self, *, attention: Attention, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attention = attention
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="norm")

    def build(self, features_shape: Sequence[int | None]) -> None:
        """Builds normalisation, attention and gain for the number of channels."""
        channels = features_shape[-1] if len(features_shape) in (3, 4) else None
        if channels is None:
            raise ConfigError(
                "features are neither a map nor tokens",
                where=self.name,
                expected="[batch, rows, columns, channels] or [batch, tokens, channels] with known channels",
                found=list(features_shape),
            )
        self.norm.build((None, None, channels))
        if not self.attention.built:
            self.attention.build((None, None, channels))
        self.gain = self.add_weight(shape=(channels,), initializer="zeros", name="gain")
        self.built = True

    def call(self, features: KerasTensor, training: bool | None = None) -> KerasTensor:
        """Attends; see the class."""
        shape, sizes = ops.shape(features), [length_of(features, axis) for axis in range(1, len(features.shape))]
        grid = tuple(sizes[:2]) if len(sizes) == 3 else None
        tokens = features if grid is None else ops.reshape(features, (shape[0], sizes[0] * sizes[1], sizes[2]))
        options = {"grid": grid} if self.attention.rotary == "2d" and grid is not None else {}
        attended = self.attention(self.norm(tokens), training=training, **options)
        return features + ops.reshape(attended * ops.cast(self.gain, attended.dtype), shape)

    def compute_output_shape(self, features_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """As the features."""
        return tuple(features_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "attention": keras.saving.serialize_keras_object(self.attention)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MapAttention:
        """Restores it with its attention."""
        return cls(**{**config, "attention": keras.saving.deserialize_keras_object(config["attention"])})
