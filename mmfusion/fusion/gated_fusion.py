"""Gated fusion: looks at the image between the layers of a language model, closed at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.fusion.cache_size import CacheSize, keys_and_values
from mmfusion.fusion.cost import Cost, attention_cost, block_cost, feed_forward_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.layers import BlockCache, ContextCache, GatedCrossAttention


class GatedCache(NamedTuple):
    """The cache of one layer.

    Attributes:
        image: Keys and values of the image.
        language: Of the language block, or None where there is none.
    """

    image: ContextCache
    language: BlockCache | None


@keras.saving.register_keras_serializable(package="mmfusion")
class GatedFusion(Fusion):
    """Each language block is preceded by a look at the image through gates that start closed.

    Each of the ``depth`` layers computes ``x += tanh(a) · Attention(Norm(x), image); x += tanh(b) · FeedForward(Norm(x))`` with
    a = b = 0 at first (`gated_<i>`), then a plain `TransformerBlock` over the text (`language_<i>`); at the end `language_norm`.
    So at first the image changes nothing, and the language part, frozen by its names (``train.freeze`` with
    ``^fusion/(.*/)?language_``, which leaves a ``masked_language_head`` alone), stays what it was. Without `self_attention` there
    is no language part: the fusion is the identity at first.

    Cost of a pass with T text tokens, P image tokens, widths D and Di, L layers, H heads, ratio r:
    ``2·L·(T·D²·(6 + 4r) + 2·P·D·Di + 2·T·D·(T + P))`` floating point operations; ``L·(T·D·(10 + 2r) + P·(Di + 2·D))``
    numbers kept for the gradient, and ``L·H·T·(T + P)`` more with the exact kernel. Without `self_attention`
    ``2·L·(T·D²·(2 + 2r) + 2·P·D·Di + 2·T·D·P)``, ``L·(T·D·(4 + r) + P·(Di + 2·D))`` and ``L·H·T·P``. `cost` says them for
    given sizes.

    Args:
        dim: Width of the text tokens, D.
        image_dim: Width of the image tokens, Di. Default D.
        depth: Number of layers. Default 2.
        num_heads: Attention heads. Default 4.
        mlp_ratio: Hidden width of the feed-forward parts over D. Default 4.
        dropout: Rate after attention and feed-forward. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches of the last layer, growing linearly from 0. Default 0.
        layer_scale: Initial gain of each branch of the language blocks; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.
        self_attention: Whether a language block follows each look at the image. Default True.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``; may be None when a cache is given.
        text_mask: ``bool[B, T]``, ``True`` = real token; with a cache over its L places, ``bool[B, L]``.
        image_mask: ``bool[B, P]``, ``True`` = real patch.
        causal: Whether a text token sees only the text up to itself. The image is seen whole.
        cache: A `FusionCache` from `init_cache`, for step by step decoding.
        return_scores: Whether to return the attention from text to image, as it is before its gate.
        training: Whether dropout is active.

    Returns:
        `FusionOutput`; the image tokens pass unchanged.

    Raises:
        ConfigError: If a cache is given and `causal` is not, or an input does not fit.

    Example:
        >>> import numpy as np
        >>> from mmfusion.fusion import GatedFusion
        >>> fusion = GatedFusion(dim=8, depth=2, num_heads=2, self_attention=False)
        >>> text, image = np.random.normal(size=(1, 3, 8)).astype("float32"), np.ones((1, 4, 8), "float32")
        >>> bool((fusion(text, image).text.numpy() == text).all())
        True

    Source: Alayrac et al., Flamingo, 2022 (arXiv:2204.14198), section 3.1.2 and figure 4.
    """

    cache_entry = GatedCache

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
        self_attention: bool = True,
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
        self.self_attention = self_attention
        self.gated_blocks = [
            GatedCrossAttention(
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                attention_dropout=attention_dropout,
                stochastic_depth=self.stochastic_depth_at(index),
                kernel=kernel,
                dtype=self.dtype_policy,
                name=f"gated_{index}",
            )
            for index in range(depth)
        ]
        self.language_blocks: list[Any] = []
        self.language_norm: Any = None
        if self_attention:
            self.language_blocks = [self.make_block(f"language_{index}", index) for index in range(depth)]
            self.language_norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="language_norm")

    @property
    def text_to_patches(self) -> str | None:
        """How text tokens attend to patches in one step: across."""
        return "cross"

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds all layers; the widths are known from the constructor."""
        text_shape = (None, None, self.dim)
        for gated in self.gated_blocks:
            gated.build(text_shape, context_shape=(None, None, self.image_dim))
        for language in self.language_blocks:
            language.build(text_shape)
        if self.language_norm is not None:
            self.language_norm.build(text_shape)
        self.built = True

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: empty room for the text, and the image's keys and values computed once."""
        image, image_mask = self.checked_image(image, image_mask)
        return FusionCache(
            tuple(
                GatedCache(
                    gated.project_context(image, image_mask),
                    self.language_blocks[index].init_cache(batch_size, max_length) if self.self_attention else None,
                )
                for index, gated in enumerate(self.gated_blocks)
            )
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
        for index, gated in enumerate(self.gated_blocks):
            layer_cache = None if cache is None else cache.layers[index]
            result = gated(
                text,
                context=image,
                context_mask=image_mask,
                cache=None if layer_cache is None else layer_cache.image,
                return_scores=return_scores,
                training=training,
            )
            if return_scores:
                scores.append(result.scores)
            text = result.tokens if return_scores else result
            if self.self_attention:
                language_cache = None if layer_cache is None else layer_cache.language
                result = self.language_blocks[index](text, mask=text_mask, causal=causal, cache=language_cache, training=training)
                text = result if layer_cache is None else result.tokens
            if layer_cache is not None:
                caches.append(GatedCache(layer_cache.image, result.cache if self.self_attention else None))
        return FusionOutput(
            text=text if self.language_norm is None else self.language_norm(text),
            image=image,
            scores=ops.stack(scores, axis=1) if return_scores else None,
            cache=None if cache is None else FusionCache(tuple(caches)),
        )

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs; see the class for the formula."""
        self.check_lengths(text_length, image_length)
        options: dict[str, Any] = {"num_heads": self.num_heads, "kernel": self.kernel}
        cost = attention_cost(text_length, image_length, self.dim, context_dim=self.image_dim, **options)
        cost = cost + feed_forward_cost(text_length, self.dim, self.mlp_ratio)
        if self.self_attention:
            cost = cost + block_cost(text_length, self.dim, mlp_ratio=self.mlp_ratio, **options)
        return self.depth * cost

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What decoding remembers of one image: ``2·L·P·D`` numbers, and of each text ``2·L·T·D`` if it attends to itself."""
        self.check_lengths(text_length, image_length)
        own = keys_and_values(text_length, self.dim) if self.self_attention else 0
        return self.depth * CacheSize(shared=keys_and_values(image_length, self.dim), own=own)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "self_attention": self.self_attention}
