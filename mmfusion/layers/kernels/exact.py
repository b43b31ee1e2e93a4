"""Scaled dot-product attention, all scores at once."""

from __future__ import annotations

from keras import KerasTensor, ops

MASKED = -1e30


def attention_weights(query: KerasTensor, key: KerasTensor, mask: KerasTensor | None) -> KerasTensor:
    """``softmax(Q Kᵀ / √d)`` in float32; masked keys get exactly 0, and so does a row without any key.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, H, S, d]``.
        mask: ``bool``, broadcastable to ``[B, H, T, S]``, ``True`` = may be attended to.

    Returns:
        ``float32[B, H, T, S]``.
    """
    scale = query.shape[-1] ** -0.5
    logits = ops.cast(ops.matmul(query * scale, ops.swapaxes(key, -1, -2)), "float32")
    if mask is None:
        return ops.softmax(logits, axis=-1)
    weights = ops.softmax(ops.where(mask, logits, MASKED), axis=-1)
    return ops.where(mask, weights, 0.0)


def exact_attention(
    query: KerasTensor, key: KerasTensor, value: KerasTensor, mask: KerasTensor | None
) -> tuple[KerasTensor, KerasTensor]:
    """Output ``float[B, H, T, d]`` and weights ``float32[B, H, T, S]``; memory grows with T · S."""
    weights = attention_weights(query, key, mask)
    return ops.matmul(ops.cast(weights, value.dtype), value), weights
