"""Co-attention: two streams side by side that query each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.fusion.cache_size import CacheSize, keys_and_values
from mmfusion.fusion.cost import Cost, dense_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.layers import BlockCache, BlockOutput


class CoCache(NamedTuple):
    """What a layer remembers between the steps of decoding.

    Attributes:
        cross: Keys and values of the image.
        itself: Keys and values of the text so far.
    """

    cross: BlockCache
    itself: BlockCache


@keras.saving.register_keras_serializable(package="mmfusion")
class CoFusion(Fusion):
    """Two streams that query each other in every layer, then look at themselves.

    Each of the ``depth`` layers computes, for both streams x and y at once,
    ``x += CrossAttention(Norm(x), Norm(y)); x += FeedForward(Norm(x)); x += SelfAttention(Norm(x)); x += FeedForward(Norm(x))``
    (ViLBERT). With ``shared_cross=True`` one cross-attention serves both directions and the feed-forward part after it is left
    out (LXMERT); image tokens of another width are projected to D first. In the causal reading the image does not look at the
    text, since it would carry later words to earlier ones.

    Cost of a pass with T text tokens, P image tokens, widths D and Di:
    ``2·L·(T·D²·(6 + 4r) + P·Di²·(6 + 4r) + 2·(T + P)·D·Di + 2·(T·D + P·Di)·(T + P))`` floating point operations;
    ``L·((T·D + P·Di)·(11 + 2r) + 2·(P·D + T·Di))`` numbers kept for the gradient, and ``L·H·(T + P)²`` more with the exact
    kernel. With `shared_cross` ``2·L·(T + P)·(D²·(8 + 2r) + 2·D·(T + P))``, ``L·(T + P)·D·(12 + r)`` and ``L·H·(T + P)²``, and
    ``2·P·Di·D`` operations and ``P·Di`` numbers more where the image is projected. `cost` says them for given sizes. The last
    layer's image side informs `FusionOutput.image` alone; in a graph, it is left out where that is not read.

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
        shared_cross: Whether both directions share one cross-attention. Default False.
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
        `FusionOutput`; the image has width Di, or D with `shared_cross`.

    Raises:
        ConfigError: If an argument is impossible, a cache is given and `causal` is not, or rank, width or dtype of a stream or
            mask is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.fusion import CoFusion
        >>> fusion = CoFusion(dim=8, image_dim=12, depth=2, num_heads=2)
        >>> output = fusion(np.ones((1, 3, 8), "float32"), np.ones((1, 4, 12), "float32"), return_scores=True)
        >>> tuple(output.text.shape), tuple(output.image.shape), tuple(output.scores.shape)
        ((1, 3, 8), (1, 4, 12), (1, 2, 2, 3, 4))

    Source: Lu et al., ViLBERT, 2019 (arXiv:1908.02265), figure 2b; shared: Tan and Bansal, LXMERT, 2019 (arXiv:1908.07490),
    section 2.2.
    """

    cache_entry = CoCache

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
        shared_cross: bool = False,
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
        self.shared_cross = shared_cross
        self.norm_first = norm_first
        self.norm_epsilon = norm_epsilon
        self._width = dim if shared_cross else self.image_dim
        self.check_heads(self._width)
        norms: dict[str, Any] = {"norm_first": norm_first, "norm_epsilon": norm_epsilon}
        cross: dict[str, Any] = {"self_attention": False, "cross_attention": True, "context_norm": norm_first, **norms}
        if shared_cross:
            cross["mlp_ratio"] = 0.0
        self.image_projection: Any = None
        if self._width != self.image_dim:
            self.image_projection = keras.layers.Dense(dim, dtype=self.dtype_policy, name="image_projection")
        layers = range(depth)
        self.cross_blocks = [self.make_block(f"cross_{index}", index, **cross) for index in layers]
        self.image_cross_blocks = (
            self.cross_blocks if shared_cross else [self.make_block(f"image_cross_{index}", index, **cross) for index in layers]
        )
        self.blocks = [self.make_block(f"block_{index}", index, **norms) for index in layers]
        self.image_blocks = [self.make_block(f"image_block_{index}", index, **norms) for index in layers]
        self.norm: Any = self.make_norm("norm", norm_epsilon) if norm_first else None
        self.image_norm: Any = self.make_norm("image_norm", norm_epsilon) if norm_first else None

    @property
    def text_to_patches(self) -> str | None:
        """How text tokens attend to patches in one step: across."""
        return "cross"

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds all layers; the widths are known from the constructor."""
        text_shape, image_shape = (None, None, self.dim), (None, None, self._width)
        if self.image_projection is not None:
            self.image_projection.build((None, None, self.image_dim))
        for crosses, blocks, norm, shape, context_shape in (
            (self.cross_blocks, self.blocks, self.norm, text_shape, image_shape),
            (self.image_cross_blocks, self.image_blocks, self.image_norm, image_shape, text_shape),
        ):
            for cross, block in zip(crosses, blocks, strict=True):
                if not cross.built:
                    cross.build(shape, context_shape)
                block.build(shape)
            if norm is not None:
                norm.build(shape)
        self.built = True

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: empty room for the text, and the image's keys and values of each layer computed once."""
        image, image_mask = self.checked_image(image, image_mask)
        image = self._projected(image)
        caches = []
        for index in range(self.depth):
            crossed = self.cross_blocks[index].init_cache(batch_size, max_length, context=image, context_mask=image_mask)
            caches.append(CoCache(crossed, self.blocks[index].init_cache(batch_size, max_length)))
            if index + 1 < self.depth:
                image = self._image_layer(index, image, image_mask, None, None, False)
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
        image = self._projected(image)
        scores, caches = [], []
        for index in range(self.depth):
            before = None if cache is None else cache.layers[index]
            crossed = self.cross_blocks[index](
                text,
                mask=None if cache is not None else text_mask,
                context=image,
                context_mask=image_mask,
                cache=None if before is None else before.cross,
                return_scores=return_scores,
                training=training,
            )
            if return_scores:
                scores.append(crossed.cross_scores)
            result = self.blocks[index](
                crossed.tokens if isinstance(crossed, BlockOutput) else crossed,
                mask=text_mask,
                causal=causal,
                cache=None if before is None else before.itself,
                training=training,
            )
            if before is None:
                seen = None if causal else text
                image = self._image_layer(index, image, image_mask, seen, text_mask, training)
                text = result
            else:
                text = result.tokens
                caches.append(CoCache(crossed.cache, result.cache))
        return FusionOutput(
            text=text if self.norm is None else self.norm(text),
            image=image if self.image_norm is None or image is None else self.image_norm(image),
            scores=ops.stack(scores, axis=1) if return_scores else None,
            cache=None if cache is None else FusionCache(tuple(caches)),
        )

    def _projected(self, image: KerasTensor | None) -> KerasTensor | None:
        return image if self.image_projection is None or image is None else self.image_projection(image)

    def _image_layer(
        self,
        index: int,
        image: KerasTensor,
        image_mask: KerasTensor | None,
        text: KerasTensor | None,
        text_mask: KerasTensor | None,
        training: bool | None,
    ) -> KerasTensor:
        cross = self.image_cross_blocks[index]
        seen: dict[str, Any] = {
            "context": text,
            "context_mask": None if text is None else text_mask,
            "use_context": text is not None,
        }
        image = cross(image, mask=image_mask, **seen, training=training)
        return self.image_blocks[index](image, mask=image_mask, training=training)

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs; see the class for the formula."""
        self.check_lengths(text_length, image_length)
        crossed = {"self_attention": False, "mlp_ratio": 0.0 if self.shared_cross else self.mlp_ratio}
        cost = Cost()
        for tokens, dim, others, other_dim in (
            (text_length, self.dim, image_length, self._width),
            (image_length, self._width, text_length, self.dim),
        ):
            cost += self.cost_of_block(tokens, dim, context=others, context_dim=other_dim, **crossed)
            cost += self.cost_of_block(tokens, dim)
        cost *= self.depth
        return cost if self.image_projection is None else cost + dense_cost(image_length, self.image_dim, self.dim)

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What decoding remembers of one image: ``2·L·P·D`` numbers, and of each text ``2·L·T·D``, with T places."""
        self.check_lengths(text_length, image_length)
        return self.depth * CacheSize(shared=keys_and_values(image_length, self.dim), own=keys_and_values(text_length, self.dim))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = ("shared_cross", "norm_first", "norm_epsilon")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}
