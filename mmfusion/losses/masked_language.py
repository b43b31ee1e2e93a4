"""Masked language modelling: which tokens are hidden, and what it costs to guess them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.losses.captioning_loss import CaptioningLoss, token_crossentropy


class MaskedTokens(NamedTuple):
    """A text with hidden places.

    Attributes:
        token_ids: ``int32[B, T]``, the text as the model is to read it.
        chosen: ``bool[B, T]``, the places that it is to guess.
    """

    token_ids: KerasTensor
    chosen: KerasTensor


def mask_tokens(
    token_ids: KerasTensor,
    token_mask: KerasTensor,
    *,
    vocabulary_size: int,
    mask_id: int,
    special_ids: Sequence[int],
    rate: float = 0.15,
    seed: int | keras.random.SeedGenerator,
) -> MaskedTokens:
    """Chooses places by chance and hides what stands there, as BERT does.

    Each real token that is not special is chosen with probability `rate`; a text where that chooses none gets one. Of the
    chosen, 80 % become `mask_id`, 10 % a random token that is not special, and 10 % stay as they are.

    Args:
        token_ids: ``int[B, T]``.
        token_mask: ``bool[B, T]``, ``True`` = real token.
        vocabulary_size: Number of token ids, V.
        mask_id: Id of [MASK].
        special_ids: Ids that are neither hidden nor put in another's place, such as [CLS]; `mask_id` always is one.
        rate: Share of the tokens that are chosen, above 0 and at most 1. Default 0.15.
        seed: A `SeedGenerator`, which moves on with each call, or an int, with which each call draws the same.

    Returns:
        The `MaskedTokens`. A text without an ordinary token is returned as it is, with no place chosen.

    Raises:
        ConfigError: If the rate is out of range, or no id is ordinary.

    Example:
        >>> import numpy as np
        >>> from mmfusion.losses import mask_tokens
        >>> ids = np.array([[2, 7, 8, 9, 3]])
        >>> masked = mask_tokens(ids, ids > 0, vocabulary_size=10, mask_id=4, special_ids=(0, 1, 2, 3), rate=1.0, seed=0)
        >>> [bool(chosen) for chosen in masked.chosen[0]], int(masked.token_ids[0, 0])
        ([False, True, True, True, False], 2)

    Source: Devlin et al., BERT, 2018 (arXiv:1810.04805), section 3.1.
    """
    special = sorted({*special_ids, mask_id})
    ordinary_count = vocabulary_size - len(special)
    if not 0.0 < rate <= 1.0 or ordinary_count < 1:
        raise ConfigError(
            "no tokens can be hidden",
            where="masked language",
            expected="a rate above 0 and at most 1, and a vocabulary with ordinary tokens",
            found=f"rate {rate}, {vocabulary_size} ids of which {len(special)} are special",
        )
    token_ids = ops.cast(token_ids, "int32")
    ordinary = ops.cast(token_mask, "bool")
    for special_id in special:
        ordinary = ops.logical_and(ordinary, token_ids != special_id)
    shape = ops.shape(token_ids)
    # One draw for all three decisions: an int seed would make three draws equal.
    uniform = keras.random.uniform((3, shape[0], shape[1]), dtype="float32", seed=seed)
    choice, fate, word = ops.where(ordinary, uniform[0], 2.0), uniform[1], uniform[2]
    # The smallest draw of a row is its likeliest place: chosen whatever the rate, so that no text teaches nothing.
    first = ops.arange(shape[1], dtype="int32")[None, :] == ops.cast(ops.argmin(choice, axis=-1), "int32")[:, None]
    chosen = ops.logical_and(ordinary, ops.logical_or(choice < rate, first))
    random_ids = ops.minimum(ops.cast(word * ordinary_count, "int32"), ordinary_count - 1)
    for special_id in special:
        # Skipping the special ids one by one, in order, leaves an even draw over the others.
        random_ids = random_ids + ops.cast(random_ids >= special_id, "int32")
    hidden = ops.where(fate < 0.8, mask_id, ops.where(fate < 0.9, random_ids, token_ids))
    return MaskedTokens(ops.where(chosen, hidden, token_ids), chosen)


def masked_language_loss(
    logits: KerasTensor,
    targets: KerasTensor,
    chosen: KerasTensor,
    *,
    teacher_logits: KerasTensor | None = None,
    alpha: KerasTensor | float = 0.0,
    z_loss: float = 0.0,
) -> CaptioningLoss:
    """Cross-entropy of the hidden tokens, in float32.

    ``loss[t] = -(1 - α) · log p[t, target[t]] - α · Σ_v q[t, v] · log p[t, v] + z · log² Σ_v exp(logits[t, v])``

    with ``p = softmax(logits)``, ``q = softmax(teacher_logits)`` and ``α = alpha``. No gradient passes to the teacher.

    Args:
        logits: ``float[B, T, V]``: at t the scores of the token that stood at t.
        targets: ``int[B, T]``, the text before anything was hidden.
        chosen: ``bool[B, T]``, the hidden places. What stands at others, NaN too, changes neither loss nor gradient.
        teacher_logits: ``float[B, T, V]``, what a momentum copy of the model guesses. Default: no teacher.
        alpha: Share of the teacher in the target, 0 to 1. Default 0.
        z_loss: Weight of the squared log-partition, which keeps logits from drifting. Default 0.

    Returns:
        Sums and counts over the hidden places; ``sum(loss_sum) / sum(tokens)`` is the mean.

    Example:
        >>> import numpy as np
        >>> from mmfusion.losses import masked_language_loss
        >>> loss = masked_language_loss(np.zeros((1, 3, 5)), np.ones((1, 3), int), np.array([[False, True, True]]))
        >>> round(float(loss.loss_sum[0]), 4), int(loss.tokens[0])
        (3.2189, 2)

    Source: Devlin et al. 2018 (arXiv:1810.04805); with an image and a teacher: Li et al., ALBEF, 2021 (arXiv:2107.07651),
    equation 7; the squared log-partition: Chowdhery et al., PaLM, 2022 (arXiv:2204.02311), section 5.
    """
    return token_crossentropy(logits, targets, chosen, teacher_logits=teacher_logits, alpha=alpha, z_loss=z_loss)
