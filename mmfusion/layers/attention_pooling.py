"""A token stream into one vector, or a few, by attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.attention import Attention
from mmfusion.layers.attention_output import AttentionOutput
from mmfusion.layers.checks import check_size, check_tokens, check_width, checked_mask
from mmfusion.layers.feed_forward import FeedForward
from mmfusion.layers.masks import real_keys, without_masked


@keras.saving.register_keras_serializable(package="mmfusion")
class AttentionPooling(keras.layers.Layer):
    """A learned query attends to all tokens: ``Attention(query, tokens)``; zeros for an example without a real token.

    With `norm`, ``Attention(Norm(query), Norm(tokens))``; with `mlp_ratio`, ``x += FeedForward(Norm(x))`` follows; with
    `output_norm`, ``Norm(x)`` at the end.

    - SigLIP's head: one query, ``mlp_ratio=4``.
    - CoCa's poolers: ``num_queries=256, norm=True`` for the captioning decoder, and after it (a cascade) or beside it another
      ``AttentionPooling(norm=True)`` for the contrastive embedding.

    Args:
        num_heads: Attention heads.
        num_queries: Learned queries; with more than one, their outputs are kept apart. Default 1.
        dim: Width of the queries and of what comes out, D. Default: the tokens' width.
        norm: Whether queries and tokens are normalised first. Default False.
        mlp_ratio: Hidden width of a residual feed-forward part after the attention, over D; None has none. Default None.
        output_norm: Whether what comes out is normalised (open_clip's CoCa). Default False.
        kernel: See `Attention`. Default ``"exact"``.
        attention_dropout: Rate of attention weights. Default 0.
        activation: Of the feed-forward part, see `FeedForward`. Default ``"gelu"``.
        norm_epsilon: Of the normalisations. Default 1e-6.

    Call arguments:
        tokens: ``float[B, N, Dt]``.
        tokens_mask: ``bool[B, N]``, ``True`` = real token. Default: all real, or the tokens' own Keras mask.
        return_scores: Whether to return the scores too. Default False.
        training: Whether dropout is active.

    Returns:
        ``float[B, D]``, or ``float[B, num_queries, D]`` for several queries; with `return_scores` an `AttentionOutput` of it and
        of ``float32[B, H, num_queries, N]``.

    Raises:
        ConfigError: If a size is impossible, the heads do not divide the width, or rank, width or dtype of tokens or mask is
            wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import AttentionPooling
        >>> tuple(AttentionPooling(num_heads=2)(np.ones((2, 5, 8), "float32")).shape)
        (2, 8)

    Source: Lee et al., Set Transformer, 2019 (arXiv:1810.00825), section 3.2; with a feed-forward part: Zhai et al. 2022
    (arXiv:2106.04560), as in SigLIP (arXiv:2303.15343); several queries: Yu et al., CoCa, 2022 (arXiv:2205.01917), section 3.2.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        num_queries: int = 1,
        dim: int | None = None,
        norm: bool = False,
        mlp_ratio: float | None = None,
        output_norm: bool = False,
        kernel: str = "exact",
        attention_dropout: float = 0.0,
        activation: str = "gelu",
        norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_queries = num_queries
        self.dim = dim
        self.norm = norm
        self.mlp_ratio = mlp_ratio
        self.output_norm = output_norm
        self.kernel = kernel
        self.attention_dropout = attention_dropout
        self.activation = activation
        self.norm_epsilon = norm_epsilon
        self.supports_masking = True
        for name, size in (("num_queries", num_queries), ("dim", dim)):
            if size is not None:
                check_size(size, name, self.name)
        if mlp_ratio is not None and mlp_ratio <= 0:
            raise ConfigError("impossible mlp_ratio", where=self.name, expected="more than 0, or None", found=mlp_ratio)
        self.attention = Attention(
            num_heads=num_heads, kernel=kernel, dropout=attention_dropout, dtype=self.dtype_policy, name="attention"
        )

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        """Builds the queries and all parts for the width of the tokens."""
        self._tokens_dim = check_width(tokens_shape, "tokens", self.name)
        self._dim = dim = self._tokens_dim if self.dim is None else self.dim
        self.query = self.add_weight(
            shape=(self.num_queries, dim), initializer=keras.initializers.TruncatedNormal(stddev=0.02), name="query"
        )
        queries_shape, tokens_shape = (None, self.num_queries, dim), (None, None, self._tokens_dim)
        self.attention.build(queries_shape, tokens_shape)
        if self.norm:
            self.query_norm, self.tokens_norm = self._norm("query_norm"), self._norm("tokens_norm")
            self.query_norm.build(queries_shape)
            self.tokens_norm.build(tokens_shape)
        if self.mlp_ratio is not None:
            self.feed_forward_norm = self._norm("feed_forward_norm")
            self.feed_forward_norm.build(queries_shape)
            self.feed_forward = FeedForward(
                hidden_dim=int(dim * self.mlp_ratio),
                activation=self.activation,
                dtype=self.dtype_policy,
                name="feed_forward",
            )
            self.feed_forward.build(queries_shape)
        if self.output_norm:
            self.pooled_norm = self._norm("output_norm")
            self.pooled_norm.build(queries_shape)
        self.built = True

    def _norm(self, name: str) -> keras.layers.LayerNormalization:
        return keras.layers.LayerNormalization(epsilon=self.norm_epsilon, dtype=self.dtype_policy, name=name)

    def call(
        self,
        tokens: KerasTensor,
        tokens_mask: KerasTensor | None = None,
        return_scores: bool = False,
        training: bool | None = None,
    ) -> KerasTensor | AttentionOutput:
        """Pools; see the class."""
        check_tokens(tokens, "tokens", self.name, self._tokens_dim)
        # The parts around the attention need it too, so it cannot be left to Keras to hand it on.
        tokens_mask = getattr(tokens, "_keras_mask", None) if tokens_mask is None else tokens_mask
        mask = checked_mask(tokens_mask, "tokens_mask", self.name, (tokens.shape[0], self.num_queries), tokens.shape[1])
        queries = ops.broadcast_to(self.query[None], (ops.shape(tokens)[0], self.num_queries, self._dim))
        if self.norm:
            queries, tokens = self.query_norm(queries), self.tokens_norm(without_masked(tokens, real_keys(mask)))
        result = self.attention(queries, tokens, context_mask=mask, return_scores=return_scores, training=training)
        pooled, scores = (result.output, result.scores) if return_scores else (result, None)
        if self.mlp_ratio is not None:
            pooled = pooled + self.feed_forward(self.feed_forward_norm(pooled), training=training)
        if self.output_norm:
            pooled = self.pooled_norm(pooled)
        if mask is not None and (self.output_norm or self.mlp_ratio is not None):
            pooled = without_masked(pooled, ops.any(mask, axis=-1, keepdims=len(mask.shape) == 2))
        pooled = pooled[:, 0] if self.num_queries == 1 else pooled
        return AttentionOutput(pooled, scores, None) if return_scores else pooled

    def compute_mask(self, inputs: KerasTensor, previous_mask: KerasTensor | None = None) -> None:
        """None: the mask of the tokens ends here."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "num_heads", "num_queries", "dim", "norm", "mlp_ratio", "output_norm", "kernel", "attention_dropout", "activation",
            "norm_epsilon",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
