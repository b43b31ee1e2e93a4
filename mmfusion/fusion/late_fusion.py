"""Late fusion: each text token meets the image as one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.fusion.cache_size import CacheSize
from mmfusion.fusion.checks import is_made_of
from mmfusion.fusion.cost import Cost, attention_cost, dense_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.layers import AttentionPooling, LayerScale, StochasticDepth
from mmfusion.layers.masks import length_of


class LateCache(NamedTuple):
    """The image, pooled once for all steps.

    Attributes:
        vector: ``float[B, D]``.
        scores: ``float32[B, H, P]``, the attention that pooled it.
    """

    vector: KerasTensor
    scores: KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class LateFusion(Fusion):
    """The image becomes one vector by attention pooling, and joins each text token by itself in a residual MLP.

    ``v = AttentionPooling(image)``, then in each of the ``depth`` layers
    ``x += W_2 · gelu(W_1 [Norm(x); v])``. Text tokens do not see each other here: what they know of each other is the text
    encoder's. The cheapest style, and the one that cannot look at different places for different words.

    Cost of a pass with T text tokens, P image tokens, widths D and Di, L layers, H heads, ratio r:
    ``2·L·r·D²·(2·T + 1) + 4·P·D·(Di + 1) + 4·D²`` floating point operations;
    ``L·D·(T·(1 + r) + 1) + P·(Di + 2·D) + 3·D`` numbers kept for the gradient, and ``H·P`` more with the exact kernel. `cost`
    says them for given sizes.

    Args:
        dim: Width of the text tokens, D.
        image_dim: Width of the image tokens, Di. Default D.
        depth: Number of layers. Default 2.
        num_heads: Heads of the attention that pools. Default 4.
        mlp_ratio: Hidden width of a layer over D. Default 4.
        dropout: Rate after each layer. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping the last layer, growing linearly from 0. Default 0.
        layer_scale: Initial gain of each layer; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``; may be None when a cache is given.
        text_mask: ``bool[B, T]``, ``True`` = real token.
        image_mask: ``bool[B, P]``, ``True`` = real patch; an image without any is the zero vector.
        causal: Changes nothing: no text token sees another.
        cache: A `FusionCache` from `init_cache`, for step by step decoding.
        return_scores: Whether to return the attention from text to image: that of the pooling, the same for each layer and token.
        training: Whether dropout is active.

    Returns:
        `FusionOutput`; the image tokens pass unchanged.

    Raises:
        ConfigError: If a cache is given and `causal` is not, or an input does not fit.

    Example:
        >>> import numpy as np
        >>> from mmfusion.fusion import LateFusion
        >>> fusion = LateFusion(dim=8, depth=2, num_heads=2)
        >>> output = fusion(np.ones((1, 3, 8), "float32"), np.ones((1, 4, 8), "float32"), return_scores=True)
        >>> tuple(output.text.shape), tuple(output.scores.shape)
        ((1, 3, 8), (1, 2, 2, 3, 4))

    Source: the "merge" architecture of Tanti, Gatt and Camilleri 2017 (arXiv:1708.02043), with attention pooling.
    """

    def __init__(
        self,
        *,
        dim: int,
        image_dim: int | None = None,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        kernel: str = "exact",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dim=dim,
            image_dim=image_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            stochastic_depth=stochastic_depth,
            layer_scale=layer_scale,
            kernel=kernel,
            **kwargs,
        )
        self.pooling = AttentionPooling(
            num_heads=num_heads,
            dim=dim,
            kernel=kernel,
            attention_dropout=attention_dropout,
            dtype=self.dtype_policy,
            name="pooling",
        )
        self.merges = [_Merge(self, index) for index in range(depth)]
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="norm")

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds all layers; the widths are known from the constructor."""
        self.pooling.build((None, None, self.image_dim))
        for merge in self.merges:
            merge.build((None, None, self.dim))
        self.norm.build((None, None, self.dim))
        self.built = True

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: the image is pooled once."""
        image, image_mask = self.checked_image(image, image_mask)
        vector, scores, _ = self.pooling(image, tokens_mask=image_mask, return_scores=True)
        return FusionCache((LateCache(vector, scores[:, :, 0]),))

    def call(
        self,
        text: KerasTensor,
        image: KerasTensor | None = None,
        text_mask: KerasTensor | None = None,
        image_mask: KerasTensor | None = None,
        causal: bool = False,
        cache: FusionCache | None = None,
        return_scores: bool = False,
        training: bool | None = None,
    ) -> FusionOutput:
        """Joins the two streams; see the class."""
        text, image, text_mask, image_mask = self.checked(text, image, text_mask, image_mask, causal, cache)
        scores: Any = None
        if cache is not None:
            # Keras casts what comes in to the dtype of the computation; what goes out is of the dtype that it was.
            vector, scores = cache.layers[0].vector, ops.cast(cache.layers[0].scores, "float32")
            cache = FusionCache((LateCache(vector, scores),))
        elif return_scores:
            vector, scores, _ = self.pooling(image, tokens_mask=image_mask, return_scores=True, training=training)
            scores = scores[:, :, 0]
        else:
            vector = self.pooling(image, tokens_mask=image_mask, training=training)
        for merge in self.merges:
            text = merge(text, vector=vector, training=training)
        if return_scores:
            shape = (ops.shape(text)[0], self.depth, self.num_heads, length_of(text), length_of(scores, 2))
            scores = ops.broadcast_to(scores[:, None, :, None], shape)
        return FusionOutput(self.norm(text), image, scores if return_scores else None, cache)

    def owns_cache(self, cache: FusionCache) -> bool:
        """Whether it is one `LateCache`."""
        return is_made_of(cache, LateCache, 1)

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs; see the class for the formula."""
        self.check_lengths(text_length, image_length)
        hidden = int(self.dim * self.mlp_ratio)
        pooling = attention_cost(
            1, image_length, self.dim, context_dim=self.image_dim, num_heads=self.num_heads, kernel=self.kernel
        )
        merge = dense_cost(text_length, self.dim, hidden) + dense_cost(1, self.dim, hidden)
        return pooling + self.depth * (merge + dense_cost(text_length, hidden, self.dim))

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What decoding remembers of each text: the D numbers of the pooled image, and ``H·P`` scores."""
        self.check_lengths(text_length, image_length)
        return CacheSize(own=self.dim, scores=self.num_heads * image_length)


class _Merge(keras.layers.Layer):
    """``x += W_2 · gelu(W_1 [Norm(x); v])``, with W_1 in two halves so that the image's is multiplied once, not once a token."""

    def __init__(self, owner: LateFusion, index: int) -> None:
        super().__init__(dtype=owner.dtype_policy, name=f"merge_{index}")
        self.supports_masking = True
        dense, hidden = keras.layers.Dense, int(owner.dim * owner.mlp_ratio)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="norm")
        self.text_dense = dense(hidden, dtype=self.dtype_policy, name="text")
        self.image_dense = dense(hidden, use_bias=False, dtype=self.dtype_policy, name="image")
        self.output_dense = dense(owner.dim, dtype=self.dtype_policy, name="output")
        self.dropout_layer = keras.layers.Dropout(owner.dropout, dtype=self.dtype_policy, name="dropout")
        self.gain = (
            None if owner.layer_scale is None else LayerScale(initial=owner.layer_scale, dtype=self.dtype_policy, name="scale")
        )
        self.drop_branch = StochasticDepth(
            rate=owner.stochastic_depth_at(index), dtype=self.dtype_policy, name="stochastic_depth"
        )

    def build(self, shape: Sequence[int | None]) -> None:
        for part in (self.norm, self.text_dense, self.image_dense):
            part.build(shape)
        self.output_dense.build((None, None, self.text_dense.units))
        if self.gain is not None:
            self.gain.build(shape)
        self.built = True

    def call(self, text: KerasTensor, vector: KerasTensor, training: bool | None = None) -> KerasTensor:
        hidden = ops.gelu(self.text_dense(self.norm(text)) + self.image_dense(vector)[:, None], approximate=False)
        branch = self.dropout_layer(self.output_dense(hidden), training=training)
        return text + self.drop_branch(branch if self.gain is None else self.gain(branch), training=training)
