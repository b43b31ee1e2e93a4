"""Images into patch tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.positions import check_positions, sinusoid_grid


@keras.saving.register_keras_serializable(package="mmfusion")
class PatchEmbedding(keras.layers.Layer):
    """Cuts images into squares, projects each linearly and adds a position: ``W · patch_p + b + position_p``.

    Args:
        patch_size: Side of a square in pixels.
        dim: Width of the tokens, D.
        positions: ``"learned"``, ``"sinusoidal"`` (over the grid; D a multiple of 4) or ``"none"``. Default ``"learned"``.
        use_bias: Whether there is a b. Default True.

    Call arguments:
        images: ``float[B, H, W, 3]``.

    Returns:
        ``float[B, P, D]``, row-major over `grid`.

    Raises:
        ConfigError: If `positions` are unknown, or the images are no multiple of the patch size, have no fixed size when the
            layer is built, have another size than it was built for, or are not ``float[B, H, W, channels]``.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import PatchEmbedding
        >>> layer = PatchEmbedding(patch_size=4, dim=6)
        >>> tuple(layer(np.zeros((2, 8, 12, 3), "float32")).shape), layer.grid
        ((2, 6, 6), (2, 3))

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929), equation 1.
    """

    def __init__(self, *, patch_size: int, dim: int, positions: str = "learned", use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.dim = dim
        self.positions = positions
        self.use_bias = use_bias
        self.grid: tuple[int, int] = (0, 0)
        if patch_size < 1 or dim < 1:
            raise ConfigError(
                "impossible sizes", where=self.name, expected="patch_size and dim at least 1", found=f"{patch_size} and {dim}"
            )
        check_positions(positions, dim, 2, self.name)
        self.projection = keras.layers.Dense(dim, use_bias=use_bias, dtype=self.dtype_policy, name="projection")

    def build(self, images_shape: Sequence[int | None]) -> None:
        """Builds the projection and the positions of the grid."""
        self.grid = self._grid_of(images_shape)
        self._image_shape = tuple(int(size) for size in images_shape[1:] if size)
        self.projection.build((None, self.patch_size * self.patch_size * self._image_shape[-1]))
        if self.positions == "learned":
            self.position = self.add_weight(
                shape=(self.grid[0] * self.grid[1], self.dim),
                initializer=keras.initializers.TruncatedNormal(stddev=0.02),
                name="position_embedding",
            )
        self.built = True

    def call(self, images: KerasTensor) -> KerasTensor:
        """Embeds the patches; see the class."""
        found = tuple(images.shape[1:])
        if len(found) != 3 or any(a is not None and a != b for a, b in zip(found, self._image_shape, strict=True)):
            raise ConfigError(
                "images of another size than the layer was built for",
                where=self.name,
                expected=["batch", *self._image_shape],
                found=list(images.shape),
                fix="resize the images",
            )
        dtype = keras.backend.standardize_dtype(images.dtype)
        if "float" not in dtype:
            fix = "cast and scale the images first"
            raise ConfigError(
                "images have a wrong dtype", where=self.name, expected="floating point numbers", found=dtype, fix=fix
            )
        (rows, columns), side, batch = self.grid, self.patch_size, ops.shape(images)[0]
        channels = self._image_shape[-1]
        patches = ops.reshape(images, (batch, rows, side, columns, side, channels))
        patches = ops.transpose(patches, (0, 1, 3, 2, 4, 5))
        patches = ops.reshape(patches, (batch, rows * columns, side * side * channels))
        tokens = self.projection(patches)
        if self.positions == "none":
            return tokens
        if self.positions == "learned":
            return tokens + self.position
        return tokens + ops.cast(sinusoid_grid(rows, columns, self.dim), tokens.dtype)

    def compute_output_shape(self, images_shape: Sequence[int | None]) -> tuple[int | None, int, int]:
        """``[B, P, D]``."""
        rows, columns = self._grid_of(images_shape)
        return images_shape[0], rows * columns, self.dim

    def _grid_of(self, shape: Sequence[int | None]) -> tuple[int, int]:
        side = self.patch_size
        height, width, channels = tuple(shape[1:]) if len(shape) == 4 else (None, None, None)
        if not height or not width or not channels or height % side or width % side:
            raise ConfigError(
                "the patches do not fill the images",
                where=self.name,
                expected=f"[batch, height, width, channels] with a fixed height and width, multiples of {side}",
                found=list(shape),
            )
        return height // side, width // side

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("patch_size", "dim", "positions", "use_bias")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
