"""The captioning loss as a Keras loss, for `compile`."""

from __future__ import annotations

from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.losses.captioning_loss import captioning_loss


@keras.saving.register_keras_serializable(package="mmfusion")
class CaptioningCrossentropy(keras.losses.Loss):
    """`captioning_loss` for ``model.compile(loss=...)``: the mean over the real tokens of the batch.

    Keras has `SparseCategoricalCrossentropy(ignore_class=...)`, without label smoothing. Under a strategy the mean is
    over the tokens of each replica; mmfusion's own training counts them over all replicas.

    Args:
        pad_id: Target that marks padding. Default 0.
        label_smoothing: Share of the target spread evenly over the vocabulary. Default 0.
        reduction: ``"sum_over_batch_size"`` is the mean over real tokens, ``"sum"`` their sum, ``None`` the sum of each
            example, ``float[B]``. Default ``"sum_over_batch_size"``.
        name: Name of the loss. Default ``"captioning_crossentropy"``.
        dtype: Dtype of the result. Default float32.

    Call arguments:
        y_true: ``int[B, T]``, targets.
        y_pred: ``float[B, T, V]``, logits.

    Returns:
        ``float[]``, or ``float[B]`` where `reduction` is None.

    Example:
        >>> import numpy as np
        >>> from mmfusion.losses import CaptioningCrossentropy
        >>> loss = CaptioningCrossentropy(pad_id=0)(np.array([[4, 2, 0], [3, 0, 0]]), np.zeros((2, 3, 5)))
        >>> round(float(loss), 4)
        1.6094
    """

    def __init__(
        self,
        *,
        pad_id: int = 0,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "captioning_crossentropy",
        dtype: Any = "float32",
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.pad_id = pad_id
        self.label_smoothing = label_smoothing

    def call(self, y_true: KerasTensor, y_pred: KerasTensor) -> KerasTensor:
        """The loss of each example ``float[B]``, weighted so that Keras's mean of them is the mean over tokens."""
        targets = ops.cast(y_true, "int32")
        loss = captioning_loss(y_pred, targets, targets != self.pad_id, label_smoothing=self.label_smoothing)
        if self.reduction in ("sum", "none", None):
            return loss.loss_sum
        tokens = ops.maximum(ops.sum(loss.tokens), 1.0)
        return loss.loss_sum * ops.cast(ops.shape(loss.loss_sum)[0], "float32") / tokens

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "pad_id": self.pad_id,
            "label_smoothing": self.label_smoothing,
            "dtype": self.dtype,
        }
