"""What a transformer block returns beside its tokens."""

from __future__ import annotations

from typing import NamedTuple

from keras import KerasTensor

from mmfusion.layers.cache import BlockCache, ContextCache


class BlockOutput(NamedTuple):
    """What a block returns when scores, a cache or a prefix are asked for.

    Attributes:
        tokens: ``float[B, N, D]``.
        self_scores: ``float32[B, H, N, N]`` (with a prefix of M tokens ``[B, H, N, M + N]``), or None.
        cross_scores: ``float32[B, H, N, S]``, or None.
        cache: The advanced `BlockCache`, or None.
        prefix: The tokens' own keys and values, for tokens that follow them, or None.
    """

    tokens: KerasTensor
    self_scores: KerasTensor | None
    cross_scores: KerasTensor | None
    cache: BlockCache | None
    prefix: ContextCache | None = None
