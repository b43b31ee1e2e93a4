"""Attention tile by tile: what is between queries and keys stays in the processor's cache, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.layers.kernels.softmax import softmax_over_keys
from mmfusion.layers.kernels.tiling import MASKED, Tile, Tiling
from mmfusion.layers.masks import AttentionMask

Tensors = tuple[KerasTensor, ...]
Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def tiled_attention(
    query: KerasTensor,
    key: KerasTensor,
    value: KerasTensor,
    mask: AttentionMask | None,
    tile: Tile,
    logit_cap: float | None = None,
) -> KerasTensor:
    """``softmax(Q Kᵀ / √d) V`` in tiles; the gradient computes the weights again instead of keeping them.

    With ``L = log Σ exp`` of a query's logits, which the forward pass keeps, and ``Δ = dO · O``, no tile of the gradient needs
    another: ``P = exp(Q Kᵀ / √d - L)``, ``dV += Pᵀ dO``, ``dS = P ∘ (dO Vᵀ - Δ)``, ``dQ += dS K / √d``, ``dK += dSᵀ Q / √d``.
    Where one tile has all keys of a query, the softmax is the backend's own, and P the softmax of the tile.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, Hkv, S, d]``, Hkv a divisor of H; finite behind the mask too, like `value`.
        value: ``float[B, Hkv, S, d]``.
        mask: Which keys a query may attend to, made tile by tile. None allows all.
        tile: How much at once, say Q queries and K keys of R heads: memory is ``O(B · (H · T + Hkv · S) · d + R · Q · K)``.
        logit_cap: See `soft_cap`. Default: none.

    Returns:
        ``float[B, H, T, d]``; zeros for a query without any key.

    Source: Rabe and Staats 2021 (arXiv:2112.05682); Dao et al. 2022 (arXiv:2205.14135), algorithms 1 and 4.
    """
    tiling = Tiling.of(query, key, mask, tile, logit_cap)
    scale = query.shape[-1] ** -0.5

    @ops.custom_gradient
    def attend(q: KerasTensor, k: KerasTensor, v: KerasTensor) -> Any:
        queries, keys, values = tiling.cut_queries(q * scale), tiling.cut_keys(k), tiling.cut_keys(v)
        outputs, *totals = _forward(tiling, queries, keys, values)

        def gradient(*arguments: Any, upstream: Any = None) -> Any:
            upstream = arguments[-1] if upstream is None else upstream
            given = tiling.cut_queries(ops.cast(upstream, q.dtype))
            dq, dk, dv = _backward(tiling, queries, keys, values, outputs, totals, given)
            joined = tiling.join_queries(dq) * scale, tiling.join_keys(dk), tiling.join_keys(dv)
            return tuple(ops.cast(x, y.dtype) for x, y in zip(joined, (q, k, v), strict=True))

        return tiling.join_queries(outputs), gradient

    return attend(query, key, value)


def _forward(tiling: Tiling, queries: KerasTensor, keys: KerasTensor, values: KerasTensor) -> Tensors:
    """Outputs, cut as the queries are, and, unless one tile has all keys, the logarithm of each row's sum of exponentials."""
    # A sum of many values passes what float16 holds where their mean does not; elsewhere the division can wait for the end.
    narrow = keras.backend.standardize_dtype(values.dtype) == "float16"

    def of_group(_: Tensors, group: Tensors) -> tuple[Tensors, Tensors]:
        index, q, k, v = group

        def of_rows(_: Tensors, part: Tensors) -> tuple[Tensors, Tensors]:
            row, q = part

            def of_columns(state: Tensors, part: Tensors) -> tuple[Tensors, Tensors]:
                column, k, v = part
                top, total, output = state
                logits = tiling.logits(q, k, tiling.allowed(index, row, column))
                new = ops.maximum(top, ops.max(logits, axis=-1, keepdims=True))
                weights = ops.exp(logits - new)
                sums = ops.sum(weights, axis=-1, keepdims=True)
                if narrow:
                    # Where a tile shows a query nothing, after one that did, the sum is 0.
                    divisor = ops.maximum(sums, 1e-30)
                    product = ops.cast(ops.matmul(ops.cast(weights / divisor, v.dtype), v), "float32") * divisor
                else:
                    product = ops.cast(ops.matmul(ops.cast(weights, v.dtype), v), "float32")
                # Where all was masked so far, what was summed is of no key: it fades to 0 with the first that counts.
                fade = ops.exp(top - new)
                return (new, total * fade + sums, output * fade + product), ()

            one = ops.zeros_like(q[..., :1], "float32")
            start = (one + MASKED, one, ops.zeros_like(q, "float32"))
            (top, total, output), _ = _scan(_if_reached(tiling, row, of_columns), start, (), (k, v))
            output, total = output / total, top + ops.log(total)
            if tiling.masked:
                empty = top <= MASKED / 2
                output, total = (ops.where(empty, 0.0, x) for x in (output, total))
            return (), (ops.cast(output, q.dtype), total)

        def of_whole_rows(_: Tensors, part: Tensors) -> tuple[Tensors, Tensors]:
            row, q = part
            allowed = tiling.allowed(index, row, 0)
            weights = softmax_over_keys(tiling.logits(q, k[0], allowed))
            return (), (tiling.without_empty(ops.matmul(ops.cast(weights, v.dtype), v[0]), allowed),)

        return _scan(of_whole_rows if tiling.columns.whole else of_rows, (), like_parts(q[0]), (q,))

    def like_parts(x: KerasTensor) -> Tensors:
        output = ops.zeros_like(x)
        return (output,) if tiling.columns.whole else (output, ops.zeros_like(x[..., :1], "float32"))

    _, parts = _scan(of_group, (), like_parts(queries[0]), (queries, keys, values))
    return parts


def _backward(
    tiling: Tiling,
    queries: KerasTensor,
    keys: KerasTensor,
    values: KerasTensor,
    outputs: KerasTensor,
    totals: Sequence[KerasTensor],
    given: KerasTensor,
) -> Tensors:
    """Gradients of queries, keys and values, cut as they are, in float32."""

    def of_group(_: Tensors, group: Tensors) -> tuple[Tensors, Tensors]:
        index, q, k, v, output, given, *totals = group

        def of_rows(sums: Tensors, part: Tensors) -> tuple[Tensors, Tensors]:
            row, q, output, given, *totals = part
            delta = ops.sum(ops.cast(given, "float32") * ops.cast(output, "float32"), axis=-1)[:, None]
            total = ops.swapaxes(totals[0], -1, -2) if totals else None

            def of_columns(state: Tensors, part: Tensors) -> tuple[Tensors, Tensors]:
                column, k, v = part
                logits = tiling.turned_logits(q, k, tiling.allowed(index, row, column))
                weights = _over_rows(logits, tiling.masked) if total is None else ops.exp(logits - total)
                d_logits = weights * (ops.cast(ops.matmul(v, ops.swapaxes(given, -1, -2)), "float32") - delta)
                if tiling.logit_cap is not None:
                    d_logits = d_logits * tiling.slope(logits)
                weights, d_logits = (ops.cast(x, q.dtype) for x in (weights, d_logits))
                products = (
                    ops.matmul(ops.swapaxes(k, -1, -2), d_logits), ops.matmul(d_logits, q), ops.matmul(weights, given)
                )  # fmt: skip
                dq, dk, dv = (ops.cast(x, "float32") for x in products)
                return (dq if tiling.columns.whole else state[0] + dq,), (dk, dv)

            start = (ops.swapaxes(ops.zeros_like(q, "float32"), -1, -2),)
            like = ops.zeros_like(k[0], "float32"), ops.zeros_like(v[0], "float32")
            (dq,), parts = _scan(_if_reached(tiling, row, of_columns, like), start, like, (k, v))
            sums = parts if tiling.rows.whole else tuple(x + y for x, y in zip(sums, parts, strict=True))
            return sums, (ops.swapaxes(dq, -1, -2),)

        start = ops.zeros_like(k, "float32"), ops.zeros_like(v, "float32")
        sums, (dq,) = _scan(of_rows, start, (ops.zeros_like(q[0], "float32"),), (q, output, given, *totals))
        return (), (dq, *sums)

    like = tuple(ops.zeros_like(x[0], "float32") for x in (queries, keys, values))
    _, parts = _scan(of_group, (), like, (queries, keys, values, outputs, given, *totals))
    return parts


def _over_rows(logits: KerasTensor, masked: bool) -> KerasTensor:
    """Softmax of the keys of turned logits, ``[R, K, M]``; zeros for a query without any."""
    top = ops.max(logits, axis=-2, keepdims=True)
    weights = ops.exp(logits - top)
    factor = 1.0 / ops.sum(weights, axis=-2, keepdims=True)
    return weights * (ops.where(top <= MASKED / 2, 0.0, factor) if masked else factor)


def _if_reached(tiling: Tiling, row: KerasTensor, step: Step, nothing: Tensors = ()) -> Step:
    """The step, or none where the tile lies behind all that its queries may see: causal attention has half the tiles to do."""

    def of_columns(state: Tensors, part: Tensors) -> tuple[Tensors, Tensors]:
        reached = tiling.reaches(row, part[0])
        if reached is None:
            return step(state, part)
        return ops.cond(reached, lambda: step(state, part), lambda: (state, nothing))

    return of_columns


def _scan(step: Step, start: Tensors, like: Tensors, over: Tensors) -> tuple[Tensors, Tensors]:
    """``state, parts = step(state, (i, *slices))`` for each i along `over`, in order; stacks parts shaped as `like`."""
    if over[0].shape[0] == 1:
        state, parts = step(start, (ops.convert_to_tensor(0, "int32"), *(x[0] for x in over)))
        return state, tuple(x[None] for x in parts)
    kept = len(start)

    def body(state: Tensors, index: KerasTensor) -> tuple[Tensors, Tensors]:
        state, parts = step(state[:kept], (index, *(x[index] for x in over)))
        # On TensorFlow the state and what is stacked must be of one structure; what stands in for the rest is never made.
        return (*state, *like), (*start, *parts)

    # Over numbers alone: Keras 3.15 fails on TensorFlow where it gets several tensors of unknown length.
    state, parts = ops.scan(body, (*start, *like), ops.arange(ops.shape(over[0])[0], dtype="int32"))
    return state[:kept], parts[kept:]
