"""Additive attention, for recurrent decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

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
class AdditiveAttention(keras.layers.Layer):
    """``context = Σ_s softmax_s(vᵀ tanh(W q + U m_s + b)) m_s``.

    With several heads each has its own part of v, W, U and of the memory's features. Memory is ``T · S · units``: for a decoder
    that asks step by step. (Luong's "concat" is this.)

    Args:
        units: Width of the comparison, A. Default: the query's.
        num_heads: Heads, which divide A and, if more than 1, the memory's width. Default 1.

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
        ConfigError: If the heads do not divide, or rank, width or dtype of query, memory or mask is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import AdditiveAttention
        >>> layer, memory = AdditiveAttention(units=4), np.ones((2, 5, 6), "float32")
        >>> context, weights = layer(np.ones((2, 3), "float32"), memory)
        >>> tuple(context.shape), tuple(weights.shape)
        ((2, 6), (2, 5))
        >>> once = layer.project_memory(memory)
        >>> tuple(layer(np.ones((2, 7, 3), "float32"), projected=once).weights.shape)
        (2, 7, 5)

    Source: Bahdanau et al. 2015 (arXiv:1409.0473), section 3.1 and A.1.2.
    """

    def __init__(self, *, units: int | None = None, num_heads: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.num_heads = num_heads
        check_heads(num_heads, {} if units is None else {"units": units}, self.name)

    def build(self, query_shape: Sequence[int | None], memory_shape: Sequence[int | None]) -> None:
        """Builds both projections and v for the widths of query and memory."""
        self._query_dim, self._memory_dim = int(query_shape[-1] or 0), int(memory_shape[-1] or 0)
        units = self.units or self._query_dim
        check_heads(self.num_heads, {"units": units}, self.name)
        if self.num_heads > 1:
            check_heads(self.num_heads, {"the memory's width": self._memory_dim}, self.name)
        self.query_projection = keras.layers.Dense(units, dtype=self.dtype_policy, name="query")
        self.memory_projection = keras.layers.Dense(units, use_bias=False, dtype=self.dtype_policy, name="memory")
        self.query_projection.build((None, self._query_dim))
        self.memory_projection.build((None, self._memory_dim))
        shape = (self.num_heads, units // self.num_heads)
        self.energy = self.add_weight(shape=shape, initializer="glorot_uniform", name="energy")
        self.built = True

    def project_memory(self, memory: KerasTensor, memory_mask: KerasTensor | None = None) -> ProjectedMemory:
        """What is the same at every step of a decoder; memory and mask are those of the call."""
        memory, mask = checked_memory(memory, memory_mask, self.name, self._memory_dim)
        key, value = self.memory_projection(memory), ops.cast(memory, self.compute_dtype)
        return ProjectedMemory(split_heads(key, self.num_heads), split_heads(value, self.num_heads), mask)

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
        queries = split_heads(self.query_projection(queries_of(query, self.name, self._query_dim)), self.num_heads)
        hidden = ops.tanh(queries[:, :, :, None] + projected.key[:, :, None])
        logits = ops.sum(hidden * ops.cast(self.energy, hidden.dtype)[:, None, None], axis=-1)
        return as_asked(*mix(logits, projected, keep), query.shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "units": self.units, "num_heads": self.num_heads}
