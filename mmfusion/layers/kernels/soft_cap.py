"""Logits that cannot grow beyond a cap."""

from __future__ import annotations

from keras import KerasTensor, ops


def soft_cap(logits: KerasTensor, cap: float | None) -> KerasTensor:
    """``cap · tanh(logits / cap)``, or the logits as they are for None.

    Example:
        >>> float(soft_cap(1000.0, 5.0))
        5.0

    Source: Gemma Team, Gemma 2, 2024 (arXiv:2408.00118), section 2.
    """
    return logits if cap is None else cap * ops.tanh(logits / cap)
