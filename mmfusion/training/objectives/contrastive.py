"""The contrastive objective over the global batch."""

from __future__ import annotations

import tensorflow as tf

from mmfusion.errors import ConfigError
from mmfusion.losses import sigmoid_contrastive, softmax_contrastive
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.objectives.objective import ObjectiveOutput, mean_share


class ContrastiveObjective:
    """Image and text of a pair are to be nearest to each other among all pairs of all replicas.

    See `mmfusion.losses.softmax_contrastive` and `sigmoid_contrastive` for the formulas. Other captions of the same image are
    positives.

    Args:
        weight: Factor in the total loss. Default 1.
        loss: ``"softmax"`` (CLIP) or ``"sigmoid"`` (SigLIP). Default ``"softmax"``.
        label_smoothing: Share of the target spread over all, of ``"softmax"``, in training alone. Default 0.

    Raises:
        ConfigError: If the loss is unknown, or ``"sigmoid"`` is to smooth.

    Example:
        >>> from mmfusion.training.objectives import ContrastiveObjective
        >>> ContrastiveObjective(weight=0.5).name
        'contrastive'
    """

    name = "contrastive"
    figures: tuple[str, ...] = ("contrastive_loss", "contrastive_accuracy")

    def __init__(self, *, weight: float = 1.0, loss: str = "softmax", label_smoothing: float = 0.0) -> None:
        if loss not in ("softmax", "sigmoid") or (loss == "sigmoid" and label_smoothing):
            found = f"loss={loss!r}, label_smoothing={label_smoothing}"
            raise ConfigError("impossible contrastive loss", expected="softmax, or sigmoid without label smoothing", found=found)
        self.weight = weight
        self.loss = loss
        self.label_smoothing = label_smoothing

    def __call__(self, forward: ForwardPass) -> ObjectiveOutput:
        """Computes the term for one batch."""
        loss = self._loss(forward)
        nearest = tf.argmax(tf.matmul(forward.image_embedding, forward.all_text_embedding, transpose_b=True), axis=-1)
        right = tf.gather(forward.all_image_id, nearest) == forward.batch["image_id"]
        return ObjectiveOutput(mean_share(loss), {"contrastive_accuracy": mean_share(right)})

    def _loss(self, forward: ForwardPass) -> tf.Tensor:
        """``float32[b]``."""
        head, image_id = forward.contrastive_head, forward.batch["image_id"]
        if self.loss == "sigmoid":
            return sigmoid_contrastive(
                forward.image_embedding,
                forward.text_embedding,
                head.scale,
                head.bias,
                image_id=image_id,
                all_text=forward.all_text_embedding,
                all_image_id=forward.all_image_id,
                offset=forward.offset,
            )
        return softmax_contrastive(
            forward.image_embedding,
            forward.text_embedding,
            head.scale,
            image_id=image_id,
            all_image=forward.all_image_embedding,
            all_text=forward.all_text_embedding,
            all_image_id=forward.all_image_id,
            offset=forward.offset,
            # Smoothing is a regulariser: it has no place in the figure by which models are compared.
            label_smoothing=self.label_smoothing if forward.training else 0.0,
        )
