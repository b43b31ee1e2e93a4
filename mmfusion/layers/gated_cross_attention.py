"""A look at a context that starts out closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.attention import Attention
from mmfusion.layers.cache import ContextCache
from mmfusion.layers.checks import check_tokens, check_width, checked_mask
from mmfusion.layers.feed_forward import FeedForward
from mmfusion.layers.masks import without_masked
from mmfusion.layers.stochastic_depth import StochasticDepth

NORMS = {"layer": keras.layers.LayerNormalization, "rms": keras.layers.RMSNormalization}


class GatedOutput(NamedTuple):
    """What gated cross-attention returns when scores are asked for.

    Attributes:
        tokens: ``float[B, N, D]``.
        scores: ``float32[B, H, N, S]``.
    """

    tokens: KerasTensor
    scores: KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class GatedCrossAttention(keras.layers.Layer):
    """``x += tanh(a) · Attention(Norm(x), context); x += tanh(b) · FeedForward(Norm(x))``, with a = b = 0 at first.

    So it is the identity until training opens its gates: put between the layers of a trained language model, it changes
    nothing at the start, and these layers can stay frozen.

    Args:
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward part over D. Default 4.
        num_key_value_heads: See `Attention`.
        kernel: See `Attention`. Default ``"exact"``.
        activation: Of the feed-forward part. Default ``"gelu"``.
        dropout: Rate after each branch. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches. Default 0.
        use_bias: Whether attention and feed-forward have biases. Default True.
        gated_feed_forward: See ``gated`` of `FeedForward`. Default False.
        norm: ``"layer"``, or ``"rms"`` by root mean square. Default ``"layer"``.
        norm_epsilon: Of the normalisations. Default 1e-6.
        initial_gate: Start of both gates, a and b. Default 0.

    Call arguments:
        tokens: ``float[B, N, D]``.
        mask: ``bool[B, N]``, ``True`` = real token; others come out finite. Default: all real, or the tokens' own Keras mask.
        context: ``float[B, S, Dc]``; with a cache, the cache's counts.
        context_mask: ``bool[B, S]`` (or ``bool[B, N, S]``), ``True`` = real token. Default: all real, or the context's own Keras
            mask.
        cache: A `ContextCache` from `project_context`, the context's keys and values.
        return_scores: Whether to return attention scores. Default False.
        training: Whether dropout is active.

    Returns:
        ``float[B, N, D]``, or a `GatedOutput` with `return_scores`.

    Raises:
        ConfigError: If a constructor argument is impossible, or rank, width or dtype of tokens, context or masks is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import GatedCrossAttention
        >>> text, image = np.random.normal(size=(2, 3, 8)).astype("float32"), np.ones((2, 5, 6), "float32")
        >>> bool((GatedCrossAttention(num_heads=2)(text, context=image).numpy() == text).all())
        True

    Source: Alayrac et al., Flamingo, 2022 (arXiv:2204.14198), section 3.1.2 and figure 4.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_key_value_heads: int | None = None,
        kernel: str = "exact",
        activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        use_bias: bool = True,
        gated_feed_forward: bool = False,
        norm: str = "layer",
        norm_epsilon: float = 1e-6,
        initial_gate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.num_key_value_heads = num_key_value_heads
        self.kernel = kernel
        self.activation = activation
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.use_bias = use_bias
        self.gated_feed_forward = gated_feed_forward
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.initial_gate = initial_gate
        self.supports_masking = True
        if norm not in NORMS:
            raise ConfigError("unknown norm", where=self.name, expected=" or ".join(NORMS), found=repr(norm))
        self.attention_norm, self.feed_forward_norm = (
            NORMS[norm](epsilon=norm_epsilon, dtype=self.dtype_policy, name=f"{part}_norm")
            for part in ("attention", "feed_forward")
        )
        self.attention = Attention(
            num_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            kernel=kernel,
            dropout=attention_dropout,
            use_bias=use_bias,
            dtype=self.dtype_policy,
            name="cross_attention",
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.drop_branch = StochasticDepth(rate=stochastic_depth, dtype=self.dtype_policy, name="stochastic_depth")

    def build(self, tokens_shape: Sequence[int | None], context_shape: Sequence[int | None] | None = None) -> None:
        """Builds all parts for the widths of tokens and context."""
        self._dim = dim = check_width(tokens_shape, "tokens", self.name)
        tokens_shape = (None, None, dim)
        self.attention_norm.build(tokens_shape)
        self.attention.build(tokens_shape, tokens_shape if context_shape is None else context_shape)
        self.feed_forward_norm.build(tokens_shape)
        self.feed_forward = FeedForward(
            hidden_dim=int(dim * self.mlp_ratio),
            activation=self.activation,
            use_bias=self.use_bias,
            gated=self.gated_feed_forward,
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        self.feed_forward.build(tokens_shape)
        self.attention_gate, self.feed_forward_gate = (
            self.add_weight(shape=(), initializer=keras.initializers.Constant(self.initial_gate), name=f"{branch}_gate")
            for branch in ("attention", "feed_forward")
        )
        self.built = True

    def project_context(self, context: KerasTensor, context_mask: KerasTensor | None = None) -> ContextCache:
        """Keys and values of a context, computed once for many calls; context and mask are those of the call."""
        return self.attention.project_context(context, context_mask)

    def call(
        self,
        tokens: KerasTensor,
        mask: KerasTensor | None = None,
        context: KerasTensor | None = None,
        context_mask: KerasTensor | None = None,
        cache: ContextCache | None = None,
        return_scores: bool = False,
        training: bool | None = None,
    ) -> KerasTensor | GatedOutput:
        """Looks at the context; see the class."""
        check_tokens(tokens, "tokens", self.name, self._dim)
        if (context is None) == (cache is None):
            raise ConfigError("a look at a context needs one", where=self.name, expected="a context, or a cache made of one")
        mask = getattr(tokens, "_keras_mask", None) if mask is None else mask
        mask = checked_mask(mask, "mask", self.name, tokens.shape, tokens.shape[1], ranks=(2,))
        tokens = without_masked(tokens, mask)
        result = self.attention(
            self.attention_norm(tokens),
            context=context,
            context_mask=context_mask,
            cache=cache,
            return_scores=return_scores,
            training=training,
        )
        attended = result if cache is None and not return_scores else result.output
        tokens = tokens + self._gated(self.attention_gate, attended, training)
        hidden = self.feed_forward(self.feed_forward_norm(tokens), training=training)
        tokens = tokens + self._gated(self.feed_forward_gate, hidden, training)
        return GatedOutput(tokens, result.scores) if return_scores else tokens

    def _gated(self, gate: KerasTensor, branch: KerasTensor, training: bool | None) -> KerasTensor:
        branch = self.dropout_layer(branch, training=training)
        return self.drop_branch(ops.tanh(ops.cast(gate, branch.dtype)) * branch, training=training)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "num_heads", "mlp_ratio", "num_key_value_heads", "kernel", "activation", "dropout", "attention_dropout",
            "stochastic_depth", "use_bias", "gated_feed_forward", "norm", "norm_epsilon", "initial_gate",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
