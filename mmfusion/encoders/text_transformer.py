"""A text transformer that reads both ways, or left to right with a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.encoders._blocks import transformer_blocks
from mmfusion.layers import BlockCache, TokenEmbedding


class TextCache(NamedTuple):
    """What cached decoding carries through a `TextTransformer`.

    Attributes:
        blocks: One `BlockCache` a transformer block.
        position: ``int32[]``, how many tokens were read so far.
    """

    blocks: tuple[BlockCache, ...]
    position: KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class TextTransformer(keras.layers.Layer):
    """Encodes token ids as text tokens with a pre-norm transformer.

    The same weights read bidirectionally (for retrieval and matching) and causally (for captioning), as in UniLM and BLIP;
    ``causal`` says which. The embedding is tied to the output layer: `logits` scores the next token.

    Args:
        vocabulary_size: Number of token ids, V.
        max_length: Longest text in tokens.
        dim: Width of the tokens, D. Default 256.
        depth: Number of transformer blocks; 0 leaves the embedding alone, normalised, for a fusion that does the rest
            (ViLT, a prefix language model). Default 4.
        num_heads: Attention heads. Default 4.
        mlp_ratio: Hidden width of the feed-forward part over D. Default 4.
        dropout: Rate after embedding, attention and feed-forward. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping the last block's branches; it grows linearly from 0 with depth. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.
        positions: Of the embedding, see `mmfusion.layers.TokenEmbedding`. Default ``"learned"``.
        positions: What is added to the embedding: ``"learned"``, ``"sinusoidal"`` or ``"none"`` (rotary ones are a block option).
            Default ``"learned"``.
        block_options: Further arguments of each `mmfusion.layers.TransformerBlock`, such as ``{"query_key_norm": True}``.
            Default none.

    Call arguments:
        token_ids: ``int[B, T]``.
        token_mask: ``bool[B, T]``, ``True`` = real token; with a cache over its L places, ``bool[B, L]``. Default: all are
            real.
        causal: Whether a token sees only itself and what precedes it. Default False.
        cache: A `TextCache` for step by step decoding (always causal).
        training: Whether dropout is active.

    Returns:
        ``float[B, T, D]``, or ``(float[B, T, D], TextCache)`` when a cache was given.

    Example:
        >>> import numpy as np
        >>> from mmfusion.encoders import TextTransformer
        >>> encoder = TextTransformer(vocabulary_size=50, max_length=8, dim=16, depth=1, num_heads=2)
        >>> tuple(encoder(np.ones((2, 5), "int32")).shape)
        (2, 5, 16)

    Source: Vaswani et al. 2017 (arXiv:1706.03762); shared reading and writing: Dong et al., UniLM, 2019 (arXiv:1905.03197).
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        max_length: int,
        dim: int = 256,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        kernel: str = "exact",
        positions: str = "learned",
        block_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.layer_scale = layer_scale
        self.kernel = kernel
        self.positions = positions
        self.positions = positions
        self.block_options = dict(block_options or {})
        self.token_embedding = TokenEmbedding(
            vocabulary_size=vocabulary_size,
            dim=dim,
            max_length=max_length,
            positions=positions,
            dtype=self.dtype_policy,
            name="token_embedding",
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.blocks = transformer_blocks(
            depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            stochastic_depth=stochastic_depth,
            layer_scale=layer_scale,
            kernel=kernel,
            dtype=self.dtype_policy,
            **self.block_options,
        )
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="norm")

    def build(self, token_ids_shape: Sequence[int | None] | None = None) -> None:
        """Builds all parts; the shapes are known from the constructor."""
        self.token_embedding.build((None, self.max_length))
        tokens_shape = (None, self.max_length, self.dim)
        for block in self.blocks:
            block.build(tokens_shape)
        self.norm.build(tokens_shape)
        self.built = True

    def init_cache(self, batch_size: int | KerasTensor, max_length: int | None = None) -> TextCache:
        """An empty cache for decoding up to `max_length` tokens (default: the longest text)."""
        length = self.max_length if max_length is None else max_length
        return TextCache(tuple(block.init_cache(batch_size, length) for block in self.blocks), ops.convert_to_tensor(0, "int32"))

    def call(
        self,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        causal: bool = False,
        cache: TextCache | None = None,
        training: bool | None = None,
    ) -> KerasTensor | tuple[KerasTensor, TextCache]:
        """Encodes the tokens; see the class."""
        offset = 0 if cache is None else cache.position
        tokens = self.dropout_layer(self.token_embedding(token_ids, offset=offset), training=training)
        if cache is None:
            for block in self.blocks:
                tokens = block(tokens, mask=token_mask, causal=causal, training=training)
            return self.norm(tokens)
        block_caches = []
        for block, block_cache in zip(self.blocks, cache.blocks, strict=True):
            result = block(tokens, mask=token_mask, causal=True, cache=block_cache, training=training)
            tokens = result.tokens
            block_caches.append(result.cache)
        return self.norm(tokens), TextCache(tuple(block_caches), cache.position + ops.shape(token_ids)[1])

    def logits(self, tokens: KerasTensor) -> KerasTensor:
        """Scores of the next token: ``float[B, T, D]`` to ``float[B, T, V]``, with the embedding's own weights."""
        return self.token_embedding.logits(tokens)

    def compute_output_shape(self, token_ids_shape: Sequence[int | None]) -> tuple[int | None, int | None, int]:
        """``[B, T, D]``."""
        return token_ids_shape[0], token_ids_shape[1], self.dim

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "vocabulary_size", "max_length", "dim", "depth", "num_heads", "mlp_ratio", "dropout", "attention_dropout",
            "stochastic_depth", "layer_scale", "kernel", "positions", "block_options",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
