"""A text transformer that reads both ways, or left to right with a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.encoders._blocks import transformer_blocks
from mmfusion.errors import ConfigError
from mmfusion.fusion.cache_size import CacheSize, keys_and_values
from mmfusion.layers import BlockCache, TokenEmbedding
from mmfusion.layers.masks import length_of

CLASS_TOKENS = ("text", "next")


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
    ``causal`` says which. The embedding is tied to the output layer: `logits` scores the next token. With `class_token` there is
    a learned token behind the text, which reads it for an embedding (`class_token_of`) and which no word ever sees.

    Args:
        vocabulary_size: Number of token ids, V.
        max_length: Longest text in tokens, the class token not counted.
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
        positions: What is added to the embedding: ``"learned"``, ``"sinusoidal"`` or ``"none"`` (rotary ones are a block option).
            Default ``"learned"``.
        final_norm: Whether what the last block gives is normalised; where False, whoever reads it does. Default True.
        norm_epsilon: Of all normalisations, those of the blocks too. Default 1e-6.
        class_token: None, or which tokens a class token sees: ``"text"``, the real tokens and itself; ``"next"``, the real
            tokens and the one place behind them, itself where that is its own (open_clip's CoCa, whose mask is shifted by
            one). Default None, no class token.
        pad_id: What ``"next"`` reads behind the text. Default 0.
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

    Raises:
        ConfigError: If `class_token` is unknown, meets rotary positions, or is asked of an encoder without one.

    Source: Vaswani et al. 2017 (arXiv:1706.03762); shared reading and writing: Dong et al., UniLM, 2019 (arXiv:1905.03197); the
    class token: Yu et al., CoCa, 2022 (arXiv:2205.01917), section 3.2.
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
        final_norm: bool = True,
        norm_epsilon: float = 1e-6,
        class_token: str | None = None,
        pad_id: int = 0,
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
        self.final_norm = final_norm
        self.norm_epsilon = norm_epsilon
        self.class_token = class_token
        self.pad_id = pad_id
        if class_token not in (None, *CLASS_TOKENS):
            expected = f"{' or '.join(CLASS_TOKENS)}, or None"
            raise ConfigError("unknown class_token", where=self.name, expected=expected, found=repr(class_token))
        if class_token is not None and (block_options or {}).get("rotary"):
            # How far it is from a word would depend on the padding between them.
            raise ConfigError("a class token has no place to turn by", where=self.name, expected="no rotary positions")
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
            **{"norm_epsilon": norm_epsilon, **self.block_options},
        )
        self.norm: Any = None
        if final_norm:
            self.norm = keras.layers.LayerNormalization(epsilon=norm_epsilon, dtype=self.dtype_policy, name="norm")

    def build(self, token_ids_shape: Sequence[int | None] | None = None) -> None:
        """Builds all parts; the shapes are known from the constructor."""
        self.token_embedding.build((None, self.max_length))
        tokens_shape = (None, self.max_length, self.dim)
        if self.class_token is not None:
            # Its position is in it: it is always the last.
            initializer = keras.initializers.TruncatedNormal(stddev=0.02)
            self.class_embedding = self.add_weight(shape=(self.dim,), initializer=initializer, name="class_embedding")
        for block in self.blocks:
            block.build(tokens_shape)
        if self.norm is not None:
            self.norm.build(tokens_shape)
        self.built = True

    def init_cache(self, batch_size: int | KerasTensor, max_length: int | None = None) -> TextCache:
        """An empty cache for decoding up to `max_length` tokens (default: the longest text)."""
        length = self.max_length if max_length is None else max_length
        return TextCache(tuple(block.init_cache(batch_size, length) for block in self.blocks), ops.convert_to_tensor(0, "int32"))

    def cache_size(self, text_length: int) -> CacheSize:
        """What the cache of `init_cache` holds of each text: ``2·L·T·Hkv·d`` numbers, with T places."""
        return CacheSize(own=sum(keys_and_values(text_length, block.attention.cache_width) for block in self.blocks))

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
            return self._normalised(tokens)
        block_caches = []
        for block, block_cache in zip(self.blocks, cache.blocks, strict=True):
            result = block(tokens, mask=token_mask, causal=True, cache=block_cache, training=training)
            tokens = result.tokens
            block_caches.append(result.cache)
        return self._normalised(tokens), TextCache(tuple(block_caches), cache.position + ops.shape(token_ids)[1])

    def _normalised(self, tokens: KerasTensor) -> KerasTensor:
        return tokens if self.norm is None else self.norm(tokens)

    def class_token_of(
        self,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        causal: bool = False,
        training: bool | None = None,
    ) -> KerasTensor:
        """What the class token makes of a text, as an embedding of it.

        Args:
            token_ids: ``int[B, T]``.
            token_mask: ``bool[B, T]``, ``True`` = real token; neither what is behind it nor how much matters. Default: all real.
            causal: Whether a word sees only itself and what precedes it. Default False.
            training: Whether dropout is active.

        Returns:
            ``float[B, 1, D]``.

        Raises:
            ConfigError: If the encoder has no class token, or one that needs a causal reading is to read both ways.
        """
        if self.class_token is None:
            raise ConfigError("this encoder has no class token", where=self.name, fix='build it with class_token="text"')
        if self.class_token == "next" and not causal:
            raise ConfigError('class_token="next" is of text that is read left to right', where=self.name, fix="pass causal=True")
        token_ids = ops.convert_to_tensor(token_ids)
        mask = ops.ones_like(token_ids, "bool") if token_mask is None else ops.cast(token_mask, "bool")
        mask = ops.broadcast_to(mask, ops.shape(token_ids))
        if self.class_token == "next":
            token_ids = ops.where(mask, token_ids, ops.cast(self.pad_id, token_ids.dtype))
            if token_ids.shape[1] is None or token_ids.shape[1] < self.max_length:
                token_ids = ops.pad(token_ids, [[0, 0], [0, 1]], constant_values=self.pad_id)[:, : self.max_length]
                mask = ops.pad(mask, [[0, 0], [0, 1]], constant_values=False)[:, : self.max_length]
        batch, length = ops.shape(token_ids)[0], length_of(token_ids)
        tokens = self.token_embedding(token_ids)
        own = ops.broadcast_to(ops.cast(self.class_embedding, tokens.dtype)[None, None], (batch, 1, self.dim))
        tokens = self.dropout_layer(ops.concatenate([tokens, own], axis=1), training=training)
        one = ops.ones((batch, 1), "bool")
        seen = ops.concatenate([one, mask] if self.class_token == "next" else [mask, one], axis=1)
        places = ops.arange(length + 1, dtype="int32")
        # No word sees the class token, so that words are read as they are without it.
        earlier = places[None, :] <= places[:, None]
        if not causal:
            earlier = ops.logical_or(places[None, :] < length, places[:, None] == length)
        pattern = ops.logical_and(seen[:, None, :], earlier[None])
        for block in self.blocks:
            tokens = block(tokens, mask=pattern, training=training)
        return self._normalised(tokens[:, -1:])

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
            "stochastic_depth", "layer_scale", "kernel", "positions", "final_norm", "norm_epsilon", "class_token", "pad_id",
            "block_options",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
