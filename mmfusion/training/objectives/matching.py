"""The matching objective with hard negatives."""

from __future__ import annotations

import keras
import tensorflow as tf

from mmfusion.losses import matching_loss, sample_hard_negatives
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.objectives.objective import ObjectiveOutput, Share


class MatchingObjective:
    """Fused pairs are to be told from near misses.

    For each pair of this replica's batch one image and one text of *other* images are drawn, likelier the more similar the
    dual encoder finds them (`mmfusion.losses.sample_hard_negatives`); all three are fused and scored. A model without a
    contrastive head draws them evenly.

    Args:
        weight: Factor in the total loss. Default 1.
        seed: Seed of the drawing. Default 0.

    Example:
        >>> from mmfusion.training.objectives import MatchingObjective
        >>> MatchingObjective().name
        'matching'

    Source: Li et al., ALBEF, 2021 (arXiv:2107.07651), section 3.2.
    """

    name = "matching"
    figures: tuple[str, ...] = ("matching_loss", "matching_accuracy")

    def __init__(self, *, weight: float = 1.0, seed: int = 0) -> None:
        self.weight = weight
        self.seed_generator = keras.random.SeedGenerator(seed)

    def __call__(self, forward: ForwardPass) -> ObjectiveOutput:
        """Computes the term for one batch."""
        batch = forward.batch
        size = tf.shape(batch["image_id"])[0]
        similarity = tf.zeros((size, size)) if forward.model.contrastive_head is None else forward.similarity
        negatives = sample_hard_negatives(similarity, batch["image_id"], seed=self.seed_generator)
        patches = tf.concat([forward.patches, tf.gather(forward.patches, negatives.image_index), forward.patches], axis=0)
        text = tf.concat([forward.text, forward.text, tf.gather(forward.text, negatives.text_index)], axis=0)
        mask = tf.concat([batch["token_mask"], batch["token_mask"], tf.gather(batch["token_mask"], negatives.text_index)], axis=0)
        logits = forward.model.match_tokens(patches, text, mask, training=forward.training)
        labels = tf.concat([tf.ones(size), tf.zeros(2 * size)], axis=0)
        valid = tf.concat([tf.ones(size, tf.bool), negatives.valid, negatives.valid], axis=0)
        count = tf.reduce_sum(tf.cast(valid, tf.float32))
        loss = matching_loss(logits, labels, valid)
        right = tf.logical_and((logits > 0) == (labels > 0.5), valid)
        return ObjectiveOutput(
            Share(tf.reduce_sum(loss), count),
            {"matching_accuracy": Share(tf.reduce_sum(tf.cast(right, tf.float32)), count)},
        )
