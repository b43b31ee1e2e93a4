"""A transformer block for clips: attention within frames, then across them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.attention import Attention
from mmfusion.layers.checks import check_tokens, check_width, checked_mask
from mmfusion.layers.feed_forward import FeedForward
from mmfusion.layers.layer_scale import LayerScale
from mmfusion.layers.masks import without_masked
from mmfusion.layers.stochastic_depth import StochasticDepth


@keras.saving.register_keras_serializable(package="mmfusion")
class SpaceTimeBlock(keras.layers.Layer):
    """Divided attention: each token looks at its own frame, then at its own place in all frames.

    ``x += Space(Norm(x)); x += Time(Norm(x)); x += FeedForward(Norm(x))``, where Space attends among the P tokens of a frame and
    Time among the F tokens of a place: ``F·P·(F + P)`` scores a head where joint attention has ``(F·P)²``.

    Args:
        num_frames: Frames of a clip, F.
        num_heads: Attention heads of both.
        mlp_ratio: Hidden width of the feed-forward part over the tokens'. Default 4.
        num_key_value_heads: See `Attention`.
        kernel: See `Attention`. Default ``"exact"``.
        dropout: Rate after each branch. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        query_key_norm: See `Attention`. Default False.
        attention_options: Further arguments of both `Attention`, such as ``{"logit_cap": 50.0}``. Default none.

    Call arguments:
        tokens: ``float[B, F · P, D]``, frame by frame.
        mask: ``bool[B, F · P]``, ``True`` = real token; what is behind it never matters. Default: all real.
        training: Whether dropout is active.

    Returns:
        ``float[B, F · P, D]``.

    Raises:
        ConfigError: If the tokens are no whole number of frames, or rank, width or dtype of tokens or mask is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import SpaceTimeBlock
        >>> tuple(SpaceTimeBlock(num_frames=3, num_heads=2)(np.ones((2, 3 * 4, 8), "float32")).shape)
        (2, 12, 8)

    Source: Arnab et al., ViViT, 2021 (arXiv:2103.15691), model 3; Bertasius et al., TimeSformer, 2021 (arXiv:2102.05095),
    "divided", which looks across time first.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_key_value_heads: int | None = None,
        kernel: str = "exact",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        query_key_norm: bool = False,
        attention_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_frames < 1:
            raise ConfigError("impossible number of frames", where=self.name, expected="at least 1", found=num_frames)
        self.num_frames = num_frames
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.num_key_value_heads = num_key_value_heads
        self.kernel = kernel
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.layer_scale = layer_scale
        self.query_key_norm = query_key_norm
        self.attention_options = dict(attention_options or {})
        self.supports_masking = True
        self.space_norm, self.time_norm, self.feed_forward_norm = (
            keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name=f"{name}_norm")
            for name in ("space", "time", "feed_forward")
        )
        self.space, self.time = (
            Attention(
                num_heads=num_heads,
                num_key_value_heads=num_key_value_heads,
                kernel=kernel,
                dropout=attention_dropout,
                query_key_norm=query_key_norm,
                dtype=self.dtype_policy,
                name=f"{name}_attention",
                **self.attention_options,
            )
            for name in ("space", "time")
        )
        self.gains = (
            {}
            if layer_scale is None
            else {
                branch: LayerScale(initial=layer_scale, dtype=self.dtype_policy, name=f"{branch}_scale")
                for branch in ("space", "time", "feed_forward")
            }
        )
        self.feed_forward: Any = None
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.drop_branch = StochasticDepth(rate=stochastic_depth, dtype=self.dtype_policy, name="stochastic_depth")

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        """Builds all parts for the width of the tokens."""
        self._dim = check_width(tokens_shape, "tokens", self.name)
        tokens_shape = (None, None, self._dim)
        self.feed_forward = FeedForward(hidden_dim=int(self._dim * self.mlp_ratio), dtype=self.dtype_policy, name="feed_forward")
        for layer in (
            self.space_norm,
            self.time_norm,
            self.feed_forward_norm,
            self.space,
            self.time,
            self.feed_forward,
            *self.gains.values(),
        ):
            layer.build(tokens_shape)
        self.built = True

    def call(self, tokens: KerasTensor, mask: KerasTensor | None = None, training: bool | None = None) -> KerasTensor:
        """Applies the block; see the class."""
        check_tokens(tokens, "tokens", self.name, self._dim)
        length = tokens.shape[1]
        if length is not None and length % self.num_frames:
            expected = f"a multiple of {self.num_frames} tokens"
            raise ConfigError("the tokens are no whole frames", where=self.name, expected=expected, found=length)
        mask = checked_mask(mask, "mask", self.name, tokens.shape, length, ranks=(2,))
        if mask is not None:
            mask = ops.broadcast_to(mask, ops.shape(tokens)[:2])
            tokens = without_masked(tokens, mask)
        frames = _Frames(self.num_frames, ops.shape(tokens)[1] // self.num_frames)
        seen = self.space(
            frames.of_space(self.space_norm(tokens)),
            context_mask=None if mask is None else frames.of_space(mask),
            training=training,
        )
        tokens = tokens + self._branch("space", frames.from_space(seen), training)
        seen = self.time(
            frames.of_time(self.time_norm(tokens)),
            context_mask=None if mask is None else frames.of_time(mask),
            training=training,
        )
        tokens = tokens + self._branch("time", frames.from_time(seen), training)
        hidden = self.feed_forward(self.feed_forward_norm(tokens), training=training)
        return tokens + self._branch("feed_forward", hidden, training)

    def compute_mask(self, tokens: KerasTensor, mask: KerasTensor | None = None) -> KerasTensor | None:
        """The mask, unchanged."""
        return mask

    def _branch(self, name: str, output: KerasTensor, training: bool | None) -> KerasTensor:
        output = self.dropout_layer(output, training=training)
        if name in self.gains:
            output = self.gains[name](output)
        return self.drop_branch(output, training=training)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "num_frames", "num_heads", "mlp_ratio", "num_key_value_heads", "kernel", "dropout", "attention_dropout",
            "stochastic_depth", "layer_scale", "query_key_norm", "attention_options",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class _Frames:
    """A clip's tokens ``[B, F · P, ...]`` frame by frame ``[B · F, P, ...]`` or place by place ``[B · P, F, ...]``."""

    def __init__(self, frames: int, places: int | KerasTensor) -> None:
        self.frames = frames
        self.places = places

    def of_space(self, x: KerasTensor) -> KerasTensor:
        return ops.reshape(x, (-1, self.places, *x.shape[2:]))

    def from_space(self, x: KerasTensor) -> KerasTensor:
        return ops.reshape(x, (-1, self.frames * self.places, *x.shape[2:]))

    def of_time(self, x: KerasTensor) -> KerasTensor:
        return ops.reshape(self._swapped(x, self.frames, self.places), (-1, self.frames, *x.shape[2:]))

    def from_time(self, x: KerasTensor) -> KerasTensor:
        return ops.reshape(self._swapped(x, self.places, self.frames), (-1, self.frames * self.places, *x.shape[2:]))

    @staticmethod
    def _swapped(x: KerasTensor, first: int | KerasTensor, second: int | KerasTensor) -> KerasTensor:
        return ops.swapaxes(ops.reshape(x, (-1, first, second, *x.shape[2:])), 1, 2)
