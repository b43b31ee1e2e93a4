"""Learned positions, added to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.checks import check_tokens, check_width
from mmfusion.layers.masks import length_of
from mmfusion.layers.positions import resize_grid


@keras.saving.register_keras_serializable(package="mmfusion")
class LearnedPositions(keras.layers.Layer):
    """``token_t + position_t``: along a line, or over a grid that can be another one than the layer was built for.

    Args:
        length: Number of positions of a line; or
        grid: Rows and columns, row-major.

    Call arguments:
        tokens: ``float[B, N, D]``.
        offset: Position of the first token of a line; more than 0 when a text comes in pieces. Default 0.
        grid: Rows and columns that the tokens fill, whole numbers; positions are interpolated to them (`resize_grid`). Default:
            as built.

    Returns:
        ``float[B, N, D]``.

    Raises:
        ConfigError: If not exactly one of length and grid is given, tokens do not fit them, or rank, width or dtype is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import LearnedPositions
        >>> layer, patches = LearnedPositions(grid=(2, 3)), np.ones((1, 6, 4), "float32")
        >>> tuple(layer(patches).shape), tuple(layer(np.ones((1, 20, 4), "float32"), grid=(4, 5)).shape)
        ((1, 6, 4), (1, 20, 4))

    Source: Gehring et al. 2017 (arXiv:1705.03122); over a grid, interpolated: Dosovitskiy et al. 2021 (arXiv:2010.11929).
    """

    def __init__(self, *, length: int | None = None, grid: Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = length
        self.grid = None if grid is None else tuple(grid)
        self.supports_masking = True
        if (length is None) == (grid is None) or min(self._sizes) < 1:
            found = f"length={length}, grid={grid}"
            raise ConfigError("impossible positions", where=self.name, expected="a length or a grid, at least 1", found=found)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.length or 0,) if self.grid is None else self.grid

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        """Builds the positions for the width of the tokens."""
        self._dim = check_width(tokens_shape, "tokens", self.name)
        number = self._sizes[0] if self.grid is None else self.grid[0] * self.grid[1]
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        self.position = self.add_weight(shape=(number, self._dim), initializer=initializer, name="position_embedding")
        self.built = True

    def call(self, tokens: KerasTensor, offset: int | KerasTensor = 0, grid: Sequence[int] | None = None) -> KerasTensor:
        """Adds the positions; see the class."""
        check_tokens(tokens, "tokens", self.name, self._dim)
        if self.grid is None:
            self._check(tokens, self._sizes[0], grid is None and (tokens.shape[1] or 0) <= self._sizes[0])
            places = ops.arange(length_of(tokens), dtype="int32") + offset
            return tokens + ops.cast(ops.take(self.position, places, axis=0), tokens.dtype)
        rows, columns = self.grid if grid is None else grid
        self._check(tokens, f"{rows} x {columns}", tokens.shape[1] in (None, rows * columns))
        position = resize_grid(ops.convert_to_tensor(self.position), self.grid, (rows, columns))
        return tokens + ops.cast(position, tokens.dtype)

    def _check(self, tokens: KerasTensor, room: object, fits: bool) -> None:
        if not fits:
            raise ConfigError(
                "the tokens do not fit the positions", where=self.name, expected=f"{room} tokens", found=tokens.shape[1]
            )

    def compute_output_shape(self, tokens_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """As the tokens."""
        return tuple(tokens_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "length": self.length, "grid": self.grid}
