"""Attention: the part that plugs in anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.cache import ContextCache, KeyValueCache
from mmfusion.layers.kernels import attention_weights, chunked_attention
from mmfusion.layers.masks import combine_masks
from mmfusion.layers.rotary import apply_rotary

KERNELS = ("exact", "chunked")


class AttentionOutput(NamedTuple):
    """What attention returns when scores or a cache are asked for.

    Attributes:
        output: ``float[B, T, D]``.
        scores: ``float32[B, H, T, S]``, each row summing to 1 (or 0 where nothing could be attended to), or None.
        cache: The advanced cache, or None.
    """

    output: KerasTensor
    scores: KerasTensor | None
    cache: KeyValueCache | ContextCache | None


@keras.saving.register_keras_serializable(package="mmfusion")
class Attention(keras.layers.Layer):
    """Multi-head scaled dot-product attention, to itself or to a context.

    ``output = W_o · concat_h(softmax(Q_h K_hᵀ / √d) V_h)`` with ``Q = W_q query`` and ``K, V = W_k, W_v (context or query)``. Softmax is
    computed in float32. What is behind a mask never matters, NaN included; a query with nothing to attend to gives exact zeros.

    Args:
        num_heads: Query heads, H.
        head_dim: Width of a head, d. Default: the query's width over H.
        num_key_value_heads: Key and value heads, a divisor of H; fewer than H is grouped-query attention, 1 is
            multi-query. Default H.
        kernel: ``"exact"`` computes all scores at once; ``"chunked"`` streams over keys in memory linear in the sequence and equals
            ``"exact"`` to rounding, in value and gradient. Default ``"exact"``.
        chunk_size: Keys at a time of ``"chunked"``. Default 512.
        use_bias: Whether the projections have biases. Default True.
        query_key_norm: Whether queries and keys are normalised to unit root mean square with a learned gain, head by head, which
            keeps logits from growing. Default False.
        rotary: Whether self-attention rotates queries and keys by position. Default False.
        rotary_base: Base of the rotation. Default 10000.
        dropout: Rate at which weights are dropped in training; ``"exact"`` only. Default 0.
        output_dim: Width of the output. Default: the query's.
        seed: Seed of the dropout.

    Call arguments:
        query: ``float[B, T, D]``.
        context: ``float[B, S, Dc]``; None attends to the query itself.
        context_mask: ``bool[B, S]``, ``True`` = real token, or ``bool[B, T, S]`` for any pattern; of the query itself where there is
            no context.
        causal: Whether query t sees keys up to t + S - T alone. Default False.
        cache: A `KeyValueCache`: the query's keys and values are appended and what is filled is attended to, causally. A
            `ContextCache`: its keys and values stand for the context. Room in the cache must suffice.
        return_scores: Whether to return the scores. They never change the output. Default False.
        training: Whether dropout is active.

    Returns:
        ``float[B, T, output_dim]``, or an `AttentionOutput` if `cache` or `return_scores` was given.

    Raises:
        ConfigError: If the heads do not divide, a kernel is unknown, or dropout meets a kernel other than ``"exact"``.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import Attention
        >>> text, image = np.ones((2, 3, 8), "float32"), np.ones((2, 5, 6), "float32")
        >>> result = Attention(num_heads=2)(text, image, return_scores=True)
        >>> tuple(result.output.shape), tuple(result.scores.shape)
        ((2, 3, 8), (2, 2, 3, 5))

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2; grouped heads: Ainslie et al. 2023 (arXiv:2305.13245);
    normalised queries and keys: Dehghani et al. 2023 (arXiv:2302.05442).
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int | None = None,
        num_key_value_heads: int | None = None,
        kernel: str = "exact",
        chunk_size: int = 512,
        use_bias: bool = True,
        query_key_norm: bool = False,
        rotary: bool = False,
        rotary_base: float = 10000.0,
        dropout: float = 0.0,
        output_dim: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        self.kernel = kernel
        self.chunk_size = chunk_size
        self.use_bias = use_bias
        self.query_key_norm = query_key_norm
        self.rotary = rotary
        self.rotary_base = rotary_base
        self.dropout = dropout
        self.output_dim = output_dim
        self.seed = seed
        self.supports_masking = True
        self._check()
        self.dropout_layer = keras.layers.Dropout(dropout, seed=seed, dtype=self.dtype_policy, name="dropout")

    def _check(self) -> None:
        if self.num_heads < 1 or self.num_key_value_heads < 1 or self.num_heads % self.num_key_value_heads:
            raise ConfigError(
                "impossible head counts",
                where=self.name,
                expected="num_heads a positive multiple of num_key_value_heads",
                found=f"{self.num_heads} and {self.num_key_value_heads}",
            )
        if self.kernel not in KERNELS:
            raise ConfigError("unknown kernel", where=self.name, expected=" or ".join(KERNELS), found=repr(self.kernel))
        if self.chunk_size < 1:
            raise ConfigError("impossible chunk size", where=self.name, expected="at least 1", found=self.chunk_size)
        if self.dropout and self.kernel != "exact":
            raise ConfigError(
                "attention weights are not kept by this kernel, so they cannot be dropped",
                where=self.name,
                expected="dropout=0",
                found=f"dropout={self.dropout}, kernel={self.kernel!r}",
                fix="drop out the block's outputs instead, or use kernel='exact'",
            )

    def build(self, query_shape: Sequence[int | None], context_shape: Sequence[int | None] | None = None) -> None:
        """Builds the projections for the widths of query and context."""
        dim = query_shape[-1]
        context_dim = dim if context_shape is None else context_shape[-1]
        if self.head_dim is None and dim % self.num_heads:
            raise ConfigError(
                "the heads do not divide the width",
                where=self.name,
                expected=f"num_heads that divides {dim}, or a head_dim",
                found=f"num_heads={self.num_heads}",
            )
        width = self.head_dim or dim // self.num_heads
        if self.rotary and width % 2:
            raise ConfigError("rotary positions need an even head width", where=self.name, found=width)
        self._width = width
        self.query_projection = self._projection("query", dim, self.num_heads * width)
        self.key_projection = self._projection("key", context_dim, self.num_key_value_heads * width)
        self.value_projection = self._projection("value", context_dim, self.num_key_value_heads * width)
        self.output_projection = self._projection("output", self.num_heads * width, self.output_dim or dim)
        if self.query_key_norm:
            self.query_norm = keras.layers.RMSNormalization(dtype=self.dtype_policy, name="query_norm")
            self.key_norm = keras.layers.RMSNormalization(dtype=self.dtype_policy, name="key_norm")
            self.query_norm.build((None, None, self.num_heads, width))
            self.key_norm.build((None, None, self.num_key_value_heads, width))
        self.built = True

    def _projection(self, name: str, input_dim: int, units: int) -> keras.layers.Dense:
        dense = keras.layers.Dense(units, use_bias=self.use_bias, dtype=self.dtype_policy, name=name)
        dense.build((None, input_dim))
        return dense

    def init_cache(self, batch_size: int | KerasTensor, max_length: int, dtype: str | None = None) -> KeyValueCache:
        """An empty cache of self-attention with room for `max_length` tokens; the layer must be built."""
        shape = (batch_size, max_length, self.num_key_value_heads, self._width)
        dtype = dtype or self.compute_dtype
        return KeyValueCache(ops.zeros(shape, dtype), ops.zeros(shape, dtype), ops.convert_to_tensor(0, "int32"))

    def project_context(self, context: KerasTensor, context_mask: KerasTensor | None = None) -> ContextCache:
        """Keys and values of a context, computed once for many queries."""
        key = self._heads(self.key_projection(context), self.num_key_value_heads)
        value = self._heads(self.value_projection(context), self.num_key_value_heads)
        if self.query_key_norm:
            key = self.key_norm(key)
        return ContextCache(key, value, context_mask)

    def call(
        self,
        query: KerasTensor,
        context: KerasTensor | None = None,
        context_mask: KerasTensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | ContextCache | None = None,
        return_scores: bool = False,
        training: bool | None = None,
    ) -> KerasTensor | AttentionOutput:
        """Attends; see the class."""
        queries = self._heads(self.query_projection(query), self.num_heads)
        if self.query_key_norm:
            queries = self.query_norm(queries)
        if isinstance(cache, KeyValueCache):
            queries, key, value, mask, cache = self._append(query, queries, cache)
        else:
            if isinstance(cache, ContextCache):
                key, value, context_mask = cache
            else:
                key, value, _ = self.project_context(query if context is None else context)
            if self.rotary and context is None and cache is None:
                positions = ops.arange(_length(queries))
                queries, key = (apply_rotary(x, positions, self.rotary_base) for x in (queries, key))
            mask = combine_masks(
                context_mask, causal=causal, query_length=_length(queries), key_length=_length(key)
            )
            value = _without_masked(value, context_mask)
        output, scores = self._attend(queries, key, value, mask, return_scores, training)
        output = self.output_projection(output)
        if mask is not None:
            # Zeros where there was nothing to attend to, the projection's bias included.
            something = ops.any(mask, axis=-1)[:, 0, :, None]
            output = ops.where(something, output, ops.zeros_like(output))
        if cache is None and not return_scores:
            return output
        return AttentionOutput(output, scores, cache)

    def _append(self, query: KerasTensor, queries: KerasTensor, cache: KeyValueCache) -> tuple[Any, ...]:
        count = _length(query)
        key, value, _ = self.project_context(query)
        positions = cache.position + ops.arange(count)
        if self.rotary:
            queries, key = (apply_rotary(x, positions, self.rotary_base) for x in (queries, key))
        start = [0, cache.position, 0, 0]
        key = ops.slice_update(cache.key, start, ops.cast(key, cache.key.dtype))
        value = ops.slice_update(cache.value, start, ops.cast(value, cache.value.dtype))
        mask = (ops.arange(_length(key))[None, :] <= positions[:, None])[None, None]
        cache = KeyValueCache(key, value, cache.position + count)
        return queries, ops.cast(key, queries.dtype), ops.cast(value, queries.dtype), mask, cache

    def _attend(
        self,
        query: KerasTensor,
        key: KerasTensor,
        value: KerasTensor,
        mask: KerasTensor | None,
        return_scores: bool,
        training: bool | None,
    ) -> tuple[KerasTensor, KerasTensor | None]:
        query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
        if self.num_key_value_heads != self.num_heads:
            key, value = (ops.repeat(x, self.num_heads // self.num_key_value_heads, axis=1) for x in (key, value))
        scores = None
        if self.kernel == "chunked":
            output = chunked_attention(query, key, value, mask, self.chunk_size)
            scores = attention_weights(query, key, mask) if return_scores else None
        else:
            scores = attention_weights(query, key, mask)
            output = ops.matmul(self.dropout_layer(ops.cast(scores, value.dtype), training=training), value)
        output = ops.transpose(output, (0, 2, 1, 3))
        shape = ops.shape(output)
        return ops.reshape(output, (shape[0], shape[1], self.num_heads * self._width)), scores if return_scores else None

    def _heads(self, x: KerasTensor, heads: int) -> KerasTensor:
        shape = ops.shape(x)
        return ops.reshape(x, (shape[0], shape[1], heads, self._width))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "num_heads", "head_dim", "num_key_value_heads", "kernel", "chunk_size", "use_bias", "query_key_norm", "rotary",
            "rotary_base", "dropout", "output_dim", "seed",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _length(x: KerasTensor) -> int | KerasTensor:
    return x.shape[1] if x.shape[1] is not None else ops.shape(x)[1]


def _without_masked(value: KerasTensor, mask: KerasTensor | None) -> KerasTensor:
    # A weight of exactly 0 times NaN is NaN: what stands in the padding must not even be multiplied.
    if mask is None:
        return value
    mask = ops.cast(mask, "bool")
    real = mask if len(mask.shape) == 2 else ops.any(mask, axis=1)
    return ops.where(real[:, :, None, None], value, ops.zeros_like(value))
