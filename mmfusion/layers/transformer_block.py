"""A transformer block, with or without a look at a context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.attention import Attention
from mmfusion.layers.attention_options import POSITION_OPTIONS
from mmfusion.layers.attention_output import AttentionOutput
from mmfusion.layers.block_output import BlockOutput
from mmfusion.layers.cache import BlockCache, ContextCache, KeyValueCache
from mmfusion.layers.checks import check_tokens, check_width, checked_mask
from mmfusion.layers.feed_forward import FeedForward
from mmfusion.layers.layer_scale import LayerScale
from mmfusion.layers.masks import joined_mask, length_of, real_keys, real_tokens, without_masked
from mmfusion.layers.stochastic_depth import StochasticDepth


@keras.saving.register_keras_serializable(package="mmfusion")
class TransformerBlock(keras.layers.Layer):
    """Attention to itself, attention to a context, feed-forward: each a residual branch, the latter two where asked for.

    A branch is ``x += Branch(Norm(x))``, or with ``norm_first=False`` ``x = Norm(x + Branch(x))``. With `feed_forward_between`
    there is another feed-forward branch, between the two kinds of attention.

    Args:
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward part over the tokens'; 0 has no such part. Default 4.
        self_attention: Whether it attends to itself. Default True.
        cross_attention: Whether it looks at a context. Default False.
        context_norm: Whether the context is normalised first, as a residual stream of other blocks needs it. Default False.
        feed_forward_between: Whether a feed-forward part of its own follows the self-attention too, before the look at the
            context, as where blocks of both kinds take turns (open_clip's CoCa). Default False.
        num_key_value_heads: See `Attention`.
        kernel: See `Attention`. Default ``"exact"``.
        chunk_size: See `Attention`. Default 1024.
        activation: Of the feed-forward part, see `FeedForward`. Default ``"gelu"``, the exact one.
        use_bias: Whether projections and feed-forward part have biases. Default True.
        dropout: Rate after each branch. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        query_key_norm: See `Attention`. Default False.
        rotary: Whether self-attention uses rotary positions, and which, see `Attention`. Default False.
        attention_options: Further arguments of each `Attention`, such as ``{"logit_cap": 50.0}``. Default none.
        norm_first: Whether normalisation comes before each branch; False is after the sum, as in BERT. Default True.
        norm_epsilon: Of the normalisations. Default 1e-6.

    Call arguments:
        tokens: ``float[B, N, D]``.
        mask: ``bool[B, N]`` (or ``bool[B, N, N]``), ``True`` = real token; with a cache over its L places,
            ``bool[B, L]``. Default: all real, or the tokens' own Keras mask.
        context: ``float[B, S, Dc]``, for cross-attention alone; with a cache, the cache's counts.
        context_mask: ``bool[B, S]`` (or ``bool[B, N, S]``), ``True`` = real token. Default: all real, or the context's own
            Keras mask.
        causal: Whether a token sees itself and what precedes it alone, with all of the prefix. Default False.
        cache: A `BlockCache` from `init_cache`; or from `read_context`, which holds a context alone: the tokens are read whole.
        prefix: Keys and values of M tokens before these, seen by all of them: a `ContextCache` from `project_prefix`, or the
            `prefix` that a block returns. With a cache, the cache's counts.
        use_context: Whether to look at the context; False leaves that branch out. Default True.
        return_scores: Whether to return attention scores. Default False.
        return_prefix: Whether to return these tokens' own keys and values, as prefix of others. Default False.
        training: Whether dropout is active.

    Returns:
        ``float[B, N, D]``, or a `BlockOutput` if `cache`, `return_scores` or `return_prefix` was given.

    Raises:
        ConfigError: If a block has no part, one with cross-attention gets no context or one without it gets one, a cache or a
            prefix does not fit, or rank, width or dtype of tokens, context or masks is wrong.

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
        self_attention: bool = True,
        cross_attention: bool = False,
        context_norm: bool = False,
        feed_forward_between: bool = False,
        num_key_value_heads: int | None = None,
        kernel: str = "exact",
        chunk_size: int = 1024,
        activation: str = "gelu",
        use_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        query_key_norm: bool = False,
        rotary: bool | str = False,
        attention_options: Mapping[str, Any] | None = None,
        norm_first: bool = True,
        norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.context_norm = context_norm
        self.feed_forward_between = feed_forward_between
        self.num_key_value_heads = num_key_value_heads
        self.kernel = kernel
        self.chunk_size = chunk_size
        self.activation = activation
        self.use_bias = use_bias
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.layer_scale = layer_scale
        self.query_key_norm = query_key_norm
        self.rotary = rotary
        self.attention_options = dict(attention_options or {})
        self.norm_first = norm_first
        self.norm_epsilon = norm_epsilon
        self.supports_masking = True
        branches = self._branches()
        self.attention_norm: Any = self._norm("attention_norm") if self_attention else None
        self.attention: Any = self._attention("self_attention") if self_attention else None
        self.cross_norm: Any = self._norm("cross_norm") if cross_attention else None
        self.cross_context_norm: Any = self._norm("context_norm") if context_norm else None
        self.cross: Any = self._attention("cross_attention") if cross_attention else None
        self.between_norm: Any = self._norm("between_norm") if feed_forward_between else None
        self.between: Any = None
        self.feed_forward_norm: Any = self._norm("feed_forward_norm") if mlp_ratio else None
        self.feed_forward: Any = None
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.drop_branch = StochasticDepth(rate=stochastic_depth, dtype=self.dtype_policy, name="stochastic_depth")
        self.gains = (
            {}
            if layer_scale is None
            else {branch: LayerScale(initial=layer_scale, dtype=self.dtype_policy, name=f"{branch}_scale") for branch in branches}
        )

    def _branches(self) -> list[str]:
        if self.context_norm and not self.cross_attention:
            raise ConfigError("context_norm without cross-attention has nothing to normalise", where=self.name)
        if self.feed_forward_between and not (self.self_attention and self.cross_attention and self.mlp_ratio > 0):
            expected = "self-attention, cross-attention, and mlp_ratio above 0"
            raise ConfigError("feed_forward_between has nothing to stand between", where=self.name, expected=expected)
        present = {
            "attention": self.self_attention,
            "between": self.feed_forward_between,
            "cross": self.cross_attention,
            "feed_forward": self.mlp_ratio > 0,
        }
        branches = [name for name, there in present.items() if there]
        if not branches or self.mlp_ratio < 0:
            expected = "attention of some kind, or mlp_ratio above 0"
            raise ConfigError("a block without a part", where=self.name, expected=expected, found=f"mlp_ratio={self.mlp_ratio}")
        return branches

    def _norm(self, name: str) -> keras.layers.LayerNormalization:
        return keras.layers.LayerNormalization(epsilon=self.norm_epsilon, dtype=self.dtype_policy, name=name)

    def _attention(self, name: str) -> Attention:
        options: dict[str, Any] = dict(rotary=self.rotary, **self.attention_options)
        if name == "cross_attention":
            # Which has no positions to turn by.
            options = {option: value for option, value in options.items() if option not in POSITION_OPTIONS}
        return Attention(
            num_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            kernel=self.kernel,
            chunk_size=self.chunk_size,
            use_bias=self.use_bias,
            dropout=self.attention_dropout,
            query_key_norm=self.query_key_norm,
            **options,
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, tokens_shape: Sequence[int | None], context_shape: Sequence[int | None] | None = None) -> None:
        """Builds all parts for the widths of tokens and context."""
        self._dim = check_width(tokens_shape, "tokens", self.name)
        tokens_shape = (None, None, self._dim)
        if self.attention is not None:
            self.attention_norm.build(tokens_shape)
            self.attention.build(tokens_shape)
        if self.cross is not None:
            context_shape = tokens_shape if context_shape is None else context_shape
            self.cross_norm.build(tokens_shape)
            if self.cross_context_norm is not None:
                self.cross_context_norm.build(context_shape)
            self.cross.build(tokens_shape, context_shape)
        if self.mlp_ratio:
            self.feed_forward_norm.build(tokens_shape)
            self.feed_forward = self._feed_forward("feed_forward")
        if self.feed_forward_between:
            self.between_norm.build(tokens_shape)
            self.between = self._feed_forward("feed_forward_between")
        for gain in self.gains.values():
            gain.build(tokens_shape)
        self.built = True

    def _feed_forward(self, name: str) -> FeedForward:
        layer = FeedForward(
            hidden_dim=int(self._dim * self.mlp_ratio),
            activation=self.activation,
            use_bias=self.use_bias,
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build((None, None, self._dim))
        return layer

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        context: KerasTensor | None = None,
        context_mask: KerasTensor | None = None,
        prefix: ContextCache | None = None,
    ) -> BlockCache:
        """Room for `max_length` tokens behind those of the prefix, and the context's keys and values, computed once."""
        if (self.cross is None) != (context is None):
            wanted = "none" if self.cross is None else "one"
            raise ConfigError("a cache needs a context exactly where there is cross-attention", where=self.name, expected=wanted)
        crossed = None if context is None else self.cross.project_context(self._context(context, context_mask), context_mask)
        if self.attention is None:
            return BlockCache(None, crossed)
        room = self.attention.init_cache(batch_size, max_length)
        if prefix is None:
            return BlockCache(room, crossed)
        self._check_prefix(before=True)
        length = length_of(prefix.key, 2)
        key, value = (
            ops.concatenate([ops.cast(first, rest.dtype), rest], axis=2)
            for first, rest in ((prefix.key, room.key), (prefix.value, room.value))
        )
        mask = ops.ones((ops.shape(prefix.key)[0], length), "bool") if prefix.mask is None else prefix.mask
        return BlockCache(KeyValueCache(key, value, ops.cast(ops.convert_to_tensor(length), "int32")), crossed, mask)

    def read_context(self, context: KerasTensor, context_mask: KerasTensor | None = None) -> BlockCache:
        """The context's keys and values, computed once for many texts that are read whole; a row serves as many of them."""
        if self.cross is None:
            raise ConfigError("a block without cross-attention reads no context", where=self.name, fix="cross_attention=True")
        return BlockCache(None, self.cross.project_context(self._context(context, context_mask), context_mask))

    def project_prefix(self, tokens: KerasTensor, mask: KerasTensor | None = None) -> ContextCache:
        """Keys and values of ``float[B, M, D]`` tokens that others see before them; ``bool[B, M]``, ``True`` = real token."""
        self._check_prefix()
        tokens = without_masked(tokens, mask)
        return self.attention.project_context(self.attention_norm(tokens) if self.norm_first else tokens, mask)

    def prefix_scores(self, tokens: KerasTensor, prefix: ContextCache) -> KerasTensor:
        """How much each of ``float[B, N, D]`` tokens would attend to each of M others: ``float32[B, H, N, M]``."""
        self._check_prefix()
        tokens = self.attention_norm(tokens) if self.norm_first else tokens
        return self.attention(tokens, cache=prefix, return_scores=True, training=False).scores

    def call(
        self,
        tokens: KerasTensor,
        mask: KerasTensor | None = None,
        context: KerasTensor | None = None,
        context_mask: KerasTensor | None = None,
        causal: bool = False,
        cache: BlockCache | None = None,
        prefix: ContextCache | None = None,
        use_context: bool = True,
        return_scores: bool = False,
        return_prefix: bool = False,
        training: bool | None = None,
    ) -> KerasTensor | BlockOutput:
        """Applies the block; see the class."""
        mask = self._check_call(tokens, mask, context if use_context else None, cache, use_context)
        step = cache is not None and (cache.self_attention is not None or self.attention is None)
        if not step and mask is not None:
            # The residual stream, norms and projections multiply by the tokens too: NaN behind the mask ends here.
            tokens = without_masked(tokens, real_tokens(mask))
        itself: Any = AttentionOutput(None, None, None)
        crossed, own = itself, None
        if self.attention is not None:
            inputs = self.attention_norm(tokens) if self.norm_first else tokens
            options = {"return_scores": return_scores, "training": training}
            if cache is not None and cache.self_attention is not None:
                result = self.attention(inputs, context_mask=mask, cache=cache.self_attention, **options)
            else:
                own = self._own(inputs, mask, prefix) if return_prefix or prefix is not None else None
                if own is None or self.kernel == "local":  # whose window needs to know that keys are the tokens' own
                    result = self.attention(inputs, context_mask=mask, causal=causal, **options)
                else:
                    result = self.attention(inputs, causal=causal, cache=_behind(prefix, own), **options)
            itself = _parts(result)
            tokens = self._add("attention", self.attention_norm, tokens, itself.output, training)
        if self.between is not None:
            tokens = self._fed("between", self.between_norm, self.between, tokens, training)
        if self.cross is not None and use_context:
            result = self.cross(
                self.cross_norm(tokens) if self.norm_first else tokens,
                context=self._context(context, context_mask) if cache is None else None,
                context_mask=context_mask,
                cache=None if cache is None else cache.cross_attention,
                return_scores=return_scores,
                training=training,
            )
            crossed = _parts(result)
            tokens = self._add("cross", self.cross_norm, tokens, crossed.output, training)
        if self.feed_forward is not None:
            tokens = self._fed("feed_forward", self.feed_forward_norm, self.feed_forward, tokens, training)
        if cache is None and not return_scores and not return_prefix:
            return tokens
        cache = None if cache is None else cache._replace(self_attention=itself.cache)
        return BlockOutput(tokens, itself.scores, crossed.scores, cache, own if return_prefix else None)

    def _check_call(
        self,
        tokens: KerasTensor,
        mask: KerasTensor | None,
        context: KerasTensor | None,
        cache: BlockCache | None,
        use_context: bool,
    ) -> KerasTensor | None:
        check_tokens(tokens, "tokens", self.name, self._dim)
        crossed = context is not None if cache is None else cache.cross_attention is not None
        if self.cross is not None and use_context and not crossed:
            raise ConfigError(
                "a block with cross-attention got no context", where=self.name, expected="a context, or a cache made of one"
            )
        if self.cross is None and context is not None:
            raise ConfigError(
                "a block without cross-attention got a context", where=self.name, fix="build it with cross_attention=True"
            )
        if cache is None:
            mask = getattr(tokens, "_keras_mask", None) if mask is None else mask
            return checked_mask(mask, "mask", self.name, tokens.shape, tokens.shape[1])
        if cache.self_attention is None:
            return None if self.attention is None else checked_mask(mask, "mask", self.name, tokens.shape, tokens.shape[1])
        room, prefix_mask = cache.self_attention.key, cache.prefix_mask
        if prefix_mask is None:
            return checked_mask(mask, "mask", self.name, tokens.shape, room.shape[2])
        length = length_of(room, 2) - length_of(prefix_mask)
        length = length if isinstance(length, int) else None
        mask = checked_mask(mask, "mask", self.name, tokens.shape, length, ranks=(2,))
        return joined_mask((prefix_mask, prefix_mask), (mask, room[:, 0, length_of(prefix_mask) :]))

    def _own(self, inputs: KerasTensor, mask: KerasTensor | None, prefix: ContextCache | None) -> ContextCache:
        self._check_prefix(before=prefix is not None)
        if mask is not None and len(mask.shape) != 2:
            expected = "bool[batch, tokens]"
            raise ConfigError("the mask does not fit a prefix", where=self.name, expected=expected, found=list(mask.shape))
        return self.attention.project_context(inputs, mask)

    def _check_prefix(self, before: bool = False) -> None:
        if self.attention is None or self.rotary or (before and self.kernel == "local"):
            expected = "self-attention without rotary positions, and without a window"
            raise ConfigError("a prefix needs another block", where=self.name, expected=expected)

    def _context(self, context: KerasTensor | None, mask: KerasTensor | None) -> KerasTensor | None:
        if self.cross_context_norm is None or context is None:
            return context
        mask = checked_mask(mask, "context_mask", self.name, (context.shape[0], None), context.shape[1])
        return self.cross_context_norm(without_masked(context, real_keys(mask)))

    def _fed(self, name: str, norm: Any, layer: FeedForward, tokens: KerasTensor, training: bool | None) -> KerasTensor:
        hidden = layer(norm(tokens) if self.norm_first else tokens, training=training)
        return self._add(name, norm, tokens, hidden, training)

    def _add(self, name: str, norm: Any, tokens: KerasTensor, branch: KerasTensor, training: bool | None) -> KerasTensor:
        branch = self.dropout_layer(branch, training=training)
        if name in self.gains:
            branch = self.gains[name](branch)
        tokens = tokens + self.drop_branch(branch, training=training)
        return tokens if self.norm_first else norm(tokens)

    def compute_mask(self, inputs: KerasTensor, previous_mask: KerasTensor | None) -> KerasTensor | None:
        """The mask goes on with the tokens, unless it is one of the places of a cache."""
        fits = previous_mask is not None and len(previous_mask.shape) == 2 and previous_mask.shape[1] == inputs.shape[1]
        return previous_mask if fits else None

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "num_heads", "mlp_ratio", "self_attention", "cross_attention", "context_norm", "feed_forward_between",
            "num_key_value_heads", "kernel", "chunk_size", "activation", "use_bias", "dropout", "attention_dropout",
            "stochastic_depth", "layer_scale", "query_key_norm", "rotary", "attention_options", "norm_first", "norm_epsilon",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _parts(result: KerasTensor | AttentionOutput) -> AttentionOutput:
    return result if isinstance(result, AttentionOutput) else AttentionOutput(result, None, None)


def _behind(prefix: ContextCache | None, own: ContextCache) -> ContextCache:
    if prefix is None:
        return own
    key, value = (ops.concatenate([ops.cast(a, b.dtype), b], axis=2) for a, b in zip(prefix[:2], own[:2], strict=True))
    return ContextCache(key, value, joined_mask(*((of.mask, of.key[:, 0]) for of in (prefix, own))))
