"""The contrastive objective over the global batch."""

from __future__ import annotations

import tensorflow as tf

from mmfusion.losses import softmax_contrastive
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.objectives.objective import ObjectiveOutput, mean_share


class ContrastiveObjective:
    """Image and text of a pair are to be nearest to each other among all pairs of all replicas.

    See `mmfusion.losses.softmax_contrastive` for the formula. Other captions of the same image are positives.

    Args:
        weight: Factor in the total loss. Default 1.
        label_smoothing: Share of the target spread over all. Default 0.

    Example:
        >>> from mmfusion.training.objectives import ContrastiveObjective
        >>> ContrastiveObjective(weight=0.5).name
        'contrastive'
    """

    name = "contrastive"
    figures: tuple[str, ...] = ("contrastive_loss", "contrastive_accuracy")

    def __init__(self, *, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        self.weight = weight
        self.label_smoothing = label_smoothing

    def __call__(self, forward: ForwardPass) -> ObjectiveOutput:
        """Computes the term for one batch."""
        loss = softmax_contrastive(
            forward.image_embedding,
            forward.text_embedding,
            forward.contrastive_head.scale,
            image_id=forward.batch["image_id"],
            all_image=forward.all_image_embedding,
            all_text=forward.all_text_embedding,
            all_image_id=forward.all_image_id,
            offset=forward.offset,
            label_smoothing=self.label_smoothing,
        )
        nearest = tf.argmax(tf.matmul(forward.image_embedding, forward.all_text_embedding, transpose_b=True), axis=-1)
        right = tf.gather(forward.all_image_id, nearest) == forward.batch["image_id"]
        return ObjectiveOutput(mean_share(loss), {"contrastive_accuracy": mean_share(right)})
