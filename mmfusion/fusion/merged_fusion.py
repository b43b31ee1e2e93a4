"""Merged fusion: image and text as one stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.fusion.cache_size import CacheSize, keys_and_values
from mmfusion.fusion.cost import Cost, dense_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.fusion.scores import renormalized
from mmfusion.layers.masks import joined_mask, length_of


@keras.saving.register_keras_serializable(package="mmfusion")
class MergedFusion(Fusion):
    """One transformer over the image tokens followed by the text tokens, ``[image + e₁; text + e₀]``, e learned.

    Read both ways, every token sees every token. In the causal reading (prefix language model) the image sees the image, and a
    text token sees the image and the text up to itself: the image is then read once, and decoding keeps its keys and values.
    Image tokens of another width are projected to D first.

    Cost of a pass with N = T + P tokens of text and image: ``2·L·(N·D²·(4 + 2r) + 2·N²·D)`` floating point operations;
    ``L·N·D·(6 + r)`` numbers kept for the gradient, and ``L·H·N²`` more with the exact kernel. Where the image is projected,
    there are ``2·P·Di·D`` operations and ``P·Di`` numbers more. `cost` says them for given sizes. The last layer's image side
    informs `FusionOutput.image` alone; in a graph and in the causal reading, it is left out where that is not read.

    Args:
        dim: Width of the text tokens, D.
        image_dim: Width of the image tokens, Di. Default D.
        depth: Number of layers, L. Default 2.
        num_heads: Attention heads, H. Default 4.
        mlp_ratio: Hidden width of the feed-forward parts over that of their tokens, r. Default 4.
        dropout: Rate after attention and feed-forward. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches of the last layer, growing linearly from 0. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`, but not ``"local"``. Default ``"exact"``.
        norm_first: Whether normalisation comes before each branch, and once at the end; False is after each sum, as in BERT.
            Default True.
        norm_epsilon: Of the normalisations. Default 1e-6.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``; may be None when a cache is given.
        text_mask: ``bool[B, T]``, ``True`` = real token; with a cache over its L places, ``bool[B, L]``.
        image_mask: ``bool[B, P]``, ``True`` = real patch.
        causal: Whether a text token sees only the text up to itself, and the image no text. The image is seen whole.
        cache: A `FusionCache` from `init_cache`, for step by step decoding.
        return_scores: Whether to return the attention from text to image.
        training: Whether dropout is active.

    Returns:
        `FusionOutput`; the image has width D. Scores are the image's part of a text token's attention, scaled to sum to 1.

    Raises:
        ConfigError: If an argument is impossible, a cache is given and `causal` is not, or rank, width or dtype of a stream or
            mask is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.fusion import MergedFusion
        >>> fusion = MergedFusion(dim=8, depth=2, num_heads=2)
        >>> output = fusion(np.ones((1, 3, 8), "float32"), np.ones((1, 4, 8), "float32"), return_scores=True)
        >>> tuple(output.text.shape), tuple(output.image.shape), tuple(output.scores.shape)
        ((1, 3, 8), (1, 4, 8), (1, 2, 2, 3, 4))

    Source: Kim et al., ViLT, 2021 (arXiv:2102.03334), equations 1 to 3; causal: the prefix language model of Dong et al., UniLM,
    2019 (arXiv:1905.03197), as used for images by Wang et al., SimVLM, 2022 (arXiv:2108.10904).
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
        self.norm_first = norm_first
        self.norm_epsilon = norm_epsilon
        if kernel == "local":
            raise ConfigError(
                "a window on the merged stream would hide the image from the text",
                where=self.name,
                expected="another kernel",
                found="kernel='local'",
                fix="use kernel='chunked'",
            )
        options: dict[str, Any] = {"norm_first": norm_first, "norm_epsilon": norm_epsilon}
        self.image_projection: Any = None
        if self.image_dim != dim:
            self.image_projection = keras.layers.Dense(dim, dtype=self.dtype_policy, name="image_projection")
        self.blocks = [self.make_block(f"block_{index}", index, **options) for index in range(depth)]
        self.norm: Any = self.make_norm("norm", norm_epsilon) if norm_first else None

    @property
    def text_to_patches(self) -> str | None:
        """How text tokens attend to patches in one step: in one stream."""
        return "joint"

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds all layers; the widths are known from the constructor."""
        if self.image_projection is not None:
            self.image_projection.build((None, None, self.image_dim))
        self.modality = self.add_weight(
            shape=(2, self.dim), initializer=keras.initializers.TruncatedNormal(stddev=0.02), name="modality"
        )
        for block in self.blocks:
            block.build((None, None, self.dim))
        if self.norm is not None:
            self.norm.build((None, None, self.dim))
        self.built = True

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: the image read once, and room for the text behind its keys and values."""
        image, image_mask = self.checked_image(image, image_mask)
        image = self._marked_image(image)
        caches = []
        for block in self.blocks:
            result = block(image, mask=image_mask, return_prefix=True, training=False)
            caches.append(block.init_cache(batch_size, max_length, prefix=result.prefix))
            image = result.tokens
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
        text = self._marked(text, 0)
        if cache is not None:
            return self._step(text, text_mask, cache, return_scores, training)
        image = self._marked_image(image)
        patches, scores = length_of(image), []
        if causal:
            for block in self.blocks:
                # The image alone first: no attention from it to the text is computed only to be masked.
                result = block(image, mask=image_mask, return_prefix=True, training=training)
                image, prefix = result.tokens, result.prefix
                result = block(text, mask=text_mask, causal=True, prefix=prefix, return_scores=return_scores, training=training)
                text = result.tokens if return_scores else result
                if return_scores:
                    scores.append(renormalized(result.self_scores[..., :patches]))
        else:
            mask = joined_mask((image_mask, image), (text_mask, text))
            tokens = ops.concatenate([image, text], axis=1)
            for block in self.blocks:
                result = block(tokens, mask=mask, return_scores=return_scores, training=training)
                tokens = result.tokens if return_scores else result
                if return_scores:
                    scores.append(renormalized(result.self_scores[:, :, patches:, :patches]))
            image, text = tokens[:, :patches], tokens[:, patches:]
        return FusionOutput(
            text=self._normalized(text),
            image=self._normalized(image),
            scores=ops.stack(scores, axis=1) if return_scores else None,
        )

    def _step(
        self,
        text: KerasTensor,
        text_mask: KerasTensor | None,
        cache: FusionCache,
        return_scores: bool,
        training: bool | None,
    ) -> FusionOutput:
        scores, caches = [], []
        for block, before in zip(self.blocks, cache.layers, strict=True):
            result = block(text, mask=text_mask, cache=before, return_scores=return_scores, training=training)
            text = result.tokens
            caches.append(result.cache)
            if return_scores:
                scores.append(renormalized(result.self_scores[..., : length_of(before.prefix_mask)]))
        return FusionOutput(
            text=self._normalized(text),
            image=None,
            scores=ops.stack(scores, axis=1) if return_scores else None,
            cache=FusionCache(tuple(caches)),
        )

    def _marked(self, tokens: KerasTensor, modality: int) -> KerasTensor:
        return ops.cast(tokens, self.compute_dtype) + ops.cast(self.modality[modality], self.compute_dtype)

    def _marked_image(self, image: KerasTensor) -> KerasTensor:
        return self._marked(image if self.image_projection is None else self.image_projection(image), 1)

    def _normalized(self, tokens: KerasTensor) -> KerasTensor:
        return tokens if self.norm is None else self.norm(tokens)

    def owns_cache(self, cache: FusionCache) -> bool:
        """Whether it is a `mmfusion.layers.BlockCache` with the image before the text a layer."""
        return super().owns_cache(cache) and all(layer.prefix_mask is not None for layer in cache.layers)

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs; see the class for the formula."""
        self.check_lengths(text_length, image_length)
        cost = self.depth * self.cost_of_block(text_length + image_length)
        return cost if self.image_projection is None else cost + dense_cost(image_length, self.image_dim, self.dim)

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What decoding remembers of each text: ``2·L·(P + T)·D`` numbers, with T places behind the patches."""
        self.check_lengths(text_length, image_length)
        return self.depth * CacheSize(own=keys_and_values(image_length + text_length, self.dim))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "norm_first": self.norm_first, "norm_epsilon": self.norm_epsilon}
