"""Attention: the part that plugs in anywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.attention_options import (
    DEFAULT_WINDOW,
    KERNELS,
    check_options,
    checked_grid,
    feature_function,
    grid_columns,
    prefix_last,
)
from mmfusion.layers.attention_output import AttentionOutput
from mmfusion.layers.cache import ContextCache, KeyValueCache, may_share
from mmfusion.layers.cache_writing import write_at
from mmfusion.layers.checks import check_tokens, check_width, checked_mask
from mmfusion.layers.kernels import (
    attention_weights,
    chunked_attention,
    exact_attention,
    linear_attention,
    linear_weights,
    local_attention,
    repeated,
    window_mask,
)
from mmfusion.layers.masks import AttentionMask, causal_last, length_of, real_keys, real_queries, without_masked
from mmfusion.layers.rotary import apply_rotary, rotary_positions
from mmfusion.layers.rows import by_rows

__all__ = ["KERNELS", "Attention"]

_OPTIONS = (
    "num_heads", "head_dim", "num_key_value_heads", "kernel", "chunk_size", "window", "num_global_tokens", "feature_map",
    "use_bias", "query_key_norm", "logit_cap", "rotary", "rotary_base", "grid", "num_unrotated_tokens", "dropout", "output_dim",
    "seed",
)  # fmt: skip


class _Projected(NamedTuple):
    """What a kernel needs: heads of shape ``[B, H, N, d]``, and where the first query stands among the keys if causal."""

    query: KerasTensor
    key: KerasTensor
    value: KerasTensor
    mask: AttentionMask
    start: int | KerasTensor | None
    cache: KeyValueCache | ContextCache | None


@keras.saving.register_keras_serializable(package="mmfusion")
class Attention(keras.layers.Layer):
    """Multi-head scaled dot-product attention, to itself or to a context.

    ``output = W_o · concat_h(softmax(Q_h K_hᵀ / √d) V_h)`` with ``Q = W_q query`` and ``K, V = W_k, W_v (context or query)``.
    Softmax is computed in float32. A key that no query may attend to never matters, NaN included, in value and gradient; a query
    with nothing to attend to gives exact zeros.

    Args:
        num_heads: Query heads, H.
        head_dim: Width of a head, d. Default: the query's width over H.
        num_key_value_heads: Key and value heads, a divisor of H; fewer than H is grouped-query attention, 1 is
            multi-query. Default H.
        kernel: ``"exact"`` computes all scores of a query at once; ``"chunked"`` streams over keys in memory linear in the
            sequence and equals ``"exact"`` to rounding, in value and gradient; ``"local"`` lets a token of self-attention see a
            window alone, in memory linear in the sequence, and a context whole, as ``"chunked"`` does; ``"linear"`` replaces the
            softmax by features of query and key, ``φ(q)·φ(k)`` normalised, in time linear in the sequence. Default ``"exact"``.
        chunk_size: About how many queries and keys at a time of ``"chunked"``. Default 1024.
        window: Tokens on each side that ``"local"`` sees; causally, those before. Default 128.
        num_global_tokens: Leading tokens that ``"local"`` lets see all and be seen by all. Default 0.
        feature_map: φ of ``"linear"``: ``"elu"`` (``elu(x) + 1``), ``"relu"``, ``"softplus"``, ``"softmax"``, or a function
            registered with Keras (a lambda cannot be loaded again), of numbers not below 0. Default ``"elu"``.
        use_bias: Whether the projections have biases. Default True.
        query_key_norm: Whether queries and keys are normalised to unit root mean square with a learned gain, head by head, which
            keeps logits from growing. Default False.
        logit_cap: Bounds logits smoothly, ``cap · tanh(logits / cap)``. Default None, no bound.
        rotary: Whether self-attention rotates queries and keys by position: False, True (along the sequence) or ``"2d"`` (half
            of a head's features by row of a grid, half by column). A context is refused then. Default False.
        rotary_base: Base of the rotation. Default 10000.
        grid: Rows and columns of ``rotary="2d"``, unless the call gives them. Default None.
        num_unrotated_tokens: Leading tokens without a rotary position, a class token say. Default 0.
        dropout: Rate at which weights are dropped in training; ``"exact"`` only. Default 0.
        output_dim: Width of the output. Default: the query's.
        seed: Seed of the dropout.

    Call arguments:
        query: ``float[B, T, D]``.
        context: ``float[B, S, Dc]``; None attends to the query itself.
        context_mask: ``bool[B, S]``, ``True`` = real token, or ``bool[B, T, S]`` for any pattern; an axis of 1 broadcasts. Of the
            query itself where there is no context; with a `KeyValueCache` over its L places, ``bool[B, L]`` or ``bool[B, T, L]``.
            Default: all real, or the query's own Keras mask in self-attention.
        causal: Whether query t sees keys up to t + S - T alone. Default False.
        cache: A `KeyValueCache`: the query's keys and values are appended and what is filled is attended to, causally; room must
            suffice, past its end the last places are overwritten. A `ContextCache`: its keys and values stand for the context. It
            may have fewer rows than the query, of which then consecutive ones share a row of it, as the beams of one image do.
        prefix_length: With causal attention, ``int`` or ``int[B]``: how many first keys every query sees, whatever follows
            (prefix-LM). With a cache those that are in it. Default: none.
        grid: Rows and columns of ``rotary="2d"``; they fill the sequence row by row.
        return_scores: Whether to return the scores. They never change the output. Default False.
        training: Whether dropout is active.

    Returns:
        ``float[B, T, output_dim]``, or an `AttentionOutput` if `cache` or `return_scores` was given.

    Raises:
        ConfigError: If the heads do not divide, a kernel is unknown, an option meets a kernel that has no use for it, a mask of
            each query meets ``"linear"``, rotary positions a context, a prefix is not causal, or query, context or mask has no
            token or a wrong rank, width or dtype.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import Attention
        >>> text, image = np.ones((2, 3, 8), "float32"), np.ones((2, 5, 6), "float32")
        >>> result = Attention(num_heads=2)(text, image, return_scores=True)
        >>> tuple(result.output.shape), tuple(result.scores.shape)
        ((2, 3, 8), (2, 2, 3, 5))

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2; grouped heads: Ainslie et al. 2023 (arXiv:2305.13245);
    normalised queries and keys: Dehghani et al. 2023 (arXiv:2302.05442); prefix: Raffel et al., T5, 2020 (arXiv:1910.10683),
    figure 4; the rest where it is computed, in `mmfusion.layers.kernels`.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int | None = None,
        num_key_value_heads: int | None = None,
        kernel: str = "exact",
        chunk_size: int = 1024,
        window: int | None = None,
        num_global_tokens: int = 0,
        feature_map: str | Callable[[KerasTensor], KerasTensor] | None = None,
        use_bias: bool = True,
        query_key_norm: bool = False,
        logit_cap: float | None = None,
        rotary: bool | str = False,
        rotary_base: float = 10000.0,
        grid: Sequence[int] | None = None,
        num_unrotated_tokens: int = 0,
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
        self.window = window
        self.num_global_tokens = num_global_tokens
        self.feature_map = feature_map
        self.use_bias = use_bias
        self.query_key_norm = query_key_norm
        self.logit_cap = logit_cap
        self.rotary = rotary
        self.rotary_base = rotary_base
        self.grid = checked_grid(grid, self.name)
        self.num_unrotated_tokens = num_unrotated_tokens
        self.dropout = dropout
        self.output_dim = output_dim
        self.seed = seed
        self.supports_masking = True
        check_options({name: getattr(self, name) for name in _OPTIONS}, self.name)
        self._features = feature_function(feature_map, self.name)
        self.dropout_layer = keras.layers.Dropout(dropout, seed=seed, dtype=self.dtype_policy, name="dropout")

    def build(self, query_shape: Sequence[int | None] | None = None, context_shape: Sequence[int | None] | None = None) -> None:
        """Builds the projections for the widths of query and context."""
        dim = check_width(query_shape, "query", self.name)
        context_dim = dim if context_shape is None else check_width(context_shape, "context", self.name)
        if self.head_dim is None and dim % self.num_heads:
            raise ConfigError(
                "the heads do not divide the width",
                where=self.name,
                expected=f"num_heads that divides {dim}, or a head_dim",
                found=f"num_heads={self.num_heads}",
            )
        width = self.head_dim or dim // self.num_heads
        if self.rotary and width % (4 if self.rotary == "2d" else 2):
            expected = "a multiple of 4 with rotary='2d', else an even one"
            raise ConfigError("rotary positions do not fit the head width", where=self.name, expected=expected, found=width)
        self._width, self._query_dim, self._context_dim = width, dim, context_dim
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
        if not self.built:
            raise ConfigError(
                "a cache needs a layer that is built", where=self.name, fix="call build, or the layer itself, first"
            )
        shape = (batch_size, self.num_key_value_heads, max_length, self._width)
        dtype = dtype or self.compute_dtype
        return KeyValueCache(ops.zeros(shape, dtype), ops.zeros(shape, dtype), ops.convert_to_tensor(0, "int32"))

    @property
    def cache_width(self) -> int:
        """Numbers of the key, and as many of the value, that a cache holds of one token; the layer must be built."""
        return self.num_key_value_heads * self._width

    def project_context(self, context: KerasTensor, context_mask: KerasTensor | None = None) -> ContextCache:
        """Keys and values of a context, computed once for many queries; context and mask are those of the call."""
        check_tokens(context, "context", self.name, self._context_dim)
        mask = checked_mask(context_mask, "context_mask", self.name, (context.shape[0], None), context.shape[1])
        return self._context(context, mask)

    def _context(self, context: KerasTensor, context_mask: KerasTensor | None) -> ContextCache:
        # Before the projection: the gradient of its weights multiplies by the context, wherever the mask is False.
        context = without_masked(context, real_keys(context_mask))
        key = self._heads(by_rows(self.key_projection, context), self.num_key_value_heads)
        value = self._heads(by_rows(self.value_projection, context), self.num_key_value_heads)
        return ContextCache(self.key_norm(key) if self.query_key_norm else key, value, context_mask)

    def call(
        self,
        query: KerasTensor,
        context: KerasTensor | None = None,
        context_mask: KerasTensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | ContextCache | None = None,
        return_scores: bool = False,
        training: bool | None = None,
        prefix_length: int | KerasTensor | None = None,
        grid: Sequence[int] | None = None,
    ) -> KerasTensor | AttentionOutput:
        """Attends; see the class."""
        check_tokens(query, "query", self.name, self._query_dim)
        if isinstance(cache, KeyValueCache):
            if context is not None:
                raise ConfigError(
                    "a context meets a cache of self-attention", where=self.name, expected="a ContextCache or no cache"
                )
            projected = self._append(query, context_mask, cache, prefix_length, grid)
        else:
            if prefix_length is not None and not causal:
                raise ConfigError("a prefix is of causal attention", where=self.name, fix="pass causal=True")
            if cache is not None and not causal and context_mask is None and may_share(query, cache):
                return self._attend_shared(query, cache, return_scores, training)
            projected = self._project(query, context, context_mask, causal, cache, prefix_length, grid)
        if self.kernel == "linear" and projected.mask.pattern is not None:
            raise ConfigError(
                "kernel='linear' has one sum for all queries, so a mask cannot differ by query",
                where=self.name,
                expected="context_mask of shape [batch, keys]",
                fix="use causal or prefix_length, or another kernel",
            )
        output, scores = self._attend(projected, return_scores, training)
        output = self._finished(output, projected)
        if cache is None and not return_scores:
            return output
        return AttentionOutput(output, scores, projected.cache)

    def _attend_shared(
        self, query: KerasTensor, cache: ContextCache, return_scores: bool, training: bool | None
    ) -> AttentionOutput:
        # Rows that share a context are one row of more queries: its keys and values are read once for all of them.
        rows, length = ops.shape(query)[:2]
        joined = ops.reshape(query, (ops.shape(cache.key)[0], -1, self._query_dim))
        projected = self._project(joined, None, None, False, cache, None, None)
        output, scores = self._attend(projected, return_scores, training)
        output = self._finished(output, projected)
        if scores is not None:
            heads, keys = self.num_heads, ops.shape(scores)[-1]
            scores = ops.transpose(ops.reshape(scores, (ops.shape(cache.key)[0], heads, -1, length, keys)), (0, 2, 1, 3, 4))
            scores = ops.reshape(scores, (rows, heads, length, keys))
        return AttentionOutput(ops.reshape(output, (rows, length, output.shape[-1])), scores, cache)

    def _finished(self, output: KerasTensor, projected: _Projected) -> KerasTensor:
        output = by_rows(self.output_projection, output)
        sees_any = projected.mask.sees_any(length_of(projected.key, 2))
        # Zeros where there was nothing to attend to, the projection's bias included.
        return output if sees_any is None else ops.where(sees_any[:, :, None], output, ops.zeros_like(output))

    def _project(
        self,
        query: KerasTensor,
        context: KerasTensor | None,
        context_mask: KerasTensor | None,
        causal: bool,
        cache: ContextCache | None,
        prefix_length: int | KerasTensor | None,
        grid: Sequence[int] | None,
    ) -> _Projected:
        itself = context is None and cache is None
        context = query if context is None else context
        check_tokens(context, "context", self.name, self._context_dim if cache is None else None)
        if not itself and (self.rotary or grid is not None):
            raise ConfigError(
                "rotary positions are of self-attention: a context has places of its own",
                where=self.name,
                expected="no context, or rotary=False and no grid",
                found=f"rotary={self.rotary!r}, grid={grid}",
            )
        if itself:
            context_mask = getattr(query, "_keras_mask", None) if context_mask is None else context_mask
        rows, length = context.shape[:2] if cache is None else (cache.key.shape[0], cache.key.shape[2])
        if None not in (rows, query.shape[0]) and rows != query.shape[0]:
            raise ConfigError("query and context differ in batch size", where=self.name, expected=query.shape[0], found=rows)
        context_mask = checked_mask(context_mask, "context_mask", self.name, query.shape, length)
        if cache is None:
            key, value, _ = self._context(context, context_mask)
            masks = [context_mask]
        else:
            key, value = (without_masked(x, real_keys(context_mask), axis=2) for x in (cache.key, cache.value))
            masks = [context_mask, cache.mask]
        queries = self._queries(without_masked(query, real_queries(context_mask)) if itself else query)
        number, length = length_of(queries, 2), length_of(key, 2)
        last = prefix_last(causal_last(number, length), prefix_length, length, query.shape[0], self.name) if causal else None
        mask = AttentionMask.of(*masks, last=last)
        if causal and prefix_length is None and mask.keys is None and mask.pattern is None:
            mask = mask._replace(causal=True, never_empty=itself)
        if itself:
            places = ops.arange(number, dtype="int32")
            queries, key = self._rotated(queries, key, places, grid, query.shape[1])
            if self.kernel == "local":
                mask = window_mask(mask, places, length, self._reach, self.num_global_tokens)
        start = (0 if itself else length - number) if causal else None
        return _Projected(queries, key, value, mask, start, cache)

    def _append(
        self,
        query: KerasTensor,
        mask: KerasTensor | None,
        cache: KeyValueCache,
        prefix_length: int | KerasTensor | None,
        grid: Sequence[int] | None,
    ) -> _Projected:
        room, found = (cache.key.shape[0], cache.key.shape[2]), tuple(query.shape[:2])
        if None not in (*room, *found) and (room[0] != found[0] or room[1] < found[1]):
            expected = f"{room[0]} rows of at most {room[1]} tokens"
            raise ConfigError("the query does not fit the cache", where=self.name, expected=expected, found=list(found))
        mask = checked_mask(mask, "context_mask", self.name, found, room[1])
        queries, (key, value, _) = self._queries(query), self._context(query, None)
        places = cache.position + ops.arange(length_of(query), dtype="int32")
        queries, key = self._rotated(queries, key, places, grid, None)
        key = write_at(cache.key, cache.position, ops.cast(key, cache.key.dtype))
        value = write_at(cache.value, cache.position, ops.cast(value, cache.value.dtype))
        filled = cache.position + length_of(query)
        advanced = KeyValueCache(key, value, filled)
        key, value = (without_masked(ops.cast(x, queries.dtype), real_keys(mask), axis=2) for x in (key, value))
        allowed = AttentionMask.of(mask, last=prefix_last(places, prefix_length, filled, query.shape[0], self.name))
        allowed = allowed._replace(never_empty=mask is None)
        if self.kernel == "local":
            allowed = window_mask(allowed, places, length_of(key, 2), self._reach, self.num_global_tokens)
        return _Projected(queries, key, value, allowed, cache.position, advanced)

    @property
    def _reach(self) -> int:
        return DEFAULT_WINDOW if self.window is None else self.window

    def _rotated(
        self, query: KerasTensor, key: KerasTensor, places: KerasTensor, grid: Sequence[int] | None, length: int | None
    ) -> tuple[KerasTensor, KerasTensor]:
        if not self.rotary:
            if grid is not None:
                raise ConfigError("grid has no meaning here", where=self.name, expected="no grid, or rotary='2d'", found=grid)
            return query, key
        grid = self.grid if grid is None else grid
        columns = grid_columns(grid, self.num_unrotated_tokens, length, self.name) if self.rotary == "2d" else None
        positions = rotary_positions(places, self.num_unrotated_tokens, columns)
        query, key = (apply_rotary(x, positions, self.rotary_base) for x in (query, key))
        return query, key

    def _queries(self, query: KerasTensor) -> KerasTensor:
        queries = self._heads(by_rows(self.query_projection, query), self.num_heads)
        return self.query_norm(queries) if self.query_key_norm else queries

    def _attend(
        self, projected: _Projected, return_scores: bool, training: bool | None
    ) -> tuple[KerasTensor, KerasTensor | None]:
        query, key, value, mask, start, _ = projected
        if self.kernel in ("linear", "local"):
            key, value = (repeated(x, self.num_heads) for x in (key, value))
        if self.kernel == "exact":
            drop = functools.partial(self.dropout_layer, training=True) if self.dropout and training else None
            output = exact_attention(query, key, value, mask, drop, self.logit_cap, training)
        elif self.kernel == "linear":
            output = linear_attention(query, key, value, mask, start, self._features)
        elif mask.first is None:
            output = chunked_attention(query, key, value, mask, self.chunk_size, self.logit_cap)
        else:
            # With a prefix, of which the mask has a last key for each example, causal queries look ahead too.
            ahead = start is None or mask.last_of_rows is mask.last
            output = local_attention(query, key, value, mask, self._reach, 0 if start is None else start, ahead, self.logit_cap)
        length = output.shape[2]
        output = output if length == 1 else ops.transpose(output, (0, 2, 1, 3))
        shape = ops.shape(output)
        output = ops.reshape(output, (shape[0], 1 if length == 1 else shape[1], self.num_heads * self._width))
        if not return_scores:
            return output, None
        # Computed beside the output, never instead of it: whoever asks for scores gets the output that others get.
        if self.kernel == "linear":
            return output, linear_weights(query, key, mask, self._features)
        return output, attention_weights(query, key, mask, self.logit_cap)

    def _heads(self, x: KerasTensor, heads: int) -> KerasTensor:
        shape = ops.shape(x)
        if x.shape[1] == 1:
            return ops.reshape(x, (shape[0], heads, 1, self._width))
        return ops.transpose(ops.reshape(x, (shape[0], shape[1], heads, self._width)), (0, 2, 1, 3))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        config = {name: getattr(self, name) for name in _OPTIONS}
        if callable(self.feature_map):
            config["feature_map"] = keras.saving.serialize_keras_object(self.feature_map)
        return {**super().get_config(), **config}
