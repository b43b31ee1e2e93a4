"""Cross fusion: tokens of one stream query those of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.fusion.cache_size import CacheSize, keys_and_values
from mmfusion.fusion.cost import Cost, feed_forward_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.fusion.scores import renormalized
from mmfusion.layers import BlockOutput

DIRECTIONS = ("text", "image", "both")


@keras.saving.register_keras_serializable(package="mmfusion")
class CrossFusion(Fusion):
    """A stack of blocks with self-attention over one stream and cross-attention into the other.

    Each of the ``depth`` layers computes
    ``x += SelfAttention(Norm(x)); x += CrossAttention(Norm(x), other); x += FeedForward(Norm(x))``, for the stream that
    `direction` says. With ``"both"`` the two look at each other as the layer before left them (normalised, where normalisation
    comes first); with causal reading the image then does not look at the text, since it would carry later words to earlier ones.
    With `feed_forward_between`, ``x += FeedForward(Norm(x))`` stands before the cross-attention too.
    With ``"image"`` the text comes out as it went in, so nothing that reads fused text can use it: it is for what reads
    the image, such as finding what a phrase names.

    Cost of a pass with T text tokens, P image tokens, widths D and Di, for ``"text"``: ``2·L·(T·D²·(6 + 2r) + 2·P·D·Di + 2·T·D·(T
    + P))`` floating point operations; ``L·(T·D·(9 + r) + P·(Di + 2·D))`` numbers kept for the gradient, and ``L·H·T·(T + P)``
    more with the exact kernel. For ``"image"`` the same with the streams exchanged, for ``"both"`` the sum.
    `feed_forward_between` adds ``4·L·r·T·D²`` and ``L·T·D·(1 + r)``. `cost` says them for given sizes. The last layer's image
    side of ``"both"`` informs `FusionOutput.image` alone; in a graph, it is left out where that is not read.

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
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.
        direction: Who queries whom: ``"text"`` queries the image, ``"image"`` queries the text, or ``"both"``.
            Default ``"text"``.
        norm_first: Whether normalisation comes before each branch, and once at the end; False is after each sum, as in BERT.
            Default True.
        norm_epsilon: Of the normalisations. Default 1e-6.
        context_norm: Whether a block normalises what it looks at. Default: where both streams look, and normalisation comes
            first; elsewhere that is an encoder's output, normalised already.
        feed_forward_between: Whether a feed-forward part of its own follows the self-attention too (open_clip's CoCa).
            Default False.
        activation: Of the feed-forward parts, see `mmfusion.layers.FeedForward`. Default ``"gelu"``.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``; may be None when a cache is given.
        text_mask: ``bool[B, T]``, ``True`` = real token; with a cache over its L places, ``bool[B, L]``.
        image_mask: ``bool[B, P]``, ``True`` = real patch.
        causal: Whether a text token sees only the text up to itself. The image is seen whole. Not for ``"image"``.
        cache: A `FusionCache` from `init_cache`, for step by step decoding, or from `read_image`, for many texts about one image.
        return_scores: Whether to return the attention from text to image.
        training: Whether dropout is active.

    Returns:
        `FusionOutput`; the image tokens pass unchanged with ``"text"``. Scores with ``"image"`` are the share of a text token's
        attention received that comes from each patch.

    Raises:
        ConfigError: If an argument is impossible, a cache is given and `causal` is not, ``"image"`` is to be causal, or rank,
            width or dtype of a stream or mask is wrong.

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
        direction: str = "text",
        norm_first: bool = True,
        norm_epsilon: float = 1e-6,
        context_norm: bool | None = None,
        feed_forward_between: bool = False,
        activation: str = "gelu",
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
        self.direction = direction
        self.norm_first = norm_first
        self.norm_epsilon = norm_epsilon
        self.context_norm = context_norm
        self.feed_forward_between = feed_forward_between
        self.activation = activation
        if direction not in DIRECTIONS:
            raise ConfigError("unknown direction", where=self.name, expected=" or ".join(DIRECTIONS), found=repr(direction))
        options: dict[str, Any] = {
            "cross_attention": True,
            "context_norm": (norm_first and direction == "both") if context_norm is None else context_norm,
            "feed_forward_between": feed_forward_between,
            "activation": activation,
            "norm_first": norm_first,
            "norm_epsilon": norm_epsilon,
        }
        self.blocks, self.image_blocks = [], []
        self.norm: Any = None
        self.image_norm: Any = None
        if direction != "image":
            self.blocks = [self.make_block(f"block_{index}", index, **options) for index in range(depth)]
            self.norm = self.make_norm("norm", norm_epsilon) if norm_first else None
        if direction != "text":
            self.check_heads(self.image_dim)
            self.image_blocks = [self.make_block(f"image_block_{index}", index, **options) for index in range(depth)]
            self.image_norm = self.make_norm("image_norm", norm_epsilon) if norm_first else None

    @property
    def supports_causal(self) -> bool:
        """Whether the text can be read left to right: not where the image alone asks."""
        return self.direction != "image"

    @property
    def informs_text(self) -> bool:
        """Whether the text comes out informed by the image: not where the image alone asks."""
        return self.direction != "image"

    @property
    def text_to_patches(self) -> str | None:
        """How text tokens attend to patches in one step: across, but not where the image alone asks."""
        return None if self.direction == "image" else "cross"

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds all layers; the widths are known from the constructor."""
        text_shape, image_shape = (None, None, self.dim), (None, None, self.image_dim)
        for blocks, norm, shape, context_shape in (
            (self.blocks, self.norm, text_shape, image_shape),
            (self.image_blocks, self.image_norm, image_shape, text_shape),
        ):
            for block in blocks:
                block.build(shape, context_shape)
            if norm is not None:
                norm.build(shape)
        self.built = True

    @property
    def reads_text_alone(self) -> bool:
        """Whether `text_tokens` can read a text without an image: not where the image alone asks, nor where both do."""
        return self.direction == "text"

    def text_tokens(
        self, text: KerasTensor, text_mask: KerasTensor | None = None, causal: bool = False, training: bool | None = None
    ) -> KerasTensor:
        """The text as the layers read it where no image is given: without their cross-attention; see `Fusion`."""
        self.check_text_alone()
        text, text_mask = self.checked_text(text, text_mask)
        for block in self.blocks:
            text = block(text, mask=text_mask, causal=causal, use_context=False, training=training)
        return text if self.norm is None else self.norm(text)

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: empty room for the text, and the image's keys and values of each layer computed once."""
        self.check_causal()
        image, image_mask = self.checked_image(image, image_mask)
        caches = []
        for index, block in enumerate(self.blocks):
            caches.append(block.init_cache(batch_size, max_length, context=image, context_mask=image_mask))
            if self.image_blocks and index + 1 < self.depth:
                image = self.image_blocks[index](image, mask=image_mask, use_context=False, training=False)
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
        scores, caches = [], []
        for index in range(self.depth):
            text_before = text
            if self.blocks:
                result = self.blocks[index](
                    text,
                    mask=text_mask,
                    context=image,
                    context_mask=image_mask,
                    causal=causal,
                    cache=None if cache is None else cache.layers[index],
                    return_scores=return_scores,
                    training=training,
                )
                text = result.tokens if isinstance(result, BlockOutput) else result
                if return_scores:
                    scores.append(result.cross_scores)
                if cache is not None:
                    caches.append(result.cache)
            if self.image_blocks and cache is None:
                asked = return_scores and not self.blocks
                result = self.image_blocks[index](
                    image,
                    mask=image_mask,
                    context=None if causal else text_before,
                    context_mask=None if causal else text_mask,
                    use_context=not causal,
                    return_scores=asked,
                    training=training,
                )
                image = result.tokens if asked else result
                if asked:
                    scores.append(renormalized(ops.swapaxes(_of_real(result.cross_scores, image_mask), 2, 3)))
        return FusionOutput(
            text=text if self.norm is None else self.norm(text),
            image=image if self.image_norm is None or image is None else self.image_norm(image),
            scores=ops.stack(scores, axis=1) if return_scores else None,
            cache=None if cache is None else FusionCache(tuple(caches)),
        )

    def read_image(self, image: KerasTensor, image_mask: KerasTensor | None = None) -> FusionCache | None:
        """The image's keys and values of each layer; None where the image asks too."""
        if self.direction != "text":
            return None
        image, image_mask = self.checked_image(image, image_mask)
        return FusionCache(tuple(block.read_context(image, image_mask) for block in self.blocks))

    def holds_text(self, cache: FusionCache) -> bool:
        """Whether there is room for a text in its layers."""
        return all(layer.self_attention is not None for layer in cache.layers)

    def owns_cache(self, cache: FusionCache) -> bool:
        """Whether it is a `mmfusion.layers.BlockCache` with an image a layer."""
        return super().owns_cache(cache) and all(layer.cross_attention is not None for layer in cache.layers)

    def check_causal(self) -> None:
        """Refuses what only a fusion that can be causal does, where the image alone asks."""
        if not self.supports_causal:
            raise ConfigError(
                "this fusion cannot be causal, since its image asks and its text does not",
                where=self.name,
                expected="direction='text' or direction='both'",
                found=f"direction={self.direction!r}",
            )

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs; see the class for the formula."""
        self.check_lengths(text_length, image_length)
        text = self.cost_of_block(text_length, context=image_length, context_dim=self.image_dim)
        image = self.cost_of_block(image_length, self.image_dim, context=text_length, context_dim=self.dim)
        if self.feed_forward_between:
            text += feed_forward_cost(text_length, self.dim, self.mlp_ratio)
            image += feed_forward_cost(image_length, self.image_dim, self.mlp_ratio)
        return self.depth * {"text": text, "image": image, "both": text + image}[self.direction]

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What decoding remembers of one image: ``2·L·P·D`` numbers, and of each text ``2·L·T·D``, with T places."""
        self.check_lengths(text_length, image_length)
        return self.depth * CacheSize(shared=keys_and_values(image_length, self.dim), own=keys_and_values(text_length, self.dim))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = ("direction", "norm_first", "norm_epsilon", "context_norm", "feed_forward_between", "activation")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


def _of_real(scores: KerasTensor, mask: KerasTensor | None) -> KerasTensor:
    # What padded patches ask for is nobody's attention.
    return scores if mask is None else ops.where(mask[:, None, :, None], scores, ops.zeros_like(scores))
