"""What attention returns beside its output."""

from __future__ import annotations

from typing import NamedTuple

from keras import KerasTensor

from mmfusion.layers.cache import ContextCache, KeyValueCache


class AttentionOutput(NamedTuple):
    """What attention returns when scores or a cache are asked for.

    Attributes:
        output: ``float[B, T, D]``.
        scores: ``float32[B, H, T, S]``, each row summing to 1 (or 0 where nothing could be attended to), or None.
        cache: The advanced cache, or None.
    """

    output: KerasTensor
    scores: KerasTensor | None
    cache: KeyValueCache | ContextCache | None
