"""Scaled dot-product attention, all scores at once."""

from __future__ import annotations

from collections.abc import Callable

from keras import KerasTensor, ops

from mmfusion.layers.kernels.soft_cap import soft_cap
from mmfusion.layers.masks import AttentionMask, length_of

MASKED = -1e30


def attention_weights(
    query: KerasTensor, key: KerasTensor, mask: AttentionMask | None = None, logit_cap: float | None = None
) -> KerasTensor:
    """``softmax(Q Kᵀ / √d)`` in float32; masked keys get exactly 0, and so does a row without any key.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, H, S, d]``, finite behind the mask too.
        mask: Which keys a query may attend to. Default: all.
        logit_cap: See `soft_cap`. Default: none.

    Returns:
        ``float32[B, H, T, S]``.
    """
    scale = query.shape[-1] ** -0.5
    logits = soft_cap(ops.cast(ops.matmul(query * scale, ops.swapaxes(key, -1, -2)), "float32"), logit_cap)
    allowed = None if mask is None else mask.allowed(ops.arange(length_of(key, 2), dtype="int32"))
    # One key alone is no mistake here, but Keras warns of it unless the axis is a tuple.
    axis = (3,) if logits.shape[-1] == 1 else -1
    if allowed is None:
        return ops.softmax(logits, axis=axis)
    weights = ops.softmax(ops.where(allowed, logits, MASKED), axis=axis)
    return ops.where(allowed, weights, 0.0)


def exact_attention(
    query: KerasTensor,
    key: KerasTensor,
    value: KerasTensor,
    mask: AttentionMask | None = None,
    drop: Callable[[KerasTensor], KerasTensor] | None = None,
    logit_cap: float | None = None,
) -> tuple[KerasTensor, KerasTensor]:
    """``softmax(Q Kᵀ / √d) V`` and its weights; memory grows with T · S.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, H, S, d]``, finite behind the mask too, like `value`.
        value: ``float[B, H, S, d]``.
        mask: Which keys a query may attend to. Default: all.
        drop: Dropout of the weights; the weights returned are those before it. Default: none.
        logit_cap: See `soft_cap`. Default: none.

    Returns:
        ``float[B, H, T, d]`` and ``float32[B, H, T, S]``.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), equation 1.
    """
    weights = attention_weights(query, key, mask, logit_cap)
    used = ops.cast(weights, value.dtype)
    return ops.matmul(used if drop is None else drop(used), value), weights
