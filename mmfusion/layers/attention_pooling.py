"""A token stream into one vector, by attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.attention import Attention
from mmfusion.layers.checks import check_tokens, check_width


@keras.saving.register_keras_serializable(package="mmfusion")
class AttentionPooling(keras.layers.Layer):
    """A learned query attends to all tokens: ``Attention(query, tokens)``; zeros for an example without a real token.

    Args:
        num_heads: Attention heads.
        num_queries: Learned queries; with more than one, their outputs are kept apart. Default 1.

    Call arguments:
        tokens: ``float[B, N, D]``.
        tokens_mask: ``bool[B, N]``, ``True`` = real token. Default: all real, or the tokens' own Keras mask.

    Returns:
        ``float[B, D]``, or ``float[B, num_queries, D]`` for several queries.

    Raises:
        ConfigError: If the heads do not divide the width, or rank, width or dtype of tokens or mask is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import AttentionPooling
        >>> tuple(AttentionPooling(num_heads=2)(np.ones((2, 5, 8), "float32")).shape)
        (2, 8)

    Source: Lee et al., Set Transformer, 2019 (arXiv:1810.00825), section 3.2.
    """

    def __init__(self, *, num_heads: int, num_queries: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_queries = num_queries
        self.supports_masking = True
        if num_queries < 1:
            raise ConfigError("impossible num_queries", where=self.name, expected="at least 1", found=num_queries)
        self.attention = Attention(num_heads=num_heads, dtype=self.dtype_policy, name="attention")

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        """Builds the queries and the attention for the width of the tokens."""
        self._dim = dim = check_width(tokens_shape, "tokens", self.name)
        self.query = self.add_weight(
            shape=(self.num_queries, dim), initializer=keras.initializers.TruncatedNormal(stddev=0.02), name="query"
        )
        self.attention.build((None, self.num_queries, dim), tokens_shape)
        self.built = True

    def call(self, tokens: KerasTensor, tokens_mask: KerasTensor | None = None) -> KerasTensor:
        """Pools; see the class."""
        check_tokens(tokens, "tokens", self.name, self._dim)
        queries = ops.broadcast_to(self.query[None], (ops.shape(tokens)[0], self.num_queries, self._dim))
        pooled = self.attention(queries, tokens, context_mask=tokens_mask)
        return pooled[:, 0] if self.num_queries == 1 else pooled

    def compute_mask(self, inputs: KerasTensor, previous_mask: KerasTensor | None = None) -> None:
        """None: the mask of the tokens ends here."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "num_heads": self.num_heads, "num_queries": self.num_queries}
