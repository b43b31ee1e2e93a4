"""Images into patch tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError


@keras.saving.register_keras_serializable(package="mmfusion")
class PatchEmbedding(keras.layers.Layer):
    """Cuts images into squares, projects each linearly and adds a learned position.

    Args:
        patch_size: Side of a square in pixels.
        dim: Width of the tokens, D.

    Call arguments:
        images: ``float[B, H, W, 3]``.

    Returns:
        ``float[B, P, D]``, row-major over `grid`.

    Raises:
        ConfigError: If the images are no multiple of the patch size, or have no fixed size when the layer is built.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import PatchEmbedding
        >>> layer = PatchEmbedding(patch_size=4, dim=6)
        >>> tuple(layer(np.zeros((2, 8, 12, 3), "float32")).shape), layer.grid
        ((2, 6, 6), (2, 3))

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929), equation 1.
    """

    def __init__(self, *, patch_size: int, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.dim = dim
        self.grid: tuple[int, int] = (0, 0)
        self.projection = keras.layers.Dense(dim, dtype=self.dtype_policy, name="projection")

    def build(self, images_shape: Sequence[int | None]) -> None:
        """Builds the projection and the positions of the grid."""
        _, height, width, channels = images_shape
        if height is None or width is None or height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                "the patches do not fill the images",
                where=self.name,
                expected=f"a fixed height and width, multiples of {self.patch_size}",
                found=f"{height} x {width}",
            )
        self.grid = (height // self.patch_size, width // self.patch_size)
        self.projection.build((None, self.patch_size * self.patch_size * channels))
        self.position = self.add_weight(
            shape=(self.grid[0] * self.grid[1], self.dim),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="position_embedding",
        )
        self.built = True

    def call(self, images: KerasTensor) -> KerasTensor:
        """Embeds the patches; see the class."""
        (rows, columns), side = self.grid, self.patch_size
        patches = ops.reshape(images, (-1, rows, side, columns, side, images.shape[-1]))
        patches = ops.transpose(patches, (0, 1, 3, 2, 4, 5))
        patches = ops.reshape(patches, (-1, rows * columns, side * side * images.shape[-1]))
        return self.projection(patches) + self.position

    def compute_output_shape(self, images_shape: Sequence[int | None]) -> tuple[int | None, int, int]:
        """``[B, P, D]``."""
        return images_shape[0], (images_shape[1] // self.patch_size) * (images_shape[2] // self.patch_size), self.dim

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "patch_size": self.patch_size, "dim": self.dim}
