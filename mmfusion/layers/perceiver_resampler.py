"""A stream of any length into a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.layers.attention import Attention
from mmfusion.layers.checks import check_rate, check_size, check_tokens, check_width, checked_mask
from mmfusion.layers.feed_forward import FeedForward
from mmfusion.layers.masks import length_of, without_masked


class ResamplerOutput(NamedTuple):
    """What a resampler returns when scores are asked for.

    Attributes:
        latents: ``float[B, N, D]``.
        scores: ``float32[B, layers, H, N, S]``, attention from latents to media; what is missing to 1 went to the latents.
    """

    latents: KerasTensor
    scores: KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class PerceiverResampler(keras.layers.Layer):
    """Learned latents look at media tokens and at each other, several times; as many come out however many tokens go in.

    Each layer: ``z += Attention(Norm(z), [Norm(media); Norm(z)]); z += FeedForward(Norm(z))``; at the end ``Norm(z)``. With media
    of another width than the latents, a projection of the media comes first.

    Cost with S media tokens of width Dm, N latents of width D, L layers, ratio r: ``2·L·(2·(S + N)·D² + 2·N·D²·(1 + r)
    + 2·N·(S + N)·D)`` floating point operations (``+ 2·S·Dm·D`` for the projection): linear in S.

    Args:
        num_latents: Learned latents, N.
        depth: Layers. Default 2.
        num_heads: Attention heads. Default 4.
        head_dim: Width of a head. Default D over the heads.
        mlp_ratio: Hidden width of the feed-forward parts over D. Default 4.
        dim: Width of the latents, D. Default: the media's width.
        dropout: Rate after attention and feed-forward. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        kernel: See `Attention`. Default ``"exact"``.
        activation: Of the feed-forward parts. Default ``"gelu"``.
        use_bias: Whether attention and feed-forward have biases. Default False, as in the source.
        norm_epsilon: Of the normalisations. Default 1e-6.

    Call arguments:
        media: ``float[B, S, Dm]``: patches of an image, of several images or of the frames of a video.
        media_mask: ``bool[B, S]``, ``True`` = real token. Default: all real, or the media's own Keras mask. Without a real token
            the latents look at each other alone.
        return_scores: Whether to return the scores too. Default False.
        training: Whether dropout is active.

    Returns:
        ``float[B, N, D]``, or a `ResamplerOutput` with `return_scores`.

    Raises:
        ConfigError: If a constructor argument is impossible, or rank, width or dtype of media or mask is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import PerceiverResampler
        >>> resampler = PerceiverResampler(num_latents=3, num_heads=2)
        >>> [tuple(resampler(np.ones((2, length, 8), "float32")).shape) for length in (5, 500)]
        [(2, 3, 8), (2, 3, 8)]

    Source: Alayrac et al., Flamingo, 2022 (arXiv:2204.14198), section 3.1.1; Jaegle et al., Perceiver, 2021 (arXiv:2103.03206).
    """

    def __init__(
        self,
        *,
        num_latents: int,
        depth: int = 2,
        num_heads: int = 4,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        dim: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        kernel: str = "exact",
        activation: str = "gelu",
        use_bias: bool = False,
        norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_latents = num_latents
        self.depth = depth
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.mlp_ratio = mlp_ratio
        self.dim = dim
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.kernel = kernel
        self.activation = activation
        self.use_bias = use_bias
        self.norm_epsilon = norm_epsilon
        self.supports_masking = True
        for name, size in (("num_latents", num_latents), ("depth", depth), ("dim", dim)):
            if size is not None:
                check_size(size, name, self.name)
        check_rate(dropout, "dropout", self.name)
        self.blocks = [_Block(self, index) for index in range(depth)]
        self.norm = keras.layers.LayerNormalization(epsilon=norm_epsilon, dtype=self.dtype_policy, name="norm")

    def build(self, media_shape: Sequence[int | None]) -> None:
        """Builds the latents and all layers for the width of the media."""
        self._media_dim = check_width(media_shape, "media", self.name)
        dim = self._media_dim if self.dim is None else self.dim
        shape = (None, None, dim)
        # Of the size of what is added to them: smaller ones would all be the mean of the media after the first block.
        self.latents = self.add_weight(
            shape=(self.num_latents, dim), initializer=keras.initializers.TruncatedNormal(stddev=1.0), name="latents"
        )
        self.projection = None
        if dim != self._media_dim:
            self.projection = keras.layers.Dense(dim, use_bias=self.use_bias, dtype=self.dtype_policy, name="media_projection")
            self.projection.build((None, None, self._media_dim))
        for block in self.blocks:
            block.build(shape)
        self.norm.build(shape)
        self.built = True

    def call(
        self,
        media: KerasTensor,
        media_mask: KerasTensor | None = None,
        return_scores: bool = False,
        training: bool | None = None,
    ) -> KerasTensor | ResamplerOutput:
        """Resamples; see the class."""
        check_tokens(media, "media", self.name, self._media_dim)
        media_mask = getattr(media, "_keras_mask", None) if media_mask is None else media_mask
        mask = checked_mask(media_mask, "media_mask", self.name, media.shape, media.shape[1], ranks=(2,))
        media = without_masked(media, mask)
        if self.projection is not None:
            media = self.projection(media)
        batch, count = ops.shape(media)[0], length_of(media)
        latents = ops.broadcast_to(self.latents[None], (batch, self.num_latents, self.latents.shape[-1]))
        if mask is not None:
            mask = ops.broadcast_to(mask, (batch, count))
            mask = ops.concatenate([mask, ops.ones((batch, self.num_latents), "bool")], axis=1)
        scores = []
        for block in self.blocks:
            latents, block_scores = block(latents, media, mask=mask, return_scores=return_scores, training=training)
            scores.append(block_scores)
        latents = self.norm(latents)
        return ResamplerOutput(latents, ops.stack(scores, axis=1)[..., :count]) if return_scores else latents

    def compute_mask(self, inputs: KerasTensor, previous_mask: KerasTensor | None = None) -> None:
        """None: every latent is real."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "num_latents", "depth", "num_heads", "head_dim", "mlp_ratio", "dim", "dropout", "attention_dropout", "kernel",
            "activation", "use_bias", "norm_epsilon",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class _Block(keras.layers.Layer):
    """Attention to media and latents, then feed-forward; it takes its sizes from the resampler that owns it."""

    def __init__(self, owner: PerceiverResampler, index: int) -> None:
        super().__init__(dtype=owner.dtype_policy, name=f"block_{index}")
        self.supports_masking = True
        self.mlp_ratio, self.activation, self.use_bias = owner.mlp_ratio, owner.activation, owner.use_bias
        self.media_norm, self.latents_norm, self.feed_forward_norm = (
            keras.layers.LayerNormalization(epsilon=owner.norm_epsilon, dtype=self.dtype_policy, name=f"{part}_norm")
            for part in ("media", "latents", "feed_forward")
        )
        self.attention = Attention(
            num_heads=owner.num_heads,
            head_dim=owner.head_dim,
            kernel=owner.kernel,
            dropout=owner.attention_dropout,
            use_bias=owner.use_bias,
            dtype=self.dtype_policy,
            name="attention",
        )
        self.dropout_layer = keras.layers.Dropout(owner.dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, shape: Sequence[int | None]) -> None:
        self.feed_forward = FeedForward(
            hidden_dim=int(check_width(shape, "latents", self.name) * self.mlp_ratio),
            activation=self.activation,
            use_bias=self.use_bias,
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        for part in (self.media_norm, self.latents_norm, self.attention, self.feed_forward_norm, self.feed_forward):
            part.build(shape)
        self.built = True

    def call(
        self,
        latents: KerasTensor,
        media: KerasTensor,
        mask: KerasTensor | None,
        return_scores: bool,
        training: bool | None = None,
    ) -> tuple[KerasTensor, KerasTensor | None]:
        queries = self.latents_norm(latents)
        keys = ops.concatenate([self.media_norm(media), queries], axis=1)
        result = self.attention(queries, keys, context_mask=mask, return_scores=return_scores, training=training)
        attended, scores = (result.output, result.scores) if return_scores else (result, None)
        latents = latents + self.dropout_layer(attended, training=training)
        hidden = self.feed_forward(self.feed_forward_norm(latents), training=training)
        return latents + self.dropout_layer(hidden, training=training), scores

    def compute_mask(self, *arguments: Any, **options: Any) -> None:
        return None
