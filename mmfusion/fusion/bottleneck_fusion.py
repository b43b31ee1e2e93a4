"""Bottleneck fusion: two streams that meet in a few tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.fusion.cache_size import CacheSize, keys_and_values
from mmfusion.fusion.cost import Cost, dense_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.fusion.scores import renormalized
from mmfusion.layers import BlockCache, BlockOutput
from mmfusion.layers.checks import check_size
from mmfusion.layers.masks import joined_mask


class BottleneckCache(NamedTuple):
    """What a layer remembers between the steps of decoding.

    Attributes:
        text: Keys and values of the bottleneck and, behind them, of the text so far.
        reads: ``float32[B, H, K, P]``, attention of each bottleneck token to each patch.
    """

    text: BlockCache
    reads: KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class BottleneckFusion(Fusion):
    """Each stream looks at itself and at K learned tokens, through which alone the two exchange what they know.

    Each of the ``depth`` layers computes ``[b; image] = ImageBlock([b; image])``, then ``[b; text] = TextBlock([b; text])``,
    with K bottleneck tokens b. The last layer's text reads b without writing it, and so does all text in the causal reading:
    what a later word wrote there would come to earlier ones. Image tokens of another width are projected to D first.

    Cost of a pass with T text tokens, P image tokens, K bottleneck tokens:
    ``2·L·((T + P + 2K)·D²·(4 + 2r) + 2·D·((T + K)² + (P + K)²)) - 4·K·D·(D·(1 + r) + T + K)`` floating point operations,
    the last term since the last layer's text does not write b; ``L·(T + P + 2K)·D·(6 + r) - K·D·(3 + r)`` numbers kept for the
    gradient, and ``L·H·((T + K)² + (P + K)²) - H·K·(T + K)`` more with the exact kernel. Where the image is projected, there are
    ``2·P·Di·D`` operations and ``P·Di`` numbers more. `cost` says them for given sizes. The last layer's patches inform
    `FusionOutput.image` alone.

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
        kernel: How attention is computed, see `mmfusion.layers.Attention`; ``"local"`` is a window on the patches, with the
            bottleneck seeing all and seen by all. Default ``"exact"``.
        num_bottlenecks: Bottleneck tokens, K. Default 4.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``; may be None when a cache is given.
        text_mask: ``bool[B, T]``, ``True`` = real token; with a cache over its L places, ``bool[B, L]``.
        image_mask: ``bool[B, P]``, ``True`` = real patch.
        causal: Whether a text token sees only the text up to itself, and the bottleneck no text. The image is seen whole.
        cache: A `FusionCache` from `init_cache`, for step by step decoding.
        return_scores: Whether to return the attention from text to image.
        training: Whether dropout is active.

    Returns:
        `FusionOutput`; the image has width D. Scores are the product of a layer's two attentions, from text to bottleneck and
        from bottleneck to patches, scaled to sum to 1: what comes through the layers before is not in them.

    Raises:
        ConfigError: If an argument is impossible, a cache is given and `causal` is not, or rank, width or dtype of a stream or
            mask is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.fusion import BottleneckFusion
        >>> fusion = BottleneckFusion(dim=8, depth=2, num_heads=2, num_bottlenecks=3)
        >>> output = fusion(np.ones((1, 3, 8), "float32"), np.ones((1, 4, 8), "float32"), return_scores=True)
        >>> tuple(output.text.shape), tuple(output.image.shape), tuple(output.scores.shape)
        ((1, 3, 8), (1, 4, 8), (1, 2, 2, 3, 4))

    Source: Nagrani et al., Attention Bottlenecks for Multimodal Fusion (MBT), 2021 (arXiv:2107.00135), section 3.2, with the
    update of the bottleneck by one stream after the other.
    """

    cache_entry = BottleneckCache

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
        num_bottlenecks: int = 4,
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
        self.num_bottlenecks = num_bottlenecks
        check_size(num_bottlenecks, "num_bottlenecks", self.name)
        self.image_projection: Any = None
        if self.image_dim != dim:
            self.image_projection = keras.layers.Dense(dim, dtype=self.dtype_policy, name="image_projection")
        self._text_kernel = "chunked" if kernel == "local" else kernel
        self._wide = {"num_global_tokens": num_bottlenecks} if kernel == "local" else {}
        self.blocks = [self.make_block(f"block_{index}", index, kernel=self._text_kernel) for index in range(depth)]
        self.image_blocks = [
            self.make_block(f"image_block_{index}", index, attention_options=self._wide) for index in range(depth)
        ]
        self.norm = self.make_norm("norm")
        self.image_norm = self.make_norm("image_norm")

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds all layers; the widths are known from the constructor."""
        shape = (None, None, self.dim)
        if self.image_projection is not None:
            self.image_projection.build((None, None, self.image_dim))
        self.bottleneck = self.add_weight(
            shape=(self.num_bottlenecks, self.dim), initializer=keras.initializers.TruncatedNormal(stddev=0.02), name="bottleneck"
        )
        for layer in (*self.blocks, *self.image_blocks, self.norm, self.image_norm):
            layer.build(shape)
        self.built = True

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: the image read once into the bottleneck, and room for the text behind its keys and values."""
        image, image_mask = self.checked_image(image, image_mask)
        bottleneck, image = self._start(image)
        caches = []
        for index, block in enumerate(self.blocks):
            bottleneck, image, reads = self._read_image(index, bottleneck, image, image_mask, True, False)
            prefix = block.project_prefix(bottleneck)
            caches.append(BottleneckCache(block.init_cache(batch_size, max_length, prefix=prefix), reads))
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
        count, scores, caches = self.num_bottlenecks, [], []
        bottleneck = mask = None
        if cache is None:
            bottleneck, image = self._start(image)
            mask = joined_mask((None, bottleneck), (text_mask, text))
        for index, block in enumerate(self.blocks):
            options = {"return_scores": return_scores, "training": training}
            if cache is not None:
                before = cache.layers[index]
                # Keras casts what comes in to the dtype of the computation; what goes out is of the dtype that it was.
                result, reads = block(text, mask=text_mask, cache=before.text, **options), ops.cast(before.reads, "float32")
                caches.append(BottleneckCache(result.cache, reads))
            else:
                bottleneck, image, reads = self._read_image(index, bottleneck, image, image_mask, return_scores, training)
                if causal or index + 1 == self.depth:
                    prefix = block.project_prefix(bottleneck)
                    result = block(text, mask=text_mask, causal=causal, prefix=prefix, **options)
                else:
                    result = block(ops.concatenate([bottleneck, text], axis=1), mask=mask, **options)
            both = result.tokens if isinstance(result, BlockOutput) else result
            wrote = cache is None and not causal and index + 1 < self.depth
            if wrote:
                bottleneck, text = both[:, :count], both[:, count:]
            else:
                text = both
            if return_scores:
                asked = result.self_scores[:, :, count:] if wrote else result.self_scores
                scores.append(renormalized(ops.matmul(asked[..., :count], reads)))
        return FusionOutput(
            text=self.norm(text),
            image=None if image is None else self.image_norm(image),
            scores=ops.stack(scores, axis=1) if return_scores else None,
            cache=None if cache is None else FusionCache(tuple(caches)),
        )

    def _start(self, image: KerasTensor) -> tuple[KerasTensor, KerasTensor]:
        image = image if self.image_projection is None else self.image_projection(image)
        image = ops.cast(image, self.compute_dtype)
        bottleneck = ops.cast(self.bottleneck, self.compute_dtype)[None]
        return ops.broadcast_to(bottleneck, (ops.shape(image)[0], self.num_bottlenecks, self.dim)), image

    def _read_image(
        self,
        index: int,
        bottleneck: KerasTensor,
        image: KerasTensor,
        image_mask: KerasTensor | None,
        return_scores: bool,
        training: bool | None,
    ) -> tuple[KerasTensor, KerasTensor, KerasTensor | None]:
        block, count = self.image_blocks[index], self.num_bottlenecks
        mask = joined_mask((None, bottleneck), (image_mask, image))
        result = block(ops.concatenate([bottleneck, image], axis=1), mask=mask, return_prefix=True, training=training)
        # Of K rows alone: all scores of the block would be (K + P)², whatever the kernel.
        reads = block.prefix_scores(bottleneck, result.prefix)[..., count:] if return_scores else None
        return result.tokens[:, :count], result.tokens[:, count:], reads

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs; see the class for the formula."""
        self.check_lengths(text_length, image_length)
        image = self.cost_of_block(self.num_bottlenecks + image_length, **self._wide)
        text = self.cost_of_block(self.num_bottlenecks + text_length, kernel=self._text_kernel)
        last = self.cost_of_block(text_length, prefix=self.num_bottlenecks, kernel=self._text_kernel)
        cost = self.depth * image + (self.depth - 1) * text + last
        return cost if self.image_projection is None else cost + dense_cost(image_length, self.image_dim, self.dim)

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What decoding remembers of each text: ``2·L·(K + T)·D`` numbers, with T places, and ``L·H·K·P`` scores."""
        self.check_lengths(text_length, image_length)
        scores = self.num_heads * self.num_bottlenecks * image_length
        return self.depth * CacheSize(own=keys_and_values(self.num_bottlenecks + text_length, self.dim), scores=scores)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "num_bottlenecks": self.num_bottlenecks}
