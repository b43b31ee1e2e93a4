"""A block in which learned queries and text share self-attention, and the queries alone look at a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.attention import Attention
from mmfusion.layers.block_output import BlockOutput
from mmfusion.layers.cache import BlockCache, KeyValueCache
from mmfusion.layers.checks import check_tokens, check_width, checked_mask
from mmfusion.layers.feed_forward import FeedForward
from mmfusion.layers.layer_scale import LayerScale
from mmfusion.layers.masks import length_of, without_masked
from mmfusion.layers.stochastic_depth import StochasticDepth


@keras.saving.register_keras_serializable(package="mmfusion")
class QFormerBlock(keras.layers.Layer):
    """Shared self-attention of queries and text, a look of the queries at a context, and a feed-forward part for each.

    Of tokens ``x = [q; t]``, queries then text: ``x += Attention(Norm(x)); q += Cross(Norm(q), context)``, then
    ``q += FeedForward_q(Norm(q)); t += FeedForward_t(Norm(t))``.

    Args:
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward parts over the tokens'. Default 4.
        cross_attention: Whether the queries look at a context. Default True.
        kernel: See `Attention`. Default ``"exact"``.
        num_global_tokens: See `Attention`; with ``kernel="local"`` the number of queries, which have no place. Default 0.
        activation: Of the feed-forward parts. Default ``"gelu"``.
        dropout: Rate after each branch. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        norm_first: Whether each branch normalises what it reads; False normalises each sum instead, as BERT:
            ``x = Norm(x + Attention(x))``. Default True.
        norm_epsilon: Of the normalisations. Default 1e-6.

    Call arguments:
        tokens: ``float[B, N + T, D]``, queries then text.
        mask: ``bool[B, N + T]``, ``True`` = real token; with a cache over its places. Default: all real.
        context: ``float[B, S, Dc]``, for cross-attention alone.
        context_mask: ``bool[B, S]``, ``True`` = real token. Default: all real, or the context's own Keras mask.
        num_queries: N; 0 is text alone, N + T queries alone. Default 0.
        causal: Whether queries see queries alone, and a text token the queries, itself and the text before it. Default False.
        cache: A `BlockCache` from `init_cache`, where the queries are in already: the tokens are text.
        return_scores: Whether to return attention scores; those of the cross-attention are of the queries. Default False.
        training: Whether dropout is active.

    Returns:
        ``float[B, N + T, D]``, or a `BlockOutput` if `cache` or `return_scores` was given.

    Raises:
        ConfigError: If queries meet no context where they look at one, there are fewer tokens than queries, or rank, width or
            dtype of tokens, context or masks is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import QFormerBlock
        >>> block = QFormerBlock(num_heads=2)
        >>> tuple(block(np.ones((2, 3 + 4, 8), "float32"), context=np.ones((2, 5, 6), "float32"), num_queries=3).shape)
        (2, 7, 8)

    Source: Li et al., BLIP-2, 2023 (arXiv:2301.12597), section 3.1 and figure 2.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        cross_attention: bool = True,
        kernel: str = "exact",
        num_global_tokens: int = 0,
        activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        norm_first: bool = True,
        norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.cross_attention = cross_attention
        self.kernel = kernel
        self.num_global_tokens = num_global_tokens
        self.activation = activation
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.layer_scale = layer_scale
        self.norm_first = norm_first
        self.norm_epsilon = norm_epsilon
        self.supports_masking = True
        self._branches = ("attention", *(("cross",) if cross_attention else ()), "query_feed_forward", "text_feed_forward")
        self.norms = {
            branch: keras.layers.LayerNormalization(epsilon=norm_epsilon, dtype=self.dtype_policy, name=f"{branch}_norm")
            for branch in self._branches
        }
        self.gains = (
            {}
            if layer_scale is None
            else {
                branch: LayerScale(initial=layer_scale, dtype=self.dtype_policy, name=f"{branch}_scale")
                for branch in self._branches
            }
        )
        self.attention = self._attention("self_attention", num_global_tokens=num_global_tokens)
        self.cross = self._attention("cross_attention") if cross_attention else None
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.drop_branch = StochasticDepth(rate=stochastic_depth, dtype=self.dtype_policy, name="stochastic_depth")

    def _attention(self, name: str, **options: Any) -> Attention:
        return Attention(
            num_heads=self.num_heads,
            kernel=self.kernel,
            dropout=self.attention_dropout,
            dtype=self.dtype_policy,
            name=name,
            **options,
        )

    def build(self, tokens_shape: Sequence[int | None], context_shape: Sequence[int | None] | None = None) -> None:
        """Builds all parts for the widths of tokens and context."""
        self._dim = check_width(tokens_shape, "tokens", self.name)
        tokens_shape = (None, None, self._dim)
        self.attention.build(tokens_shape)
        if self.cross is not None:
            self.cross.build(tokens_shape, tokens_shape if context_shape is None else context_shape)
        self.query_feed_forward, self.text_feed_forward = (
            FeedForward(
                hidden_dim=int(self._dim * self.mlp_ratio),
                activation=self.activation,
                dtype=self.dtype_policy,
                name=f"{stream}_feed_forward",
            )
            for stream in ("query", "text")
        )
        for part in (self.query_feed_forward, self.text_feed_forward, *self.norms.values(), *self.gains.values()):
            part.build(tokens_shape)
        self.built = True

    def init_cache(self, queries: KerasTensor, max_length: int, queries_mask: KerasTensor | None = None) -> BlockCache:
        """A cache that holds the queries as they enter the block, with room for `max_length` text tokens.

        Args:
            queries: ``float[B, N, D]``.
            max_length: L; the cache has N + L places, and masks of calls with it are ``bool[B, N + L]``.
            queries_mask: ``bool[B, N]``, ``True`` = real.
        """
        held = self.attention.project_context(self._before("attention", queries), queries_mask)
        count = length_of(queries)
        key, value = (
            ops.concatenate([x, ops.zeros((*ops.shape(x)[:2], max_length, x.shape[3]), x.dtype)], axis=2)
            for x in (held.key, held.value)
        )
        return BlockCache(KeyValueCache(key, value, ops.convert_to_tensor(count, "int32")), None)

    def call(
        self,
        tokens: KerasTensor,
        mask: KerasTensor | None = None,
        context: KerasTensor | None = None,
        context_mask: KerasTensor | None = None,
        num_queries: int = 0,
        causal: bool = False,
        cache: BlockCache | None = None,
        return_scores: bool = False,
        training: bool | None = None,
    ) -> KerasTensor | BlockOutput:
        """Applies the block; see the class."""
        mask = self._check_call(tokens, mask, context, num_queries, cache)
        if cache is None:
            tokens = without_masked(tokens, mask)
        extended = cache is not None or return_scores
        result = self.attention(
            self._before("attention", tokens),
            context_mask=mask,
            causal=causal,
            prefix_length=num_queries if causal and num_queries else None,
            cache=None if cache is None else cache.self_attention,
            return_scores=return_scores,
            training=training,
        )
        tokens = self._after("attention", tokens, result.output if extended else result, training)
        cross_scores, parts = None, []
        if num_queries:
            queries = tokens[:, :num_queries]
            if self.cross is not None:
                looked = self.cross(
                    self._before("cross", queries),
                    context=context,
                    context_mask=context_mask,
                    return_scores=return_scores,
                    training=training,
                )
                cross_scores = looked.scores if return_scores else None
                queries = self._after("cross", queries, looked.output if return_scores else looked, training)
            parts.append(self._feed("query_feed_forward", self.query_feed_forward, queries, training))
        if tokens.shape[1] is None or tokens.shape[1] > num_queries:
            parts.append(self._feed("text_feed_forward", self.text_feed_forward, tokens[:, num_queries:], training))
        tokens = ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        if not extended:
            return tokens
        return BlockOutput(tokens, result.scores, cross_scores, None if cache is None else BlockCache(result.cache, None))

    def _check_call(
        self,
        tokens: KerasTensor,
        mask: KerasTensor | None,
        context: KerasTensor | None,
        num_queries: int,
        cache: BlockCache | None,
    ) -> KerasTensor | None:
        check_tokens(tokens, "tokens", self.name, self._dim)
        length = tokens.shape[1]
        if num_queries < 0 or (length is not None and num_queries > length) or (cache is not None and num_queries):
            expected = "0 with a cache, which holds the queries" if cache is not None else f"0 to {length}"
            raise ConfigError("num_queries does not fit the tokens", where=self.name, expected=expected, found=num_queries)
        if (context is not None) != (self.cross is not None and num_queries > 0):
            expected = "a context exactly where there are queries that look at one"
            raise ConfigError("a context is missing, or has no reader", where=self.name, expected=expected)
        held = None if cache is None else cache.self_attention
        places = length if held is None else held.key.shape[2]
        return checked_mask(mask, "mask", self.name, tokens.shape, places, ranks=(2,))

    def _before(self, branch: str, tokens: KerasTensor) -> KerasTensor:
        return self.norms[branch](tokens) if self.norm_first else tokens

    def _after(self, branch: str, tokens: KerasTensor, output: KerasTensor, training: bool | None) -> KerasTensor:
        output = self.dropout_layer(output, training=training)
        if branch in self.gains:
            output = self.gains[branch](output)
        tokens = tokens + self.drop_branch(output, training=training)
        return tokens if self.norm_first else self.norms[branch](tokens)

    def _feed(self, branch: str, layer: FeedForward, tokens: KerasTensor, training: bool | None) -> KerasTensor:
        return self._after(branch, tokens, layer(self._before(branch, tokens), training=training), training)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "num_heads", "mlp_ratio", "cross_attention", "kernel", "num_global_tokens", "activation", "dropout",
            "attention_dropout", "stochastic_depth", "layer_scale", "norm_first", "norm_epsilon",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
