"""Near misses for the matching loss, drawn in graph from the similarities that a batch already has."""

from __future__ import annotations

from typing import NamedTuple

import keras
from keras import KerasTensor, ops


class HardNegatives(NamedTuple):
    """One wrong image for each text and one wrong text for each image.

    Attributes:
        image_index: ``int32[B]``, for text i an image that is not its own.
        text_index: ``int32[B]``, for image i a text that is not its own.
        valid: ``bool[B]``, whether i has such a partner at all; where False the indices mean nothing (but can be
            gathered).
    """

    image_index: KerasTensor
    text_index: KerasTensor
    valid: KerasTensor


def sample_hard_negatives(
    similarity: KerasTensor, image_id: KerasTensor, seed: int | keras.random.SeedGenerator
) -> HardNegatives:
    """Draws negatives, likelier the more similar they are.

    ``P(image j for text i) = softmax_j(similarity[j, i])`` and ``P(text j for image i) = softmax_j(similarity[i, j])``,
    over those j whose image is another. No gradient passes.

    Args:
        similarity: ``float[B, B]``, images (rows) by texts (columns), scaled as for the contrastive softmax. Zeros draw
            evenly.
        image_id: ``int[B]``; rows with the same id show the same image and are never drawn for each other.
        seed: A `SeedGenerator`, which moves on with each call, or an int, with which each call draws the same.

    Returns:
        The indices.

    Example:
        >>> import numpy as np
        >>> from mmfusion.losses import sample_hard_negatives
        >>> negatives = sample_hard_negatives(np.zeros((3, 3)), np.array([5, 5, 9]), seed=0)
        >>> [int(i) for i in negatives.image_index[:2]], [bool(v) for v in negatives.valid]
        ([2, 2], [True, True, True])

    Source: Li et al., ALBEF, 2021 (arXiv:2107.07651), section 3.2.
    """
    similarity = ops.stop_gradient(ops.cast(similarity, "float32"))
    image_id = ops.convert_to_tensor(image_id)
    negative = image_id[:, None] != image_id[None, :]
    size = ops.shape(similarity)[0]
    # The largest of logits plus Gumbel noise is a draw from their softmax. Unlike `keras.random.categorical` it
    # compiles with XLA, and what is masked with -inf cannot be drawn by rounding. `minval` keeps the noise finite.
    uniform = keras.random.uniform((2, size, size), minval=1e-30, maxval=1.0, dtype="float32", seed=seed)
    gumbel = -ops.log(-ops.log(uniform))
    logits = ops.stack([ops.transpose(similarity), similarity]) + gumbel
    index = ops.cast(ops.argmax(ops.where(negative, logits, float("-inf")), axis=-1), "int32")
    return HardNegatives(index[0], index[1], ops.any(negative, axis=-1))
