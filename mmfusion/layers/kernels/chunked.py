"""Streaming-softmax attention: memory grows with the sequence, not with its square."""

from __future__ import annotations

from keras import KerasTensor

from mmfusion.layers.kernels.fused import fused_attention
from mmfusion.layers.kernels.tiled import tiled_attention
from mmfusion.layers.kernels.tiling import Tile
from mmfusion.layers.masks import AttentionMask

# Queries of a tile with all keys: with fewer the products slow down.
FEWEST_QUERIES = 128


def chunked_attention(
    query: KerasTensor,
    key: KerasTensor,
    value: KerasTensor,
    mask: AttentionMask | None = None,
    chunk_size: int = 1024,
    logit_cap: float | None = None,
) -> KerasTensor:
    """Exact attention over chunks of queries and keys, with a running maximum and sum; the gradient recomputes the weights.

    Args:
        query: ``float[B, H, T, d]``.
        key: ``float[B, Hkv, S, d]``, Hkv a divisor of H; finite behind the mask too, like `value`.
        value: ``float[B, Hkv, S, d]``.
        mask: Which keys a query may attend to, made chunk by chunk. Default: all.
        chunk_size: About how many queries and keys at a time, C, or fewer queries and all keys; all parts are of one size. Memory
            is ``O((T + S) · d)`` for each head and ``C²`` numbers for one, or for as many as the processor's cache holds (two of
            1024), on an accelerator for each; forward and backward. Default 1024.
        logit_cap: See `soft_cap`. Default: none.

    Returns:
        ``float[B, H, T, d]``; zeros for a query without any key.

    Source: Rabe and Staats 2021 (arXiv:2112.05682); Dao et al. 2022 (arXiv:2205.14135), algorithm 1.
    """
    output = fused_attention(query, key, value, mask, logit_cap, linear=True)
    if output is not None:
        return output
    queries, length = chunk_size, key.shape[2]
    keys: int | None = chunk_size
    if length is not None and length * FEWEST_QUERIES <= chunk_size**2 and (mask is None or mask.last is None):
        # As many numbers, all keys of fewer queries: one softmax. Causal queries would read what they may not see.
        queries, keys = chunk_size**2 // max(length, 1), None
    return tiled_attention(query, key, value, mask, Tile.of(query, key, queries, keys), logit_cap)
