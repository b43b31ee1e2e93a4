"""A regulariser of attention: a caption is to have looked everywhere."""

from __future__ import annotations

from keras import KerasTensor, ops


def attention_coverage(scores: KerasTensor, mask: KerasTensor) -> KerasTensor:
    """How unevenly a text has looked at its image: the doubly stochastic term of Show, Attend and Tell.

    ``loss = mean over layers and heads of Σ_p (τ - Σ_t scores[t, p])²`` over real tokens t, where ``τ = tokens / P`` is what
    each of P patches gets if all get the same. The paper asks for τ = 1, which no text reaches that is shorter than P.

    Args:
        scores: ``float[B, L, H, T, P]``, attention from text to image, rows summing to 1.
        mask: ``bool[B, T]``, ``True`` = real token. What stands behind the mask changes neither loss nor gradient.

    Returns:
        ``float32[B]``, 0 where every patch got the same attention.

    Example:
        >>> import numpy as np
        >>> from mmfusion.losses import attention_coverage
        >>> once_each, one_alone = np.eye(4)[None, None, None], np.eye(4)[[0, 0, 0, 0]][None, None, None]
        >>> [float(attention_coverage(scores, np.ones((1, 4), bool))[0]) for scores in (once_each, one_alone)]
        [0.0, 12.0]

    Source: Xu et al., Show, Attend and Tell, 2015 (arXiv:1502.03044), equation 14.
    """
    mask = ops.cast(mask, "bool")
    real = ops.where(mask[:, None, None, :, None], ops.cast(scores, "float32"), 0.0)
    looked = ops.sum(real, axis=-2)
    even = ops.sum(ops.cast(mask, "float32"), axis=-1) / ops.cast(ops.shape(scores)[-1], "float32")
    return ops.mean(ops.sum(ops.square(even[:, None, None, None] - looked), axis=-1), axis=(1, 2))
