"""Attention within a window, block by block: time and memory grow with the sequence times the window."""

from __future__ import annotations

from keras import KerasTensor, ops

from mmfusion.layers.kernels.exact import exact_attention
from mmfusion.layers.kernels.soft_cap import soft_cap
from mmfusion.layers.kernels.tiling import MASKED
from mmfusion.layers.masks import AttentionMask, both, length_of

# Blocks of fewer queries than this are no faster on any processor.
SMALLEST_BLOCK = 64


def window_mask(
    mask: AttentionMask, places: KerasTensor, key_length: int | KerasTensor, window: int, num_global_tokens: int = 0
) -> AttentionMask:
    """Narrows a mask to what a window lets queries at `places`, ``int32[T]``, see of S keys.

    ``|place - s| <= window or s < num_global_tokens or place < num_global_tokens``, beside what the mask says.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers.masks import AttentionMask
        >>> window_mask(AttentionMask(), np.arange(4), 4, window=1).allowed(np.arange(4)).numpy()[0, 0].astype(int).tolist()
        [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    """
    places = ops.cast(places, "int32")
    free = places < num_global_tokens
    first = ops.where(free, 0, ops.maximum(places - window, 0))
    last = ops.where(free, key_length - 1, ops.minimum(places + window, key_length - 1))
    last = last if mask.last is None else ops.minimum(last, mask.last)
    return mask._replace(first=first, last=last, leading=num_global_tokens, causal=False)


def local_attention(
    query: KerasTensor,
    key: KerasTensor,
    value: KerasTensor,
    mask: AttentionMask,
    window: int,
    start: int | KerasTensor = 0,
    ahead: bool = True,
    logit_cap: float | None = None,
) -> KerasTensor:
    """Exact attention under a mask of `window_mask`, without ever holding T · S scores.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, H, S, d]``, finite behind the mask too, like `value`.
        value: ``float[B, H, S, d]``.
        mask: Which keys a query may attend to, already narrowed by `window_mask`.
        window: Keys on each side of a query, W.
        start: Where the first query stands among the keys. Default 0.
        ahead: Whether any query sees a key behind it; False computes what lies before it alone. Default True.
        logit_cap: See `soft_cap`. Default: none.

    Returns:
        ``float[B, H, T, d]``; zeros for a query without any key. Memory is ``O((T + S) · d + T · (W + G))`` with G leading keys,
        and G · S where they see all.

    Source: Beltagy et al., Longformer, 2020 (arXiv:2004.05150), section 3.1; Jiang et al., Mistral 7B, 2023 (arXiv:2310.06825).
    """
    rows, size = length_of(query, 2), max(window, SMALLEST_BLOCK)
    cached = not isinstance(start, int)
    if isinstance(rows, int) and rows <= size:
        if not cached:
            return exact_attention(query, key, value, mask, logit_cap=logit_cap)
        size = rows
    output = _blocks(query, key, value, mask, window, size, start, ahead, logit_cap)
    if not mask.leading or not ahead:
        # Without a look ahead, what a leading query sees are leading keys, which every query sees.
        return output
    count = min(mask.leading, rows) if isinstance(rows, int) else ops.minimum(mask.leading, rows)
    whole = exact_attention(query[:, :, :count], key, value, _first_rows(mask, count), logit_cap=logit_cap)
    if cached:
        whole = ops.where(
            (start + ops.arange(count, dtype="int32") < mask.leading)[None, None, :, None], whole, output[:, :, :count]
        )
    return ops.concatenate([whole, output[:, :, count:]], axis=2)


def _blocks(
    query: KerasTensor,
    key: KerasTensor,
    value: KerasTensor,
    mask: AttentionMask,
    window: int,
    size: int,
    start: int | KerasTensor,
    ahead: bool,
    logit_cap: float | None,
) -> KerasTensor:
    """Legend: B batch, H heads, N blocks, C queries a block, K keys that a block may see, G leading keys."""
    rows, length, after = length_of(query, 2), length_of(key, 2), window if ahead else 0
    number = (rows + size - 1) // size
    firsts = ops.arange(number, dtype="int32") * size + start
    places = firsts[:, None] + ops.arange(-window, size + after, dtype="int32")  # [N, K]
    allowed = _allowed(mask, places, rows, length, size)

    def around(x: KerasTensor) -> KerasTensor:
        if not isinstance(start, int):
            return ops.take(x, ops.clip(places, 0, length - 1), axis=2)
        x = _in_blocks(x, number, size, 2)
        nothing = ops.zeros_like(x[:, :, :1])
        parts = [ops.concatenate([nothing, x[:, :, :-1]], axis=2)[:, :, :, size - window :], x]
        if after:
            parts.append(ops.concatenate([x[:, :, 1:], nothing], axis=2)[:, :, :, :window])
        return ops.concatenate(parts, axis=3)

    scaled = _in_blocks(query, number, size, 2) * (query.shape[-1] ** -0.5)
    keys, values = around(key), around(value)
    logits = ops.cast(ops.matmul(scaled, ops.swapaxes(keys, -1, -2)), "float32")
    if mask.leading:
        leading_keys, leading_values = (x[:, :, None, : mask.leading] for x in (key, value))
        logits = ops.concatenate([ops.cast(ops.matmul(scaled, ops.swapaxes(leading_keys, -1, -2)), "float32"), logits], axis=-1)
        count = length_of(leading_keys, 3)
        before = ops.broadcast_to(ops.arange(count, dtype="int32")[None], (number, count))
        seen = _allowed(mask._replace(first=None, leading=0), before, rows, length, size)
        shape = [*ops.shape(logits)[:1], 1, number, size]
        allowed = ops.concatenate(
            [ops.broadcast_to(seen, (*shape, count)), ops.broadcast_to(allowed, (*shape, window + size + after))], axis=-1
        )
    weights = ops.softmax(ops.where(allowed, soft_cap(logits, logit_cap), MASKED), axis=-1)
    weights = ops.cast(ops.where(allowed, weights, 0.0), value.dtype)
    if mask.leading:
        output = ops.matmul(weights[..., :count], leading_values) + ops.matmul(weights[..., count:], values)
    else:
        output = ops.matmul(weights, values)
    shape = ops.shape(query)
    return ops.reshape(output, (shape[0], shape[1], number * size, shape[3]))[:, :, :rows]


def _allowed(
    mask: AttentionMask, places: KerasTensor, rows: int | KerasTensor, length: int | KerasTensor, size: int
) -> KerasTensor:
    """What the queries of each block may see of the keys at its places, ``int32[N, K]``: ``bool[B or 1, 1, N, C, K]``."""
    number, wanted = length_of(places, 0), ops.clip(places, 0, length - 1)
    inside = ops.logical_and(places >= 0, places < length)
    if mask.first is not None:
        # Leading keys have scores of their own.
        inside = ops.logical_and(inside, places >= mask.leading) if mask.leading else inside
        first = _in_blocks(mask.first, number, size, 0)
        inside = ops.logical_and(inside[:, None], places[:, None] >= first[:, :, None])[None]
    else:
        inside = inside[None, :, None]
    result = ops.logical_and(inside, places[None, :, None] <= _in_blocks(mask.last_of_rows, number, size, 1)[..., None])
    if mask.keys is not None:
        keys = mask.keys[:, :, None] if mask.keys.shape[-1] == 1 else ops.take(mask.keys, wanted, axis=1)
        result = ops.logical_and(result, keys[:, :, None])
    if mask.pattern is not None:
        pattern = _in_blocks(mask.pattern, number, size, 1)
        if mask.pattern.shape[-1] != 1:
            pattern = ops.take_along_axis(pattern, wanted[None, :, None], axis=-1)
        result = both(result, pattern)
    return result[:, None]


def _in_blocks(x: KerasTensor, number: int | KerasTensor, size: int, axis: int) -> KerasTensor:
    """Cuts an axis into blocks of `size`, the last one filled up with zeros."""
    missing = number * size - length_of(x, axis)
    if not isinstance(missing, int) or missing:
        x = ops.pad(x, [[0, missing if index == axis else 0] for index in range(len(x.shape))])
    shape = [length_of(x, index) for index in range(len(x.shape))]
    return ops.reshape(x, (*shape[:axis], number, size, *shape[axis + 1 :]))


def _first_rows(mask: AttentionMask, count: int | KerasTensor) -> AttentionMask:
    return mask._replace(
        pattern=None if mask.pattern is None else mask.pattern[:, :count],
        last=mask.last_of_rows[:, :count],
        first=None if mask.first is None else mask.first[:count],
    )
