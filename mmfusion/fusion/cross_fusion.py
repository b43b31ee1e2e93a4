"""Cross fusion: text tokens query image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.fusion.cost import Cost, block_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput


@keras.saving.register_keras_serializable(package="mmfusion")
class CrossFusion(Fusion):
    """Text queries image: a stack of blocks with self-attention over text and cross-attention into the image.

    Each of the ``depth`` layers computes, with pre-normalisation,
    ``x += SelfAttention(x); x += CrossAttention(x, image); x += FeedForward(x)``.

    Cost of a pass with T text tokens, P image tokens, widths D and Di, L layers, H heads, ratio r:
    ``2·L·(T·D²·(6 + 2r) + 2·P·D·Di + 2·T·D·(T + P))`` floating point operations; ``O(L·(T·D·(6 + r) + P·D))`` numbers kept for
    the gradient, and ``L·H·T·(T + P)`` more with the exact kernel. `cost` says them for given sizes.

    Args:
        dim: Width of the text tokens, D.
        image_dim: Width of the image tokens, Di. Default D.
        depth: Number of layers. Default 2.
        num_heads: Attention heads. Default 4.
        mlp_ratio: Hidden width of the feed-forward part over D. Default 4.
        dropout: Rate after attention and feed-forward. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches of the last layer, growing linearly from 0. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``; may be None when a cache is given.
        text_mask: ``bool[B, T]``, ``True`` = real token; with a cache over its L places, ``bool[B, L]``.
        image_mask: ``bool[B, P]``, ``True`` = real patch.
        causal: Whether a text token sees only the text up to itself. The image is seen whole.
        cache: A `FusionCache` from `init_cache`, for step by step decoding.
        return_scores: Whether to return the attention from text to image.
        training: Whether dropout is active.

    Returns:
        `FusionOutput`; the image tokens pass unchanged.

    Raises:
        ConfigError: If a cache is given and `causal` is not.

    Example:
        >>> import numpy as np
        >>> from mmfusion.fusion import CrossFusion
        >>> fusion = CrossFusion(dim=8, depth=2, num_heads=2)
        >>> text, image = np.ones((1, 3, 8), "float32"), np.ones((1, 4, 8), "float32")
        >>> output = fusion(text, image, return_scores=True)
        >>> tuple(output.text.shape), tuple(output.scores.shape)
        ((1, 3, 8), (1, 2, 2, 3, 4))

    Source: the decoder layer of Vaswani et al. 2017 (arXiv:1706.03762), as used to join image and text by
    Li et al., ALBEF, 2021 (arXiv:2107.07651) and BLIP, 2022 (arXiv:2201.12086).
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
        self.blocks = [self.make_block(f"block_{index}", index, cross_attention=True) for index in range(depth)]
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="norm")

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds all layers; the widths are known from the constructor."""
        for block in self.blocks:
            block.build((None, None, self.dim), context_shape=(None, None, self.image_dim))
        self.norm.build((None, None, self.dim))
        self.built = True

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: empty room for the text, and the image's keys and values computed once."""
        return FusionCache(
            tuple(block.init_cache(batch_size, max_length, context=image, context_mask=image_mask) for block in self.blocks)
        )

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
        scores, caches = [], []
        for index, block in enumerate(self.blocks):
            block_cache = None if cache is None else cache.layers[index]
            result = block(
                text,
                mask=text_mask,
                context=image,
                context_mask=image_mask,
                causal=causal,
                cache=block_cache,
                return_scores=return_scores,
                training=training,
            )
            if cache is None and not return_scores:
                text = result
                continue
            text = result.tokens
            scores.append(result.cross_scores)
            caches.append(result.cache)
        return FusionOutput(
            text=self.norm(text),
            image=image,
            scores=ops.stack(scores, axis=1) if return_scores else None,
            cache=None if cache is None else FusionCache(tuple(caches)),
        )

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs; see the class for the formula."""
        return self.depth * block_cost(
            text_length,
            self.dim,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            kernel=self.kernel,
            context=image_length,
            context_dim=self.image_dim,
        )
