"""The matching loss: whether this text describes this image."""

from __future__ import annotations

from keras import KerasTensor, ops


def matching_loss(logits: KerasTensor, labels: KerasTensor, mask: KerasTensor | None = None) -> KerasTensor:
    """Binary cross-entropy from logits, in float32.

    ``loss = -y · log sigmoid(x) - (1 - y) · log(1 - sigmoid(x))``

    Args:
        logits: ``float[N]``, x, one for each pair.
        labels: ``float[N]``, y: 1 = they match, 0 = they do not; values between are allowed.
        mask: ``bool[N]``, ``True`` = the pair counts. What stands behind the mask, NaN too, changes neither the loss
            nor the gradient. Default: all count.

    Returns:
        ``float32[N]``, 0 where masked: divide the sum by the number of pairs that count.

    Example:
        >>> import numpy as np
        >>> from mmfusion.losses import matching_loss
        >>> logits, labels, mask = np.array([0.0, 100.0, np.nan]), np.array([1, 0, 0]), np.array([True, True, False])
        >>> [round(float(x), 4) for x in matching_loss(logits, labels, mask)]
        [0.6931, 100.0, 0.0]

    Source: Li et al., ALBEF, 2021 (arXiv:2107.07651), equation 4.
    """
    logits, labels = ops.cast(logits, "float32"), ops.cast(labels, "float32")
    if mask is not None:
        mask = ops.cast(mask, "bool")
        logits = ops.where(mask, logits, 0.0)
        labels = ops.where(mask, labels, 0.0)
    loss = labels * ops.softplus(-logits) + (1.0 - labels) * ops.softplus(logits)
    return loss if mask is None else ops.where(mask, loss, 0.0)
