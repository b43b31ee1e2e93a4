"""A transformer block, with or without a look at a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor

from mmfusion.errors import ConfigError
from mmfusion.layers.attention import Attention
from mmfusion.layers.cache import BlockCache
from mmfusion.layers.checks import check_tokens, check_width, checked_mask
from mmfusion.layers.feed_forward import FeedForward
from mmfusion.layers.layer_scale import LayerScale
from mmfusion.layers.masks import real_queries, without_masked
from mmfusion.layers.stochastic_depth import StochasticDepth


class BlockOutput(NamedTuple):
    """What a block returns when scores or a cache are asked for.

    Attributes:
        tokens: ``float[B, N, D]``.
        self_scores: ``float32[B, H, N, N]``, or None.
        cross_scores: ``float32[B, H, N, S]``, or None.
        cache: The advanced `BlockCache`, or None.
    """

    tokens: KerasTensor
    self_scores: KerasTensor | None
    cross_scores: KerasTensor | None
    cache: BlockCache | None


@keras.saving.register_keras_serializable(package="mmfusion")
class TransformerBlock(keras.layers.Layer):
    """Pre-norm block: ``x += Attention(Norm(x)); [x += Cross(Norm(x), context);] x += FeedForward(Norm(x))``.

    Args:
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward part over the tokens'. Default 4.
        cross_attention: Whether it looks at a context. Default False.
        num_key_value_heads: See `Attention`.
        kernel: See `Attention`. Default ``"exact"``.
        chunk_size: See `Attention`. Default 512.
        activation: Of the feed-forward part. Default ``"gelu"``.
        dropout: Rate after each branch. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        query_key_norm: See `Attention`. Default False.
        rotary: Whether self-attention uses rotary positions. Default False.
        norm_epsilon: Of the normalisations. Default 1e-6.

    Call arguments:
        tokens: ``float[B, N, D]``.
        mask: ``bool[B, N]`` (or ``bool[B, N, N]``), ``True`` = real token; with a cache over its L places,
            ``bool[B, L]``. Default: all real, or the tokens' own Keras mask.
        context: ``float[B, S, Dc]``, for cross-attention alone; with a cache, the cache's counts.
        context_mask: ``bool[B, S]`` (or ``bool[B, N, S]``), ``True`` = real token. Default: all real, or the context's own
            Keras mask.
        causal: Whether a token sees itself and what precedes it alone. Default False.
        cache: A `BlockCache` from `init_cache`.
        return_scores: Whether to return attention scores. Default False.
        training: Whether dropout is active.

    Returns:
        ``float[B, N, D]``, or a `BlockOutput` if `cache` or `return_scores` was given.

    Raises:
        ConfigError: If a block with cross-attention gets no context or one without it gets one, a cache does not fit, or rank,
            width or dtype of tokens, context or masks is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import TransformerBlock
        >>> block = TransformerBlock(num_heads=2, cross_attention=True)
        >>> tuple(block(np.ones((2, 3, 8), "float32"), context=np.ones((2, 5, 6), "float32")).shape)
        (2, 3, 8)

    Source: Vaswani et al. 2017 (arXiv:1706.03762); normalisation first: Xiong et al. 2020 (arXiv:2002.04745).
    """

    def __init__(
        self,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        cross_attention: bool = False,
        num_key_value_heads: int | None = None,
        kernel: str = "exact",
        chunk_size: int = 512,
        activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        query_key_norm: bool = False,
        rotary: bool = False,
        norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.cross_attention = cross_attention
        self.num_key_value_heads = num_key_value_heads
        self.kernel = kernel
        self.chunk_size = chunk_size
        self.activation = activation
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.layer_scale = layer_scale
        self.query_key_norm = query_key_norm
        self.rotary = rotary
        self.norm_epsilon = norm_epsilon
        self.supports_masking = True
        self.attention_norm = self._norm("attention_norm")
        self.attention = self._attention("self_attention", rotary=rotary)
        self.cross_norm: Any = self._norm("cross_norm") if cross_attention else None
        self.cross = self._attention("cross_attention", rotary=False) if cross_attention else None
        self.feed_forward_norm = self._norm("feed_forward_norm")
        self.feed_forward: Any = None
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.drop_branch = StochasticDepth(rate=stochastic_depth, dtype=self.dtype_policy, name="stochastic_depth")
        branches = ("attention", "cross", "feed_forward") if cross_attention else ("attention", "feed_forward")
        self.gains = (
            {}
            if layer_scale is None
            else {branch: LayerScale(initial=layer_scale, dtype=self.dtype_policy, name=f"{branch}_scale") for branch in branches}
        )

    def _norm(self, name: str) -> keras.layers.LayerNormalization:
        return keras.layers.LayerNormalization(epsilon=self.norm_epsilon, dtype=self.dtype_policy, name=name)

    def _attention(self, name: str, *, rotary: bool) -> Attention:
        return Attention(
            num_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            kernel=self.kernel,
            chunk_size=self.chunk_size,
            dropout=self.attention_dropout,
            query_key_norm=self.query_key_norm,
            rotary=rotary,
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, tokens_shape: Sequence[int | None], context_shape: Sequence[int | None] | None = None) -> None:
        """Builds all parts for the widths of tokens and context."""
        self._dim = check_width(tokens_shape, "tokens", self.name)
        tokens_shape = (None, None, self._dim)
        self.attention_norm.build(tokens_shape)
        self.attention.build(tokens_shape)
        if self.cross is not None and self.cross_norm is not None:
            self.cross_norm.build(tokens_shape)
            self.cross.build(tokens_shape, tokens_shape if context_shape is None else context_shape)
        self.feed_forward_norm.build(tokens_shape)
        self.feed_forward = FeedForward(
            hidden_dim=int(tokens_shape[-1] * self.mlp_ratio),
            activation=self.activation,
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        self.feed_forward.build(tokens_shape)
        for gain in self.gains.values():
            gain.build(tokens_shape)
        self.built = True

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        context: KerasTensor | None = None,
        context_mask: KerasTensor | None = None,
    ) -> BlockCache:
        """Room for `max_length` tokens, and the context's keys and values, computed once."""
        if (self.cross is None) != (context is None):
            wanted = "none" if self.cross is None else "one"
            raise ConfigError("a cache needs a context exactly where there is cross-attention", where=self.name, expected=wanted)
        return BlockCache(
            self.attention.init_cache(batch_size, max_length),
            None if self.cross is None else self.cross.project_context(context, context_mask),
        )

    def call(
        self,
        tokens: KerasTensor,
        mask: KerasTensor | None = None,
        context: KerasTensor | None = None,
        context_mask: KerasTensor | None = None,
        causal: bool = False,
        cache: BlockCache | None = None,
        return_scores: bool = False,
        training: bool | None = None,
    ) -> KerasTensor | BlockOutput:
        """Applies the block; see the class."""
        mask = self._check_call(tokens, mask, context, cache)
        if cache is None and mask is not None:
            # The residual stream, norms and projections multiply by the tokens too: NaN behind the mask ends here.
            tokens = without_masked(tokens, real_queries(mask))
        extended = cache is not None or return_scores
        result = self.attention(
            self.attention_norm(tokens),
            context_mask=mask,
            causal=causal,
            cache=None if cache is None else cache.self_attention,
            return_scores=return_scores,
            training=training,
        )
        self_output: Any = result if extended else None
        tokens = tokens + self._branch("attention", self_output.output if self_output else result, training)
        cross_output = None
        if self.cross is not None:
            result = self.cross(
                self.cross_norm(tokens),
                context=context if cache is None else None,
                context_mask=context_mask,
                cache=None if cache is None else cache.cross_attention,
                return_scores=return_scores,
                training=training,
            )
            cross_output = result if extended else None
            tokens = tokens + self._branch("cross", cross_output.output if cross_output else result, training)
        hidden = self.feed_forward(self.feed_forward_norm(tokens), training=training)
        tokens = tokens + self._branch("feed_forward", hidden, training)
        if not extended:
            return tokens
        return BlockOutput(
            tokens=tokens,
            self_scores=self_output.scores,
            cross_scores=None if cross_output is None else cross_output.scores,
            cache=None if cache is None else BlockCache(self_output.cache, cache.cross_attention),
        )

    def _check_call(
        self, tokens: KerasTensor, mask: KerasTensor | None, context: KerasTensor | None, cache: BlockCache | None
    ) -> KerasTensor | None:
        check_tokens(tokens, "tokens", self.name, self._dim)
        crossed = context is not None if cache is None else cache.cross_attention is not None
        if self.cross is not None and not crossed:
            raise ConfigError(
                "a block with cross-attention got no context", where=self.name, expected="a context, or a cache made of one"
            )
        if self.cross is None and context is not None:
            raise ConfigError(
                "a block without cross-attention got a context", where=self.name, fix="build it with cross_attention=True"
            )
        if cache is not None:
            return checked_mask(mask, "mask", self.name, tokens.shape, cache.self_attention.key.shape[1])
        mask = getattr(tokens, "_keras_mask", None) if mask is None else mask
        return checked_mask(mask, "mask", self.name, tokens.shape, tokens.shape[1])

    def _branch(self, name: str, output: KerasTensor, training: bool | None) -> KerasTensor:
        output = self.dropout_layer(output, training=training)
        if name in self.gains:
            output = self.gains[name](output)
        return self.drop_branch(output, training=training)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "num_heads", "mlp_ratio", "cross_attention", "num_key_value_heads", "kernel", "chunk_size", "activation",
            "dropout", "attention_dropout", "stochastic_depth", "layer_scale", "query_key_norm", "rotary", "norm_epsilon",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
