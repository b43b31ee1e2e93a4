"""Rotary position embedding, along a line or over a grid."""

from __future__ import annotations

from keras import KerasTensor, ops


def apply_rotary(x: KerasTensor, positions: KerasTensor, base: float = 10000.0) -> KerasTensor:
    """Rotates pairs of features by an angle that grows with the position.

    Features i and i + d/2 turn by ``position · base^(-2i/d)``, so that the product of a query and a key depends on the
    distance of their positions alone. With positions of two axes the first half of the features turns so by row and the second
    half by column.

    Args:
        x: ``float[B, H, T, d]``, d even, or a multiple of 4 for two axes. Position 0 leaves a token as it is.
        positions: ``int[T]``, or ``int[T, 2]`` of rows and columns.
        base: The slowest turn is ``1 / base`` a position. Default 10000.

    Returns:
        ``float[B, H, T, d]``.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers.rotary import apply_rotary
        >>> x = np.ones((1, 1, 2, 4), "float32")
        >>> bool(np.allclose(apply_rotary(x, np.arange(2))[0, 0, 0], 1.0))
        True

    Source: Su et al., RoFormer, 2021 (arXiv:2104.09864), equation 34; over a grid: Heo et al. 2024 (arXiv:2403.13298), axial.
    """
    if len(positions.shape) == 2:
        middle = x.shape[-1] // 2
        rows, columns = apply_rotary(x[..., :middle], positions[:, 0], base), apply_rotary(x[..., middle:], positions[:, 1], base)
        return ops.concatenate([rows, columns], axis=-1)
    half = x.shape[-1] // 2
    frequency = ops.power(float(base), -ops.arange(half, dtype="float32") / half)
    angle = ops.cast(positions, "float32")[:, None] * frequency[None]
    cosine, sine = (ops.cast(f(angle), x.dtype)[None, None] for f in (ops.cos, ops.sin))
    first, second = x[..., :half], x[..., half:]
    return ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def rotary_positions(places: KerasTensor, num_unrotated: int = 0, columns: int | None = None) -> KerasTensor:
    """Positions for `apply_rotary` of tokens that stand at `places`, ``int32[T]``.

    Args:
        places: Where the tokens stand in their sequence, from 0.
        num_unrotated: Leading tokens without a position; the token after them has position 0. Default 0.
        columns: Columns of the grid that the other tokens fill row by row; None places them along a line.

    Returns:
        ``int32[T]``, or ``int32[T, 2]`` of rows and columns.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers.rotary import rotary_positions
        >>> rotary_positions(np.arange(5), num_unrotated=1, columns=2).numpy().tolist()
        [[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]]
    """
    positions = ops.maximum(places - num_unrotated, 0) if num_unrotated else places
    if columns is None:
        return positions
    return ops.stack([ops.floor_divide(positions, columns), ops.mod(positions, columns)], axis=-1)
