"""Attention from text to image, where a style's own attention says it in parts."""

from __future__ import annotations

from keras import KerasTensor, ops


def renormalized(scores: KerasTensor) -> KerasTensor:
    """Rows scaled to sum to 1; a row of zeros stays zeros.

    Args:
        scores: ``float32[..., P]``, not negative.

    Returns:
        ``float32[..., P]``.

    Example:
        >>> import numpy as np
        >>> renormalized(np.array([[1.0, 3.0], [0.0, 0.0]])).numpy().tolist()
        [[0.25, 0.75], [0.0, 0.0]]
    """
    total = ops.sum(scores, axis=-1, keepdims=True)
    return scores / ops.where(total > 0, total, ops.ones_like(total))
