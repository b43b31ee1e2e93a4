"""Softmax over keys."""

from __future__ import annotations

from keras import KerasTensor, ops


def softmax_over_keys(logits: KerasTensor) -> KerasTensor:
    """Softmax of the last axis, where one key alone is no mistake (of which Keras's softmax warns)."""
    return ops.exp(ops.log_softmax(logits)) if logits.shape[-1] == 1 else ops.softmax(logits)
