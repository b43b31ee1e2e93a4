"""The fused attention of the backends that have one."""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

from mmfusion.layers.masks import AttentionMask, length_of


def fused_attention(
    query: KerasTensor,
    key: KerasTensor,
    value: KerasTensor,
    mask: AttentionMask | None = None,
    logit_cap: float | None = None,
    *,
    linear: bool = False,
) -> KerasTensor | None:
    """``softmax(Q Kᵀ / √d) V`` by `keras.ops.dot_product_attention`, or None where that would not be the same or gain nothing.

    JAX has cuDNN's kernel for half precision on a GPU, and what XLA makes of the formula elsewhere; torch has kernels for all.
    None on TensorFlow, which has none, and with soft caps, which Keras does not pass on to them.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, Hkv, S, d]``, Hkv a divisor of H; finite behind the mask too, like `value`.
        value: ``float[B, Hkv, S, d]``.
        mask: Which keys a query may attend to. Default: all.
        logit_cap: See `soft_cap`. Default: none.
        linear: Whether memory must not grow with T · S: None, then, where the kernel, or a mask for it, would. Default False.

    Returns:
        ``float[B, H, T, d]``, zeros for a query without any key; or None.
    """
    backend = keras.backend.backend()
    if backend not in ("jax", "torch") or logit_cap is not None:
        return None
    rows, length = length_of(query, 2), length_of(key, 2)
    causal = mask is not None and mask.causal and rows == length
    allowed = None if mask is None or causal else mask.allowed(ops.arange(length, dtype="int32"))
    if linear and allowed is not None:
        return None
    if allowed is not None:
        # cuDNN broadcasts examples and heads alone.
        allowed = ops.broadcast_to(allowed, (*ops.shape(allowed)[:2], rows, length))
    flash = _flash(backend, allowed, rows, length, linear)
    if linear and flash is False:
        # Without a kernel Keras computes by the formula.
        return None
    if backend == "torch" and key.shape[1] == 1:
        # Keras repeats heads that are shared but one, and for heads that differ in number torch computes by the formula.
        key, value = (ops.repeat(x, query.shape[1], axis=1) for x in (key, value))
    query, key, value = (ops.swapaxes(x, 1, 2) for x in (query, key, value))
    try:
        output = ops.dot_product_attention(
            query, key, value, mask=allowed, scale=query.shape[-1] ** -0.5, is_causal=causal, flash_attention=flash
        )
    except (ImportError, NotImplementedError, RuntimeError, ValueError):
        if flash:
            return None
        raise
    output = ops.swapaxes(output, 1, 2)
    sees_any = None if allowed is None else ops.any(allowed, axis=-1, keepdims=True)
    return output if sees_any is None else ops.where(sees_any, output, ops.zeros_like(output))


def _flash(backend: str, allowed: KerasTensor | None, rows: int, length: int, linear: bool) -> bool | None:
    """What Keras is asked for: its flash kernel, none, or (None) what it thinks best."""
    if backend == "torch":
        return None
    if not keras.distribution.list_devices()[0].startswith(("gpu", "cuda")):
        # On a TPU Keras 3.15 has a kernel that is always causal, and takes the mask of the first example for all.
        return False
    if allowed is not None and (rows % 2 or length % 2):
        # cuDNN has no gradient there, which shows only when one is asked for.
        return False
    return True if linear else None
