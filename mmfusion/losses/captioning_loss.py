"""The captioning loss: cross-entropy of the next token."""

from __future__ import annotations

from typing import NamedTuple

from keras import KerasTensor, ops


class CaptioningLoss(NamedTuple):
    """What a text costs, in parts from which a mean over all tokens of all replicas can be made.

    Attributes:
        loss_sum: ``float32[B]``, sum over the tokens that count.
        tokens: ``float32[B]``, how many of them there are.
    """

    loss_sum: KerasTensor
    tokens: KerasTensor


def captioning_loss(
    logits: KerasTensor, targets: KerasTensor, mask: KerasTensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> CaptioningLoss:
    """Cross-entropy of each real token, in float32.

    ``loss[t] = -(1 - ε) · log p[t, target[t]] - ε / V · Σ_v log p[t, v] + z · log² Σ_v exp(logits[t, v])``

    with ``p = softmax(logits)``, ε = `label_smoothing` and z = `z_loss`. No target is spread over the vocabulary to compute
    it: the smoothed loss is the plain one plus ``ε · (logits[t, target[t]] - mean_v logits[t, v])``.

    Args:
        logits: ``float[B, T, V]``: at t the scores of ``targets[:, t]``.
        targets: ``int[B, T]``.
        mask: ``bool[B, T]``, ``True`` = real token. What stands behind the mask, NaN and ids outside the vocabulary
            too, changes neither the loss nor the gradient.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1). Default 0.
        z_loss: Weight of the squared log-partition, which keeps logits from drifting. Default 0.

    Returns:
        Sums and counts; ``sum(loss_sum) / sum(tokens)`` is the mean over tokens.

    Example:
        Where all tokens are equally likely, each costs ln V:

        >>> import numpy as np
        >>> from mmfusion.losses import captioning_loss
        >>> mask = np.array([[True, True, True], [True, False, False]])
        >>> loss = captioning_loss(np.zeros((2, 3, 5)), np.ones((2, 3), int), mask)
        >>> [round(float(x), 4) for x in loss.loss_sum / loss.tokens], [int(n) for n in loss.tokens]
        ([1.6094, 1.6094], [3, 1])

    Source: label smoothing: Szegedy et al., 2015 (arXiv:1512.00567), section 7; the squared log-partition: Chowdhery et al.,
    PaLM, 2022 (arXiv:2204.02311), section 5.
    """
    return token_crossentropy(logits, targets, mask, label_smoothing=label_smoothing, z_loss=z_loss)


def token_crossentropy(
    logits: KerasTensor,
    targets: KerasTensor,
    mask: KerasTensor,
    *,
    label_smoothing: float = 0.0,
    teacher_logits: KerasTensor | None = None,
    alpha: KerasTensor | float = 0.0,
    z_loss: float = 0.0,
) -> CaptioningLoss:
    """What `captioning_loss` and `masked_language_loss` share: the terms of both, each where it is asked for."""
    mask = ops.cast(mask, "bool")
    logits = ops.where(mask[..., None], ops.cast(logits, "float32"), 0.0)
    targets = ops.where(mask, ops.cast(targets, "int32"), 0)
    loss = ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    if label_smoothing:
        loss = loss + label_smoothing * (_at(logits, targets) - ops.mean(logits, axis=-1))
    if teacher_logits is not None:
        teacher = ops.softmax(ops.stop_gradient(ops.where(mask[..., None], ops.cast(teacher_logits, "float32"), 0.0)))
        # Cross-entropies with two targets differ by the difference of the targets' mean logits: no second logarithm.
        loss = loss + alpha * (_at(logits, targets) - ops.sum(teacher * logits, axis=-1))
    if z_loss:
        loss = loss + z_loss * ops.square(ops.logsumexp(logits, axis=-1))
    loss = ops.where(mask, loss, 0.0)
    return CaptioningLoss(ops.sum(loss, axis=-1), ops.sum(ops.cast(mask, "float32"), axis=-1))


def _at(logits: KerasTensor, targets: KerasTensor) -> KerasTensor:
    return ops.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
