"""The captioning objective: say the next token."""

from __future__ import annotations

import tensorflow as tf

from mmfusion.losses import captioning_loss
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.objectives.objective import ObjectiveOutput, Share


class CaptioningObjective:
    """Cross-entropy of each token given the image and the tokens before it, a mean over all real tokens.

    Args:
        weight: Factor in the total loss. Default 1.
        label_smoothing: Share of the target spread over the vocabulary. Default 0.

    Example:
        >>> from mmfusion.training.objectives import CaptioningObjective
        >>> CaptioningObjective(label_smoothing=0.1).name
        'captioning'
    """

    name = "captioning"
    figures: tuple[str, ...] = ("captioning_loss", "captioning_accuracy")

    def __init__(self, *, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        self.weight = weight
        self.label_smoothing = label_smoothing

    def __call__(self, forward: ForwardPass) -> ObjectiveOutput:
        """Computes the term for one batch."""
        token_ids, mask = forward.batch["token_ids"], forward.batch["token_mask"]
        logits = forward.model.caption_logits(forward.patches, token_ids[:, :-1], mask[:, :-1], training=forward.training)
        targets, target_mask = token_ids[:, 1:], mask[:, 1:]
        # Smoothing is a regulariser: it has no place in the figure by which models are compared.
        smoothing = self.label_smoothing if forward.training else 0.0
        loss = captioning_loss(logits, targets, target_mask, label_smoothing=smoothing)
        tokens = tf.reduce_sum(loss.tokens)
        right = tf.logical_and(tf.argmax(logits, axis=-1, output_type=targets.dtype) == targets, target_mask)
        return ObjectiveOutput(
            Share(tf.reduce_sum(loss.loss_sum), tokens),
            {"captioning_accuracy": Share(tf.reduce_sum(tf.cast(right, tf.float32)), tokens)},
        )
