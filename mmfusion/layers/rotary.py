"""Rotary position embedding."""

from __future__ import annotations

from keras import KerasTensor, ops


def apply_rotary(x: KerasTensor, positions: KerasTensor, base: float = 10000.0) -> KerasTensor:
    """Rotates pairs of features by an angle that grows with the position.

    Features i and i + d/2 turn by ``position · base^(-2i/d)``, so that the product of a query and a key depends on the
    distance of their positions alone.

    Args:
        x: ``float[B, T, H, d]``, d even.
        positions: ``int[T]``.
        base: The slowest turn is ``1 / base`` a position. Default 10000.

    Returns:
        ``float[B, T, H, d]``.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers.rotary import apply_rotary
        >>> x = np.ones((1, 2, 1, 4), "float32")
        >>> bool(np.allclose(apply_rotary(x, np.arange(2))[0, 0], 1.0))
        True

    Source: Su et al., RoFormer, 2021 (arXiv:2104.09864), equation 34.
    """
    half = x.shape[-1] // 2
    frequency = ops.power(float(base), -ops.arange(half, dtype="float32") / half)
    angle = ops.cast(positions, "float32")[:, None] * frequency[None]
    cosine, sine = (ops.cast(f(angle), x.dtype)[None, :, None, :] for f in (ops.cos, ops.sin))
    first, second = x[..., :half], x[..., half:]
    return ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
