"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import KerasTensor, ops

from mmfusion.layers.kernels.fused import fused_attention
from mmfusion.layers.kernels.soft_cap import soft_cap
from mmfusion.layers.kernels.softmax import softmax_over_keys
from mmfusion.layers.kernels.tiled import tiled_attention
from mmfusion.layers.kernels.tiling import MASKED, Tile, on_processor
from mmfusion.layers.masks import AttentionMask, length_of

# Scores of one example: fewer are not worth a loop.
FEW = 2**18
# Queries of one step of decoding, at most: those of all beams that share an image.
FEW_QUERIES = 16
# Scores that a training step keeps for the gradient of one layer, 256 MiB in float32. With those of 577 tokens computed again, a
# step was slower than with Keras's layer, which keeps them too (benchmarks/attention.py, two cores with AVX-512).
KEPT = 2**26
# The same of one example, where the batch is not known: as if it were of 128.
KEPT_OF_ONE = KEPT // 128
# Scores of one tile: more leave the cache, and the allocator gives their memory back each time.
MANY = 2**22


def attention_weights(
    query: KerasTensor, key: KerasTensor, mask: AttentionMask | None = None, logit_cap: float | None = None
) -> KerasTensor:
    """``softmax(Q Kᵀ / √d)`` in float32; masked keys get exactly 0, and so does a row without any key.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, Hkv, S, d]``, Hkv a divisor of H; finite behind the mask too.
        mask: Which keys a query may attend to. Default: all.
        logit_cap: See `soft_cap`. Default: none.

    Returns:
        ``float32[B, H, T, S]``.
    """
    scale, key = query.shape[-1] ** -0.5, repeated(key, query.shape[1])
    # A step of decoding reads its keys where they are; for many queries a transposed copy pays.
    few = isinstance(query.shape[2], int) and query.shape[2] <= FEW_QUERIES
    product = ops.einsum("bhtd,bhsd->bhts", query * scale, key) if few else ops.matmul(query * scale, ops.swapaxes(key, -1, -2))
    logits = soft_cap(ops.cast(product, "float32"), logit_cap)
    allowed = None if mask is None else mask.allowed(ops.arange(length_of(key, 2), dtype="int32"))
    if allowed is None:
        return softmax_over_keys(logits)
    weights = softmax_over_keys(ops.where(allowed, logits, MASKED))
    # Beside a key that is seen, the weight of others is 0 as it is.
    return weights if mask is not None and mask.never_empty else ops.where(allowed, weights, 0.0)


def exact_attention(
    query: KerasTensor,
    key: KerasTensor,
    value: KerasTensor,
    mask: AttentionMask | None = None,
    drop: Callable[[KerasTensor], KerasTensor] | None = None,
    logit_cap: float | None = None,
    training: bool | None = None,
) -> KerasTensor:
    """``softmax(Q Kᵀ / √d) V``, the keys of a query all at once.

    On a processor under TensorFlow, and where T · S scores are many: as many queries and heads at a time as its cache holds well,
    and the gradient computes their weights again; in training only where there are too many to keep. On JAX and torch: by
    `fused_attention`, where that is the same. Else, and with `drop`: by the formula, in memory that grows with H · T · S.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, Hkv, S, d]``, Hkv a divisor of H; finite behind the mask too, like `value`.
        value: ``float[B, Hkv, S, d]``.
        mask: Which keys a query may attend to. Default: all.
        drop: Dropout of the weights. Default: none.
        logit_cap: See `soft_cap`. Default: none.
        training: Whether up to `KEPT` weights may be kept for the gradient. There is one either way.

    Returns:
        ``float[B, H, T, d]``; zeros for a query without any key.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), equation 1.
    """
    if drop is None:
        output = fused_attention(query, key, value, mask, logit_cap)
        if output is not None:
            return output
        batch_size, heads, rows, _ = query.shape
        length, shared = key.shape[2], heads // key.shape[1]
        if None not in (rows, length) and not _is_few(batch_size, heads * rows * length, training) and on_processor():
            queries = None if shared * rows * length <= MANY else max(MANY // (shared * length), 1)
            return tiled_attention(query, key, value, mask, Tile.of(query, key, queries), logit_cap)
        if training and logit_cap is None and on_processor():
            return _weights_kept(query, repeated(key, heads), repeated(value, heads), mask)
    weights = ops.cast(attention_weights(query, key, mask, logit_cap), value.dtype)
    return ops.matmul(weights if drop is None else drop(weights), repeated(value, query.shape[1]))


def _weights_kept(query: KerasTensor, key: KerasTensor, value: KerasTensor, mask: AttentionMask | None) -> KerasTensor:
    """The formula, ``O = P V``, with a gradient that reads the weights once less than the backend's of a softmax.

    With ``Δ = Σ dO ∘ O`` of each query: ``dS = P ∘ (dO Vᵀ - Δ)``.
    """

    @ops.custom_gradient
    def attend(q: KerasTensor, k: KerasTensor, v: KerasTensor) -> Any:
        weights = attention_weights(q, k, mask)
        output = ops.matmul(ops.cast(weights, v.dtype), v)

        def gradient(*arguments: Any, upstream: Any = None) -> Any:
            given = ops.cast(arguments[-1] if upstream is None else upstream, q.dtype)
            delta = ops.sum(ops.cast(given, "float32") * ops.cast(output, "float32"), axis=-1, keepdims=True)
            d_weights = ops.cast(ops.matmul(given, ops.swapaxes(v, -1, -2)), "float32")
            d_logits = ops.cast((d_weights - delta) * weights, q.dtype)
            scale = q.shape[-1] ** -0.5
            dq = ops.matmul(d_logits, k) * scale
            dk = ops.matmul(ops.swapaxes(d_logits, -1, -2), q * scale)
            return dq, dk, ops.matmul(ops.swapaxes(ops.cast(weights, v.dtype), -1, -2), given)

        return output, gradient

    return attend(query, key, value)


def _is_few(batch_size: int | None, scores: int, training: bool | None) -> bool:
    """Whether so many scores of an example are few enough for the formula."""
    if scores <= FEW or not training:
        return scores <= FEW
    return scores <= KEPT_OF_ONE if batch_size is None else batch_size * scores <= KEPT


def repeated(x: KerasTensor, heads: int) -> KerasTensor:
    """Key or value heads, ``[B, Hkv, S, d]``, each as often as query heads share it: ``[B, H, S, d]``."""
    return x if x.shape[1] == heads else ops.repeat(x, heads // x.shape[1], axis=1)
