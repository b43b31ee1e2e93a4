"""The matching objective with hard negatives."""

from __future__ import annotations

import keras
import tensorflow as tf

from mmfusion.losses import HardNegatives, matching_loss, sample_hard_negatives
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.objectives.objective import ObjectiveOutput, Share
from mmfusion.training.replicas import gather


class MatchingObjective:
    """Fused pairs are to be told from near misses.

    For each pair one image and one text of *other* images are drawn from the batch of all replicas, likelier the more similar
    the dual encoder finds them (`mmfusion.losses.sample_hard_negatives`); all three are fused and scored. A model without a
    contrastive head draws them evenly. A validation draws the same each time.

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
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def __call__(self, forward: ForwardPass) -> ObjectiveOutput:
        """Computes the term for one batch."""
        batch, image_id = forward.batch, forward.all_image_id
        size, everyone = tf.shape(batch["image_id"])[0], tf.shape(image_id)[0]
        similarity = tf.zeros((everyone, everyone)) if forward.model.contrastive_head is None else forward.similarity
        # All replicas hold one state of the generator, so they draw the same for the whole batch and take their own rows.
        drawn = sample_hard_negatives(similarity, image_id, seed=self.seed_generator if forward.training else self.seed)
        negatives = HardNegatives(*(tf.slice(part, [forward.offset], [size]) for part in drawn))
        images = tf.gather(gather(forward.patches), negatives.image_index)
        texts = tf.gather(gather(forward.text), negatives.text_index)
        text_mask = tf.gather(gather(batch["token_mask"]), negatives.text_index)
        patches = tf.concat([forward.patches, images, forward.patches], axis=0)
        text = tf.concat([forward.text, forward.text, texts], axis=0)
        mask = tf.concat([batch["token_mask"], batch["token_mask"], text_mask], axis=0)
        patch_mask = forward.patch_mask
        if patch_mask is not None:
            others = tf.gather(gather(patch_mask), negatives.image_index)
            patch_mask = tf.concat([patch_mask, others, patch_mask], axis=0)
        logits = forward.model.match_tokens(patches, text, mask, training=forward.training, patch_mask=patch_mask)
        labels = tf.concat([tf.ones(size), tf.zeros(2 * size)], axis=0)
        valid = tf.concat([tf.ones(size, tf.bool), negatives.valid, negatives.valid], axis=0)
        count = tf.reduce_sum(tf.cast(valid, tf.float32))
        loss = matching_loss(logits, labels, valid)
        right = tf.logical_and((logits > 0) == (labels > 0.5), valid)
        return ObjectiveOutput(
            Share(tf.reduce_sum(loss), count),
            {"matching_accuracy": Share(tf.reduce_sum(tf.cast(right, tf.float32)), count)},
        )
