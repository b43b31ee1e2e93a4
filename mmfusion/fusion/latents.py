"""What styles share that read the image through fewer tokens: their mask, and attention to patches through them."""

from __future__ import annotations

from keras import KerasTensor, ops

from mmfusion.fusion.scores import renormalized


def latents_mask(image_mask: KerasTensor | None, count: int) -> KerasTensor | None:
    """Which of `count` tokens that stand for an image are real: all, or none where the image has no real patch.

    Args:
        image_mask: ``bool[B, P]``, or None if all patches are real.
        count: N.

    Returns:
        ``bool[B, N]``, or None if all are real.

    Example:
        >>> import numpy as np
        >>> latents_mask(np.array([[True, False, True], [False] * 3]), 2).numpy().tolist()
        [[True, True], [False, False]]
    """
    if image_mask is None:
        return None
    return ops.repeat(ops.any(image_mask, axis=1, keepdims=True), count, axis=1)


def through_latents(to_latents: KerasTensor, to_patches: KerasTensor) -> KerasTensor:
    """Attention from text to patches by way of latents: the product of the two, renormalised.

    A head that reads latents reads what all heads that wrote them brought there, so the second factor is the mean over its heads.

    Args:
        to_latents: ``float32[B, ..., T, N]``.
        to_patches: ``float32[B, N, P]``, the mean over heads.

    Returns:
        ``float32[B, ..., T, P]``, rows summing to 1 or 0.

    Example:
        >>> import numpy as np
        >>> through_latents(np.ones((1, 2, 3, 4), "float32"), np.ones((1, 4, 2), "float32")).numpy()[0, 0, 0].tolist()
        [0.5, 0.5]
    """
    for _ in range(len(to_latents.shape) - 3):
        to_patches = to_patches[:, None]
    return renormalized(ops.matmul(to_latents, to_patches))
