"""The masked language objective: guess hidden words from the rest and the image."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mmfusion.errors import ConfigError
from mmfusion.losses import MaskedTokens, mask_tokens, masked_language_loss
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.objectives.objective import ObjectiveOutput, Share
from mmfusion.training.replicas import gather, row_offset


class MaskedLanguageObjective:
    """Cross-entropy of hidden tokens given the other tokens, read both ways, and the image: a mean over all hidden tokens.

    See `mmfusion.losses.mask_tokens` for what is hidden. A validation hides the same places each time. A training with a
    `MomentumTeacher` learns from the guesses of the copy, too, which reads the same hidden text.

    Args:
        mask_id: Id of [MASK].
        special_ids: Ids that are never hidden.
        weight: Factor in the total loss. Default 1.
        rate: Share of the tokens that are hidden. Default 0.15.
        z_loss: Weight of the squared log-partition, in training alone. Default 0.
        seed: Seed of the hiding. Default 0.

    Raises:
        ConfigError: If the vocabulary has no [MASK].

    Example:
        >>> from mmfusion.training.objectives import MaskedLanguageObjective
        >>> MaskedLanguageObjective(mask_id=4, special_ids=(0, 1, 2, 3)).figures
        ('masked_language_loss', 'masked_language_accuracy')

    Source: Li et al., ALBEF, 2021 (arXiv:2107.07651), equations 3 and 7.
    """

    name = "masked_language"
    figures: tuple[str, ...] = ("masked_language_loss", "masked_language_accuracy")

    def __init__(
        self,
        *,
        mask_id: int | None,
        special_ids: Sequence[int],
        weight: float = 1.0,
        rate: float = 0.15,
        z_loss: float = 0.0,
        seed: int = 0,
    ) -> None:
        if mask_id is None:
            raise ConfigError(
                "hiding tokens needs a token that stands for them",
                where="objective.masked_language",
                expected="a vocabulary with [MASK]",
                fix="add [MASK] to it, or set objective.masked_language=null",
            )
        self.mask_id = mask_id
        self.special_ids = tuple(special_ids)
        self.weight = weight
        self.rate = rate
        self.z_loss = z_loss
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def __call__(self, forward: ForwardPass) -> ObjectiveOutput:
        """Computes the term for one batch."""
        targets, mask = forward.batch["token_ids"], forward.batch["token_mask"]
        masked = self._masked(forward)
        logits = forward.model.masked_language_logits(
            forward.patches, masked.token_ids, mask, training=forward.training, patch_mask=forward.patch_mask
        )
        # Regularisers and the teacher have no place in the figure by which models are compared.
        options = {"z_loss": self.z_loss} if forward.training else {}
        if forward.training and forward.teacher is not None:
            momentum = forward.momentum
            guesses = momentum.model.masked_language_logits(
                momentum.patches, masked.token_ids, mask, training=False, patch_mask=momentum.patch_mask
            )
            options.update(teacher_logits=guesses, alpha=forward.teacher.share())
        loss = masked_language_loss(logits, targets, masked.chosen, **options)
        count = tf.reduce_sum(loss.tokens)
        right = tf.logical_and(tf.argmax(logits, axis=-1, output_type=targets.dtype) == targets, masked.chosen)
        return ObjectiveOutput(
            Share(tf.reduce_sum(loss.loss_sum), count),
            {"masked_language_accuracy": Share(tf.reduce_sum(tf.cast(right, tf.float32)), count)},
        )

    def _masked(self, forward: ForwardPass) -> MaskedTokens:
        """This replica's rows; all replicas hold one state of the generator, so they draw the same for the whole batch."""
        token_ids = forward.batch["token_ids"]
        masked = mask_tokens(
            gather(token_ids),
            gather(forward.batch["token_mask"]),
            vocabulary_size=forward.model.text_encoder.vocabulary_size,
            mask_id=self.mask_id,
            special_ids=self.special_ids,
            rate=self.rate,
            seed=self.seed_generator if forward.training else self.seed,
        )
        start, size = [row_offset(token_ids), 0], [tf.shape(token_ids)[0], -1]
        return MaskedTokens(
            tf.cast(tf.slice(masked.token_ids, start, size), token_ids.dtype), tf.slice(masked.chosen, start, size)
        )
