"""Streaming-softmax attention: memory grows with the sequence, not with its square."""

from __future__ import annotations

from typing import Any

from keras import KerasTensor, ops

from mmfusion.layers.kernels.exact import MASKED
from mmfusion.layers.kernels.soft_cap import soft_cap
from mmfusion.layers.masks import AttentionMask, both, length_of


def chunked_attention(
    query: KerasTensor,
    key: KerasTensor,
    value: KerasTensor,
    mask: AttentionMask | None = None,
    chunk_size: int = 512,
    logit_cap: float | None = None,
) -> KerasTensor:
    """Exact attention over keys in chunks, with a running maximum and sum; the gradient recomputes the weights.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, H, S, d]``, finite behind the mask too, like `value`.
        value: ``float[B, H, S, d]``.
        mask: Which keys a query may attend to, made chunk by chunk. Default: all.
        chunk_size: Keys at a time, C. Memory is ``O((T + S) · d + T · C)``, forward and backward. Default 512.
        logit_cap: See `soft_cap`. Default: none.

    Returns:
        ``float[B, H, T, d]``; zeros for a query without any key.

    Source: Rabe and Staats 2021 (arXiv:2112.05682); Dao et al. 2022 (arXiv:2205.14135), algorithm 1.
    """
    length = length_of(key, 2)
    # Short sequences are one chunk of their own length, without a padded tail.
    size = min(chunk_size, length) if isinstance(length, int) else chunk_size
    size = max(size, 1)
    chunks = (length + size - 1) // size
    tail = chunks * size - length
    padded = not isinstance(tail, int) or tail > 0
    if padded:
        pad = [[0, 0], [0, 0], [0, tail], [0, 0]]
        key, value = ops.pad(key, pad), ops.pad(value, pad)
    scale = query.shape[-1] ** -0.5

    def chunk(x: KerasTensor, index: KerasTensor) -> KerasTensor:
        shape = ops.shape(x)
        return ops.slice(x, [0, 0, index * size, 0], [shape[0], shape[1], size, shape[3]])

    def logits_of(q: KerasTensor, k: KerasTensor, index: KerasTensor) -> KerasTensor:
        logits = soft_cap(ops.cast(ops.matmul(q * scale, ops.swapaxes(chunk(k, index), -1, -2)), "float32"), logit_cap)
        places = ops.arange(size, dtype="int32") + index * size
        allowed = None if mask is None else mask.allowed(places)
        if padded:
            allowed = both(allowed, (places < length)[None, None, None])
        return logits if allowed is None else ops.where(allowed, logits, MASKED)

    def forward(q: KerasTensor, k: KerasTensor, v: KerasTensor) -> tuple[KerasTensor, KerasTensor]:
        shape = ops.shape(q)
        rows = (shape[0], shape[1], shape[2], 1)

        def body(index: KerasTensor, top: KerasTensor, total: KerasTensor, output: KerasTensor) -> tuple:
            logits = logits_of(q, k, index)
            new_top = ops.maximum(top, ops.max(logits, axis=-1, keepdims=True))
            weights = ops.where(logits > MASKED / 2, ops.exp(logits - new_top), 0.0)
            fade = ops.exp(top - new_top)
            part = ops.cast(ops.matmul(ops.cast(weights, v.dtype), chunk(v, index)), "float32")
            return index + 1, new_top, total * fade + ops.sum(weights, axis=-1, keepdims=True), output * fade + part

        start = (
            ops.convert_to_tensor(0, "int32"),
            ops.full(rows, MASKED, "float32"),
            ops.zeros(rows, "float32"),
            ops.zeros((shape[0], shape[1], shape[2], v.shape[-1]), "float32"),
        )
        _, top, total, output = ops.while_loop(lambda index, *_: index < chunks, body, start)
        safe = ops.maximum(total, 1e-30)
        return output / safe, top + ops.log(safe)

    @ops.custom_gradient
    def attend(q: KerasTensor, k: KerasTensor, v: KerasTensor) -> Any:
        output, log_total = forward(q, k, v)

        def gradient(*arguments: Any, upstream: Any = None) -> Any:
            upstream = arguments[-1] if upstream is None else upstream
            grad = ops.cast(upstream, "float32")
            delta = ops.sum(grad * output, axis=-1, keepdims=True)

            def body(index: KerasTensor, dq: KerasTensor, dk: KerasTensor, dv: KerasTensor) -> tuple:
                logits = logits_of(q, k, index)
                weights = ops.where(logits > MASKED / 2, ops.exp(logits - log_total), 0.0)
                values = ops.cast(chunk(v, index), "float32")
                keys = ops.cast(chunk(k, index), "float32")
                d_weights = weights * (ops.matmul(grad, ops.swapaxes(values, -1, -2)) - delta) * scale
                if logit_cap is not None:
                    # Of cap · tanh(x / cap) the derivative is 1 - tanh², from what the cap gave; masked logits have no weight.
                    d_weights = d_weights * (1.0 - ops.square(ops.clip(logits / logit_cap, -1.0, 1.0)))
                start = [0, 0, index * size, 0]
                part_k = ops.matmul(ops.swapaxes(d_weights, -1, -2), ops.cast(q, "float32"))
                part_v = ops.matmul(ops.swapaxes(weights, -1, -2), grad)
                return (
                    index + 1,
                    dq + ops.matmul(d_weights, keys),
                    ops.slice_update(dk, start, part_k),
                    ops.slice_update(dv, start, part_v),
                )

            start = (
                ops.convert_to_tensor(0, "int32"),
                ops.zeros_like(q, "float32"),
                ops.zeros_like(k, "float32"),
                ops.zeros_like(v, "float32"),
            )
            _, dq, dk, dv = ops.while_loop(lambda index, *_: index < chunks, body, start)
            return ops.cast(dq, q.dtype), ops.cast(dk, k.dtype), ops.cast(dv, v.dtype)

        return ops.cast(output, q.dtype), gradient

    return attend(query, key, value)
