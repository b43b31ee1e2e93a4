"""Sinusoidal positions, added to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.checks import check_tokens, check_width
from mmfusion.layers.masks import length_of
from mmfusion.layers.positions import check_positions, sinusoid_grid, sinusoids


@keras.saving.register_keras_serializable(package="mmfusion")
class SinusoidalPositions(keras.layers.Layer):
    """``token_t + sinusoids(t)``, of any length, without weights; over a grid half of the features by row, half by column.

    Args:
        grid: Rows and columns, row-major; None is a line. Default None.
        base: The slowest turn is about ``1 / base`` a position. Default 10000.

    Call arguments:
        tokens: ``float[B, N, D]``, D even, or a multiple of 4 for a grid.
        offset: Position of the first token of a line; more than 0 when a text comes in pieces. Default 0.
        grid: Rows and columns that the tokens fill, whole numbers. Default: as built.

    Returns:
        ``float[B, N, D]``.

    Raises:
        ConfigError: If the tokens do not fill the grid, or rank, width or dtype is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import SinusoidalPositions
        >>> SinusoidalPositions()(np.zeros((1, 1, 4), "float32")).numpy().tolist()
        [[[0.0, 1.0, 0.0, 1.0]]]

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5; over a grid: He et al., MAE, 2022 (arXiv:2111.06377).
    """

    def __init__(self, *, grid: Sequence[int] | None = None, base: float = 10000.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = None if grid is None else tuple(grid)
        self.base = base
        self.supports_masking = True

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        """Checks that the sinusoids fill the width of the tokens."""
        self._dim = check_width(tokens_shape, "tokens", self.name)
        check_positions("sinusoidal", self._dim, 1 if self.grid is None else 2, self.name)
        self.built = True

    def call(self, tokens: KerasTensor, offset: int | KerasTensor = 0, grid: Sequence[int] | None = None) -> KerasTensor:
        """Adds the positions; see the class."""
        check_tokens(tokens, "tokens", self.name, self._dim)
        grid = self.grid if grid is None else grid
        if grid is None:
            position = sinusoids(ops.arange(length_of(tokens), dtype="int32") + offset, self._dim, self.base)
        else:
            check_positions("sinusoidal", self._dim, 2, self.name)
            if tokens.shape[1] not in (None, grid[0] * grid[1]):
                expected = f"{grid[0]} x {grid[1]} tokens"
                raise ConfigError(
                    "the tokens do not fit the positions", where=self.name, expected=expected, found=tokens.shape[1]
                )
            position = sinusoid_grid(grid[0], grid[1], self._dim, self.base)
        return tokens + ops.cast(position, tokens.dtype)

    def compute_output_shape(self, tokens_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """As the tokens."""
        return tuple(tokens_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "grid": self.grid, "base": self.base}
