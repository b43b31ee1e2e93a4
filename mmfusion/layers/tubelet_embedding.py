"""Clips into tubelet tokens: patches that reach over frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.checks import checked_mask
from mmfusion.layers.masks import without_masked


@keras.saving.register_keras_serializable(package="mmfusion")
class TubeletEmbedding(keras.layers.Layer):
    """Cuts clips into boxes of frames × rows × columns, projects each linearly and adds learned positions.

    ``token[f, p] = W · tubelet[f, p] + b + space[p] + time[f]``, with positions of space and of time apart: a place looks alike
    whenever it is seen.

    Args:
        patch_size: Side of a box in pixels.
        tubelet_size: Frames that a box reaches over. Default 1: patches of single frames.
        dim: Width of the tokens, D.

    Call arguments:
        clips: ``float[B, F, H, W, 3]``.
        frame_mask: ``bool[B, F]``, ``True`` = real frame. What stands in other frames never matters: it counts as zeros, in a box
            that has real frames too. Default: all real.

    Returns:
        ``float[B, F' · P, D]`` with ``F' = F / tubelet_size``, frame by frame, row-major over `grid`, which is
        ``(F', rows, cols)``. `token_mask` says which of them are real.

    Raises:
        ConfigError: If boxes do not fill the clips, frames or sizes are not fixed when the layer is built, clips have another
            size than it was built for, or are not floating point numbers.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import TubeletEmbedding
        >>> layer = TubeletEmbedding(patch_size=4, tubelet_size=2, dim=6)
        >>> tuple(layer(np.zeros((2, 4, 8, 12, 3), "float32")).shape), layer.grid
        ((2, 12, 6), (2, 2, 3))

    Source: Arnab et al., ViViT, 2021 (arXiv:2103.15691), section 3.2.
    """

    def __init__(self, *, patch_size: int, dim: int, tubelet_size: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.dim = dim
        self.grid: tuple[int, int, int] = (0, 0, 0)
        if min(patch_size, tubelet_size, dim) < 1:
            found = f"{patch_size}, {tubelet_size} and {dim}"
            raise ConfigError(
                "impossible sizes", where=self.name, expected="patch_size, tubelet_size and dim at least 1", found=found
            )
        self.projection = keras.layers.Dense(dim, dtype=self.dtype_policy, name="projection")

    def build(self, clips_shape: Sequence[int | None]) -> None:
        """Builds the projection and the positions of the grid."""
        self.grid = self._grid_of(clips_shape)
        self._clip_shape = tuple(int(size) for size in clips_shape[1:] if size)
        self.projection.build((None, self.tubelet_size * self.patch_size**2 * self._clip_shape[-1]))
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        frames, rows, columns = self.grid
        self.space = self.add_weight(shape=(rows * columns, self.dim), initializer=initializer, name="space_embedding")
        self.time = self.add_weight(shape=(frames, self.dim), initializer=initializer, name="time_embedding")
        self.built = True

    def call(self, clips: KerasTensor, frame_mask: KerasTensor | None = None) -> KerasTensor:
        """Embeds the boxes; see the class."""
        self._check_clips(clips)
        mask = checked_mask(frame_mask, "frame_mask", self.name, clips.shape, self._clip_shape[0], ranks=(2,))
        clips = without_masked(clips, mask)
        (frames, rows, columns), side, channels = self.grid, self.patch_size, self._clip_shape[-1]
        # Six axes, not eight: LiteRT turns no more.
        boxes = ops.reshape(clips, (-1, self.tubelet_size, rows, side, columns, side * channels))
        boxes = ops.transpose(boxes, (0, 2, 4, 1, 3, 5))
        boxes = ops.reshape(boxes, (-1, frames, rows * columns, self.tubelet_size * side * side * channels))
        tokens = self.projection(boxes) + self.space + self.time[:, None]
        return ops.reshape(tokens, (-1, frames * rows * columns, self.dim))

    def token_mask(self, frame_mask: KerasTensor | None) -> KerasTensor | None:
        """Which tokens are real, ``bool[B, F' · P]``: those of a box with a real frame; None if all frames are."""
        if frame_mask is None:
            return None
        frames, rows, columns = self.grid
        real = ops.any(ops.reshape(ops.cast(frame_mask, "bool"), (-1, frames, self.tubelet_size)), axis=-1)
        return ops.repeat(real, rows * columns, axis=1)

    def compute_output_shape(
        self, clips_shape: Sequence[int | None], frame_mask_shape: Sequence[int | None] | None = None
    ) -> tuple[int | None, int, int]:
        """``[B, F' · P, D]``."""
        frames, rows, columns = self._grid_of(clips_shape)
        return clips_shape[0], frames * rows * columns, self.dim

    def _check_clips(self, clips: KerasTensor) -> None:
        found = tuple(clips.shape[1:])
        if len(found) != 4 or any(a is not None and a != b for a, b in zip(found, self._clip_shape, strict=True)):
            raise ConfigError(
                "clips of another size than the layer was built for",
                where=self.name,
                expected=["batch", *self._clip_shape],
                found=list(clips.shape),
                fix="resize the frames; pad short clips and mask what is padded",
            )
        dtype = keras.backend.standardize_dtype(clips.dtype)
        if "float" not in dtype:
            fix = "cast and scale the frames first"
            raise ConfigError(
                "clips have a wrong dtype", where=self.name, expected="floating point numbers", found=dtype, fix=fix
            )

    def _grid_of(self, shape: Sequence[int | None]) -> tuple[int, int, int]:
        side, depth = self.patch_size, self.tubelet_size
        frames, height, width, channels = tuple(shape[1:]) if len(shape) == 5 else (None,) * 4
        if not frames or not height or not width or not channels or frames % depth or height % side or width % side:
            raise ConfigError(
                "the tubelets do not fill the clips",
                where=self.name,
                expected=f"[batch, frames, height, width, channels], all fixed but the batch, frames a multiple of {depth}, "
                f"height and width of {side}",
                found=list(shape),
            )
        return frames // depth, height // side, width // side

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "tubelet_size": self.tubelet_size,
            "dim": self.dim,
        }
