"""Multiplicative attention, for recurrent decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.memory_attention import (
    MemoryOutput,
    ProjectedMemory,
    as_asked,
    check_heads,
    checked_memory,
    mix,
    queries_of,
    split_heads,
)


@keras.saving.register_keras_serializable(package="mmfusion")
class MultiplicativeAttention(keras.layers.Layer):
    """``context = Σ_s softmax_s(qᵀ W m_s) m_s``, or with ``score="dot"`` ``qᵀ m_s``.

    With several heads each has its own part of the features of query and memory. (Luong's "concat" is `AdditiveAttention`.)

    Args:
        score: ``"general"`` or ``"dot"``, which needs a query as wide as the memory. Default ``"general"``.
        scaled: Whether logits are divided by the root of the width of a head. Default False.
        num_heads: Heads, which divide the query's width and, if more than 1, the memory's. Default 1.

    Call arguments:
        query: ``float[B, D]``, of one step, or ``float[B, T, D]``.
        memory: ``float[B, S, Dm]``; None with `projected`.
        memory_mask: ``bool[B, S]``, ``True`` = real token. Default: all real. With `projected` its own mask counts.
        projected: A `ProjectedMemory` of `project_memory`, in place of the memory.
        keep: ``float[B, H, T, S]`` or less, multiplies the weights before they mix: dropout, drawn before a loop. Default: none.

    Returns:
        A `MemoryOutput` of the context, ``float[B, Dm]`` or ``float[B, T, Dm]``, and the weights; both are zeros for an example
        with nothing to attend to.

    Raises:
        ConfigError: If the score is unknown, ``"dot"`` meets different widths, the heads do not divide, or rank, width or dtype
            of query, memory or mask is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import MultiplicativeAttention
        >>> layer = MultiplicativeAttention()
        >>> context, weights = layer(np.ones((2, 3), "float32"), np.ones((2, 5, 6), "float32"))
        >>> tuple(context.shape), tuple(weights.shape)
        ((2, 6), (2, 5))

    Source: Luong et al. 2015 (arXiv:1508.04025), equations 7 and 8.
    """

    def __init__(self, *, score: str = "general", scaled: bool = False, num_heads: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.score = score
        self.scaled = scaled
        self.num_heads = num_heads
        check_heads(num_heads, {}, self.name)
        if score not in ("general", "dot"):
            fix = "Luong's 'concat' is AdditiveAttention" if score == "concat" else None
            raise ConfigError("unknown score", where=self.name, expected="'general' or 'dot'", found=repr(score), fix=fix)

    def build(self, query_shape: Sequence[int | None], memory_shape: Sequence[int | None]) -> None:
        """Builds the projection for the widths of query and memory."""
        self._query_dim, self._memory_dim = int(query_shape[-1] or 0), int(memory_shape[-1] or 0)
        check_heads(self.num_heads, {"the query's width": self._query_dim}, self.name)
        if self.num_heads > 1:
            check_heads(self.num_heads, {"the memory's width": self._memory_dim}, self.name)
        self.memory_projection: Any = None
        if self.score == "general":
            self.memory_projection = keras.layers.Dense(self._query_dim, use_bias=False, dtype=self.dtype_policy, name="memory")
            self.memory_projection.build((None, self._memory_dim))
        elif self._query_dim != self._memory_dim:
            raise ConfigError(
                "score='dot' needs a query as wide as the memory",
                where=self.name,
                expected=f"a query of width {self._memory_dim}",
                found=self._query_dim,
                fix="use score='general'",
            )
        self.built = True

    def project_memory(self, memory: KerasTensor, memory_mask: KerasTensor | None = None) -> ProjectedMemory:
        """What is the same at every step of a decoder; memory and mask are those of the call."""
        memory, mask = checked_memory(memory, memory_mask, self.name, self._memory_dim)
        memory = ops.cast(memory, self.compute_dtype)
        key = memory if self.memory_projection is None else self.memory_projection(memory)
        return ProjectedMemory(split_heads(key, self.num_heads), split_heads(memory, self.num_heads), mask)

    def call(
        self,
        query: KerasTensor,
        memory: KerasTensor | None = None,
        memory_mask: KerasTensor | None = None,
        projected: ProjectedMemory | None = None,
        keep: KerasTensor | None = None,
    ) -> MemoryOutput:
        """Attends; see the class."""
        projected = self.project_memory(memory, memory_mask) if projected is None else projected
        queries = split_heads(queries_of(query, self.name, self._query_dim), self.num_heads)
        queries = queries * queries.shape[-1] ** -0.5 if self.scaled else queries
        logits = ops.matmul(queries, ops.swapaxes(projected.key, -1, -2))
        return as_asked(*mix(logits, projected, keep), query.shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "score": self.score, "scaled": self.scaled, "num_heads": self.num_heads}
