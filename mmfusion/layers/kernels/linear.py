"""Attention by kernel features: time and memory grow with the sequence alone."""

from __future__ import annotations

from collections.abc import Callable

from keras import KerasTensor, ops

from mmfusion.layers.masks import AttentionMask, length_of

BLOCK = 64


def elu_feature(x: KerasTensor) -> KerasTensor:
    """``elu(x) + 1``: positive everywhere, without the cancellation of that sum far below 0."""
    return ops.where(x > 0, x + 1.0, ops.exp(ops.minimum(x, 0.0)))


FEATURE_MAPS: dict[str, Callable[[KerasTensor], KerasTensor]] = {
    "elu": elu_feature,
    "relu": ops.relu,
    "softplus": ops.softplus,
    "softmax": ops.softmax,
}


def linear_attention(
    query: KerasTensor,
    key: KerasTensor,
    value: KerasTensor,
    mask: AttentionMask,
    start: int | KerasTensor | None = None,
    feature_map: Callable[[KerasTensor], KerasTensor] = elu_feature,
) -> KerasTensor:
    """``φ(q_t)ᵀ Σ_s φ(k_s) v_sᵀ / φ(q_t)ᵀ Σ_s φ(k_s)`` over the keys that query t sees, in float32.

    Causal sums run from block to block of 64 queries, so that neither T · S weights nor T matrices of ``d × d`` are held.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, H, S, d]``, finite behind the mask too, like `value`.
        value: ``float[B, H, S, d]``.
        mask: Which keys a query may attend to, without a pattern of each query.
        start: Where the first query stands among the keys of causal attention, each query seeing up to itself, or up to the
            end of a prefix (`last` of the mask, of two axes). None lets every query see all. Default None.
        feature_map: φ, from ``float32[..., d]`` to numbers not below 0. Default ``elu(x) + 1``.

    Returns:
        ``float[B, H, T, d]``; zeros for a query without any key. Memory is ``O((T + S) · d + T · d² / 64)``.

    Source: Katharopoulos et al. 2020 (arXiv:2006.16236), equations 5 to 12.
    """
    queries, keys = features(query, key, mask, feature_map)
    # A column of ones beside the values sums the weights.
    values = ops.cast(value, "float32")
    values = ops.concatenate([values, ops.ones_like(values[..., :1])], axis=-1)
    if start is None:
        return _normalized(ops.matmul(queries, _sums(keys, values)), query.dtype)
    rows, length = length_of(query, 2), length_of(key, 2)
    if isinstance(start, int) and start >= 0:
        before = _sums(keys[:, :, :start], values[:, :, :start]) if start else None
        own_keys, own_values = keys[:, :, start:], values[:, :, start:]
    else:
        earlier = (ops.arange(length, dtype="int32") < start)[:, None]
        before = _sums(ops.where(earlier, keys, 0.0), values)
        places = ops.arange(rows, dtype="int32") + start
        own_keys, own_values = (ops.take(x, ops.clip(places, 0, length - 1), axis=2) for x in (keys, values))
        own_keys = ops.where((places >= 0)[:, None], own_keys, 0.0)
    result = _causal(queries, own_keys, own_values, before)
    if mask.last is not None and len(mask.last.shape) == 2:
        end = mask.last[:, :1]
        prefix = ops.where((ops.arange(length, dtype="int32") <= end)[:, None, :, None], keys, 0.0)
        inside = (start + ops.arange(rows, dtype="int32") < end)[:, None, :, None]
        result = ops.where(inside, ops.matmul(queries, _sums(prefix, values)), result)
    return _normalized(result, query.dtype)


def linear_weights(
    query: KerasTensor,
    key: KerasTensor,
    mask: AttentionMask,
    feature_map: Callable[[KerasTensor], KerasTensor] = elu_feature,
) -> KerasTensor:
    """The weights that `linear_attention` never holds: ``float32[B, H, T, S]``, each row summing to 1, or 0 without any key."""
    queries, keys = features(query, key, mask, feature_map)
    weights = ops.matmul(queries, ops.swapaxes(keys, -1, -2))
    allowed = mask.allowed(ops.arange(length_of(key, 2), dtype="int32"))
    weights = weights if allowed is None else ops.where(allowed, weights, 0.0)
    total = ops.sum(weights, axis=-1, keepdims=True)
    return weights / ops.where(total > 0, total, 1.0)


def features(
    query: KerasTensor, key: KerasTensor, mask: AttentionMask, feature_map: Callable[[KerasTensor], KerasTensor]
) -> tuple[KerasTensor, KerasTensor]:
    """φ of queries and keys in float32, zeros for keys that the mask hides from every query."""
    queries, keys = (feature_map(ops.cast(x, "float32")) for x in (query, key))
    return queries, keys if mask.keys is None else ops.where(mask.keys[:, None, :, None], keys, 0.0)


def _causal(queries: KerasTensor, keys: KerasTensor, values: KerasTensor, before: KerasTensor | None) -> KerasTensor:
    shape, rows = ops.shape(values), length_of(queries, 2)
    size = min(BLOCK, rows) if isinstance(rows, int) else BLOCK
    number = (rows + size - 1) // size
    missing = number * size - rows

    def blocks(x: KerasTensor) -> KerasTensor:
        if not isinstance(missing, int) or missing:
            x = ops.pad(x, [[0, 0], [0, 0], [0, missing], [0, 0]])
        return ops.reshape(x, (shape[0], shape[1], number, size, x.shape[-1]))

    queries, keys, values = blocks(queries), blocks(keys), blocks(values)
    sums = ops.cumsum(_sums(keys, values), axis=2)
    # What precedes a block: the sums moved on by one.
    sums = ops.concatenate([ops.zeros_like(sums[:, :, :1]), sums[:, :, :-1]], axis=2)
    if before is not None:
        sums = sums + before[:, :, None]
    weights = ops.where(ops.tri(size, dtype="bool"), ops.matmul(queries, ops.swapaxes(keys, -1, -2)), 0.0)
    result = ops.matmul(queries, sums) + ops.matmul(weights, values)
    return ops.reshape(result, (shape[0], shape[1], number * size, shape[3]))[:, :, :rows]


def _sums(keys: KerasTensor, values: KerasTensor) -> KerasTensor:
    return ops.matmul(ops.swapaxes(keys, -1, -2), values)


def _normalized(sums: KerasTensor, dtype: str) -> KerasTensor:
    total = sums[..., -1:]
    return ops.cast(sums[..., :-1] / ops.where(total > 0, total, 1.0), dtype)
