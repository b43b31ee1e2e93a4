"""Q-Former fusion: a few learned queries read the image, and share self-attention with the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.fusion.cache_size import CacheSize, keys_and_values
from mmfusion.fusion.cost import Cost, attention_cost, feed_forward_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.fusion.latents import latents_mask, through_latents
from mmfusion.fusion.scores import renormalized
from mmfusion.layers import BlockCache, QFormerBlock
from mmfusion.layers.checks import check_size
from mmfusion.layers.masks import length_of


class QFormerCache(NamedTuple):
    """The cache of one layer.

    Attributes:
        block: Keys and values of the queries, and room for those of the text.
        queries_mask: ``bool[B, N]``, all False for an image without a real patch; None if all images have one.
        reading: ``float32[B, N, P]``, what each query has read of the patches before this layer.
    """

    block: BlockCache
    queries_mask: KerasTensor | None
    reading: KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class QFormerFusion(Fusion):
    """Learned queries look at the image every `cross_every` layers; queries and text see each other by shared self-attention.

    Of ``x = [q; t]``, queries then text, each of the ``depth`` layers computes
    ``x += SelfAttention(x); q += CrossAttention(q, image); q += FeedForward_q(q); t += FeedForward_t(t)``, the second in layers
    0, cross_every, 2·cross_every, ... Who sees whom decides what it is good for:

    - matching (`causal` False): queries and text see each other;
    - captioning (`causal` True): queries see queries alone, a text token sees the queries, itself and the text before it;
    - contrastive (`image_tokens`): queries alone, before any text is known.

    Text reads in one layer what the queries looked at in the layers before it, so with a depth of 1 it learns nothing of the
    image (`informs_text` is then False).

    Cost of a pass with T text tokens, P image tokens, N queries, M = N + T, widths D and Di, L layers, C of them with a look
    at the image, H heads, ratio r: ``2·L·(M·D²·(4 + 2r) + 2·M²·D) + 2·C·(2·N·D² + 2·P·D·Di + 2·N·P·D)`` floating point
    operations; ``L·M·D·(6 + r) + C·(3·N·D + P·(Di + 2·D))`` numbers kept for the gradient, and ``H·(L·M² + C·N·P)`` more
    with the exact kernel. `cost` says them for given sizes.

    Args:
        dim: Width of text tokens and queries, D.
        image_dim: Width of the image tokens, Di. Default D.
        depth: Number of layers. Default 2.
        num_heads: Attention heads. Default 4.
        mlp_ratio: Hidden width of the feed-forward parts over D. Default 4.
        dropout: Rate after attention and feed-forward. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches of the last layer, growing linearly from 0. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.
        num_queries: Learned queries, N. Default 32.
        cross_every: Layers from one look at the image to the next. Default 2.
        norm_first: Whether branches normalise what they read, and the end is normalised; False is BLIP-2's own form, in which
            the start and each sum are. Default True.
        norm_epsilon: Of the normalisations. Default 1e-6; BLIP-2's is 1e-12.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``; may be None when a cache is given.
        text_mask: ``bool[B, T]``, ``True`` = real token; with a cache over its L places, ``bool[B, L]``.
        image_mask: ``bool[B, P]``, ``True`` = real patch; the queries of an image without any are as if masked.
        causal: Whether the text is read left to right; see above.
        cache: A `FusionCache` from `init_cache`, for step by step decoding.
        return_scores: Whether to return the attention from text to image. In each layer it is the attention from text to
            queries, renormalised over them, times what the queries looked at in the layers before it (the mean over these
            layers and their heads), renormalised; 0 in layer 0, before which nothing was looked at.
        training: Whether dropout is active.

    Returns:
        `FusionOutput`; its image are the queries, ``float[B, N, D]``.

    Raises:
        ConfigError: If a constructor argument is impossible, a cache is given and `causal` is not, or an input does not fit.

    Example:
        >>> import numpy as np
        >>> from mmfusion.fusion import QFormerFusion
        >>> fusion = QFormerFusion(dim=8, depth=2, num_heads=2, num_queries=5)
        >>> output = fusion(np.ones((1, 3, 8), "float32"), np.ones((1, 4, 8), "float32"), return_scores=True)
        >>> tuple(output.text.shape), tuple(output.image.shape), tuple(output.scores.shape)
        ((1, 3, 8), (1, 5, 8), (1, 2, 2, 3, 4))

    Source: Li et al., BLIP-2, 2023 (arXiv:2301.12597), section 3.1 and figure 2.
    """

    cache_entry = QFormerCache

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
        num_queries: int = 32,
        cross_every: int = 2,
        norm_first: bool = True,
        norm_epsilon: float = 1e-6,
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
        self.num_queries = num_queries
        self.cross_every = cross_every
        self.norm_first = norm_first
        self.norm_epsilon = norm_epsilon
        for name in ("num_queries", "cross_every"):
            check_size(getattr(self, name), name, self.name)
        self._num_global_tokens = num_queries if kernel == "local" else 0
        self.blocks = [
            QFormerBlock(
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                cross_attention=index % cross_every == 0,
                kernel=kernel,
                num_global_tokens=self._num_global_tokens,
                dropout=dropout,
                attention_dropout=attention_dropout,
                stochastic_depth=self.stochastic_depth_at(index),
                layer_scale=layer_scale,
                norm_first=norm_first,
                norm_epsilon=norm_epsilon,
                dtype=self.dtype_policy,
                name=f"block_{index}",
            )
            for index in range(depth)
        ]
        self.norm = keras.layers.LayerNormalization(epsilon=norm_epsilon, dtype=self.dtype_policy, name="norm")
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    @property
    def informs_text(self) -> bool:
        """Whether the text comes out informed by the image: from a depth of 2 on."""
        return self.depth > 1

    @property
    def image_width(self) -> int:
        """D: the queries stand for the image."""
        return self.dim

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds the queries and all layers; the widths are known from the constructor."""
        # Of the size of what is added to them: smaller ones would all be the mean patch after the first layer. BLIP-2's form
        # normalises them first.
        initializer = keras.initializers.TruncatedNormal(stddev=1.0 if self.norm_first else 0.02)
        self.queries = self.add_weight(shape=(self.num_queries, self.dim), initializer=initializer, name="queries")
        for block in self.blocks:
            block.build((None, None, self.dim), context_shape=(None, None, self.image_dim))
        self.norm.build((None, None, self.dim))
        self.built = True

    def image_tokens(
        self, image: KerasTensor, image_mask: KerasTensor | None = None, training: bool | None = None
    ) -> KerasTensor:
        """The queries after all layers without any text: ``float[B, P, Di]`` to ``float[B, N, D]``."""
        image, image_mask = self.checked_image(image, image_mask)
        tokens = self._start(image, None, training)
        queries_mask = self.image_tokens_mask(image_mask)
        for block in self.blocks:
            tokens = self._look(block, tokens, queries_mask, image, image_mask, training=training)
        return self.norm(tokens) if self.norm_first else tokens

    def image_tokens_mask(self, image_mask: KerasTensor | None) -> KerasTensor | None:
        """Of the queries, ``bool[B, N]``; see `Fusion`."""
        return latents_mask(image_mask, self.num_queries)

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: the queries go through all layers once, and leave their keys and values there."""
        image, image_mask = self.checked_image(image, image_mask)
        tokens, reading = self._start(image, None, False), _Reading(image, self.num_queries)
        queries_mask = self.image_tokens_mask(image_mask)
        caches = []
        for block in self.blocks:
            caches.append(QFormerCache(block.init_cache(tokens, max_length, queries_mask), queries_mask, reading.mean()))
            result = self._look(block, tokens, queries_mask, image, image_mask, return_scores=True, training=False)
            tokens = result.tokens
            reading.add(result.cross_scores)
        return FusionCache(tuple(caches))

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
        if cache is not None:
            return self._step(text, text_mask, cache, return_scores, training)
        tokens, count = self._start(image, text, training), self.num_queries
        mask = self._joint_mask(self.image_tokens_mask(image_mask), text_mask, tokens)
        reading, scores = _Reading(image, count), []
        for block in self.blocks:
            result = self._look(
                block, tokens, mask, image, image_mask, causal=causal, return_scores=return_scores, training=training
            )
            tokens = result.tokens if return_scores else result
            if return_scores:
                scores.append(_text_scores(result.self_scores[:, :, count:], count, reading.mean()))
                reading.add(result.cross_scores)
        tokens = self.norm(tokens) if self.norm_first else tokens
        return FusionOutput(tokens[:, count:], tokens[:, :count], ops.stack(scores, axis=1) if return_scores else None, None)

    def _step(
        self,
        text: KerasTensor,
        text_mask: KerasTensor | None,
        cache: FusionCache,
        return_scores: bool,
        training: bool | None,
    ) -> FusionOutput:
        text = text if self.norm_first else self.norm(text)
        scores, caches = [], []
        for block, layer_cache in zip(self.blocks, cache.layers, strict=True):
            places = layer_cache.block.self_attention.key[:, 0]
            mask = self._joint_mask(layer_cache.queries_mask, text_mask, places)
            result = block(text, mask=mask, cache=layer_cache.block, return_scores=return_scores, training=training)
            text = result.tokens
            # Keras casts what comes in to the dtype of the computation; what goes out is of the dtype that it was.
            reading = ops.cast(layer_cache.reading, "float32")
            caches.append(layer_cache._replace(block=result.cache, reading=reading))
            if return_scores:
                scores.append(_text_scores(result.self_scores, self.num_queries, reading))
        text = self.norm(text) if self.norm_first else text
        return FusionOutput(text, None, ops.stack(scores, axis=1) if return_scores else None, FusionCache(tuple(caches)))

    def _start(self, image: KerasTensor, text: KerasTensor | None, training: bool | None) -> KerasTensor:
        tokens = ops.broadcast_to(self.queries[None], (ops.shape(image)[0], self.num_queries, self.dim))
        tokens = tokens if text is None else ops.concatenate([ops.cast(tokens, text.dtype), text], axis=1)
        return tokens if self.norm_first else self.dropout_layer(self.norm(tokens), training=training)

    def _look(
        self,
        block: QFormerBlock,
        tokens: KerasTensor,
        mask: KerasTensor | None,
        image: KerasTensor,
        image_mask: KerasTensor | None,
        **options: Any,
    ) -> Any:
        if not block.cross_attention:
            image = image_mask = None
        return block(tokens, mask=mask, context=image, context_mask=image_mask, num_queries=self.num_queries, **options)

    def _joint_mask(
        self, queries_mask: KerasTensor | None, text_mask: KerasTensor | None, places: KerasTensor
    ) -> KerasTensor | None:
        """Of queries then text, ``bool[B, M]`` for M places; None where all are real."""
        if queries_mask is None and text_mask is None:
            return None
        sizes = (self.num_queries, length_of(places) - self.num_queries)
        masks = (
            ops.broadcast_to(ops.ones((1, 1), "bool") if mask is None else mask, (ops.shape(places)[0], size))
            for mask, size in zip((queries_mask, text_mask), sizes, strict=True)
        )
        return ops.concatenate(list(masks), axis=1)

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs; see the class for the formula."""
        self.check_lengths(text_length, image_length)
        options: dict[str, Any] = {"num_heads": self.num_heads, "kernel": self.kernel}
        length = self.num_queries + text_length
        layer = attention_cost(length, length, self.dim, num_global_tokens=self._num_global_tokens, **options)
        layer += feed_forward_cost(length, self.dim, self.mlp_ratio)
        looks = sum(block.cross_attention for block in self.blocks)
        look = attention_cost(self.num_queries, image_length, self.dim, context_dim=self.image_dim, **options)
        return self.depth * layer + looks * look

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What decoding remembers of each text: ``2·L·(N + T)·D`` numbers, with T places, and ``L·N·P`` scores."""
        self.check_lengths(text_length, image_length)
        own = keys_and_values(self.num_queries + text_length, self.dim)
        return self.depth * CacheSize(own=own, scores=self.num_queries * image_length)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("num_queries", "cross_every", "norm_first", "norm_epsilon")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class _Reading:
    """What the queries have looked at so far, ``float32[B, N, P]``: the mean over layers and heads."""

    def __init__(self, image: KerasTensor, count: int) -> None:
        self._sum, self._looks = ops.zeros((ops.shape(image)[0], count, length_of(image)), "float32"), 0

    def add(self, scores: KerasTensor | None) -> None:
        if scores is not None:
            self._sum, self._looks = self._sum + ops.mean(scores, axis=1), self._looks + 1

    def mean(self) -> KerasTensor:
        return self._sum / max(self._looks, 1)


def _text_scores(scores: KerasTensor, count: int, reading: KerasTensor) -> KerasTensor:
    """Text rows of self-attention, ``float32[B, H, T, M]``, to attention to the patches, ``float32[B, H, T, P]``."""
    return through_latents(renormalized(scores[..., :count]), reading)
