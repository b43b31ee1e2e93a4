"""The captioning objective: say the next token."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from mmfusion.losses import attention_coverage, captioning_loss
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.objectives.objective import ObjectiveOutput, Share


class CaptioningObjective:
    """Cross-entropy of each token given the image and the tokens before it, a mean over all real tokens.

    Args:
        weight: Factor in the total loss. Default 1.
        label_smoothing: Share of the target spread over the vocabulary. Default 0.
        z_loss: Weight of the squared log-partition (`mmfusion.losses.captioning_loss`). Default 0.
        attention_coverage: Weight of `mmfusion.losses.attention_coverage`, a mean over captions. Default 0.

    The last three are regularisers: a validation says the plain cross-entropy.

    Example:
        >>> from mmfusion.training.objectives import CaptioningObjective
        >>> CaptioningObjective(label_smoothing=0.1).name
        'captioning'
    """

    name = "captioning"
    figures: tuple[str, ...] = ("captioning_loss", "captioning_accuracy")

    def __init__(
        self, *, weight: float = 1.0, label_smoothing: float = 0.0, z_loss: float = 0.0, attention_coverage: float = 0.0
    ) -> None:
        self.weight = weight
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.attention_coverage = attention_coverage

    def __call__(self, forward: ForwardPass) -> ObjectiveOutput:
        """Computes the term for one batch."""
        token_ids, mask = forward.batch["token_ids"], forward.batch["token_mask"]
        targets, target_mask = token_ids[:, 1:], mask[:, 1:]
        logits, scores = self._logits(forward, token_ids[:, :-1], mask[:, :-1])
        # Regularisers have no place in the figure by which models are compared.
        smoothing, z_loss = (self.label_smoothing, self.z_loss) if forward.training else (0.0, 0.0)
        loss = captioning_loss(logits, targets, target_mask, label_smoothing=smoothing, z_loss=z_loss)
        tokens = tf.reduce_sum(loss.tokens)
        total = tf.reduce_sum(loss.loss_sum)
        if scores is not None:
            # In a mean over tokens, a mean over captions: each caption counts as many times as it has tokens.
            total += self.attention_coverage * tf.reduce_sum(attention_coverage(scores, target_mask) * loss.tokens)
        right = tf.logical_and(tf.argmax(logits, axis=-1, output_type=targets.dtype) == targets, target_mask)
        return ObjectiveOutput(
            Share(total, tokens),
            {"captioning_accuracy": Share(tf.reduce_sum(tf.cast(right, tf.float32)), tokens)},
        )

    def _logits(self, forward: ForwardPass, token_ids: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        options: dict[str, Any] = {"training": forward.training, "patch_mask": forward.patch_mask}
        if not (forward.training and self.attention_coverage):
            return forward.model.caption_logits(forward.patches, token_ids, mask, **options), None
        return forward.model.caption_logits(forward.patches, token_ids, mask, **options, return_scores=True)
