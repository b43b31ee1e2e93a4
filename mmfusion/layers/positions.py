"""Positions as vectors: sinusoids along a line and over a grid, and learned grids resized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError

POSITIONS = ("learned", "sinusoidal", "none")


def sinusoids(positions: KerasTensor, dim: int, base: float = 10000.0) -> KerasTensor:
    """``sin(p / base^(2i/D))`` at feature 2i and its cosine at 2i + 1.

    Args:
        positions: ``int[T]``.
        dim: D, even.
        base: The slowest turn is about ``1 / base`` a position. Default 10000.

    Returns:
        ``float32[T, D]``.

    Example:
        >>> import numpy as np
        >>> sinusoids(np.array([0]), 4).numpy().tolist()
        [[0.0, 1.0, 0.0, 1.0]]

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
    """
    frequency = ops.power(float(base), -ops.arange(0, dim, 2, dtype="float32") / dim)
    angle = ops.cast(positions, "float32")[:, None] * frequency[None]
    return ops.reshape(ops.stack([ops.sin(angle), ops.cos(angle)], axis=-1), (-1, dim))


def sinusoid_grid(rows: int, columns: int, dim: int, base: float = 10000.0) -> KerasTensor:
    """`sinusoids` of the row in the first half of the features, of the column in the second.

    Args:
        rows: Rows of the grid.
        columns: Columns of the grid.
        dim: D, a multiple of 4.
        base: See `sinusoids`. Default 10000.

    Returns:
        ``float32[rows * columns, D]``, row-major.

    Example:
        >>> tuple(sinusoid_grid(2, 3, 8).shape)
        (6, 8)

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929), appendix D.4; in this form He et al., MAE, 2022 (arXiv:2111.06377).
    """
    by_row, by_column = (sinusoids(ops.arange(size), dim // 2, base) for size in (rows, columns))
    shape = (rows, columns, dim // 2)
    halves = [ops.broadcast_to(by_row[:, None], shape), ops.broadcast_to(by_column[None], shape)]
    return ops.reshape(ops.concatenate(halves, axis=-1), (rows * columns, dim))


def resize_grid(position: KerasTensor, grid: Sequence[int], new_grid: Sequence[int]) -> KerasTensor:
    """Positions of a grid, interpolated bicubically to another: as torch does it, so that converted models keep their numbers.

    Args:
        position: ``float[rows * columns, D]``, row-major.
        grid: Rows and columns.
        new_grid: Rows and columns to make of them.

    Returns:
        ``float[new rows * new columns, D]``.

    Example:
        >>> import numpy as np
        >>> resize_grid(np.array([[0.0], [1.0]]), (1, 2), (1, 3)).numpy().round(4).tolist()
        [[-0.0868], [0.5], [1.0868]]

    Source: Keys 1981 with a = -0.75, half-pixel centres, no smoothing, repeated edges: ``torch.nn.functional.interpolate``.
    """
    if tuple(grid) == tuple(new_grid):
        return position
    dtype = ops.dtype(position) if hasattr(position, "dtype") else "float32"
    by_row, by_column = (ops.cast(_cubic(old, new), dtype) for old, new in zip(grid, new_grid, strict=True))
    cells = ops.reshape(position, (grid[0], grid[1], position.shape[-1]))
    return ops.reshape(ops.einsum("ir,jc,rcd->ijd", by_row, by_column, cells), (new_grid[0] * new_grid[1], position.shape[-1]))


def _cubic(old: int, new: int) -> np.ndarray:
    """Weights of old places for each new one, ``float32[new, old]``."""
    a, weights = -0.75, np.zeros((new, old))
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    left = np.floor(centre).astype(int)
    for step in (-1, 0, 1, 2):
        distance = np.abs(centre - (left + step))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(left + step, 0, old - 1)), np.where(distance <= 1, near, far))
    return weights.astype("float32")


def check_positions(positions: str, dim: int, axes: int, where: str) -> None:
    """Refuses an unknown kind of positions, and sinusoids that do not fill the features of D."""
    if positions not in POSITIONS:
        raise ConfigError("unknown positions", where=where, expected=" or ".join(POSITIONS), found=repr(positions))
    if positions == "sinusoidal" and dim % (2 * axes):
        expected = f"a width that is a multiple of {2 * axes}"
        raise ConfigError("sinusoids do not fill the features", where=where, expected=expected, found=dim)
