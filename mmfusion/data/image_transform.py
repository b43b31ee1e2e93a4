"""From image files to the pixels that a model sees, the same in training, evaluation and exports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mmfusion.data.decoding import decode_image
from mmfusion.errors import ConfigError, DataError

_RESIZES = ("squash", "crop", "pad")
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic", "lanczos3": "lanczos3"}
_INTERPOLATIONS = ("bilinear", "bicubic", "area", "nearest", "lanczos3")


class ImageTransform:
    """Decodes, resizes and normalises a picture: ``(pixel / 255 - mean) / std``.

    All in graph, so the very same function is part of an export.

    Args:
        size: ``(height, width)``, or one number for both.
        resize: ``"squash"`` ignores the picture's shape; ``"crop"`` takes the largest centred part of the right shape;
            ``"pad"`` fits the whole picture in, centred on the mean colour. Default ``"squash"``.
        mean: Mean of each channel in [0, 1]. Default ``(0.5, 0.5, 0.5)``.
        std: Standard deviation of each channel. Default ``(0.5, 0.5, 0.5)``.
        interpolation: ``"bilinear"``, ``"bicubic"``, ``"area"``, ``"nearest"`` or ``"lanczos3"``; with antialiasing.
            Default ``"bicubic"``.

    Call arguments:
        content: ``string[]``, the bytes of a JPEG, PNG, WebP, GIF or BMP.

    Returns:
        ``float32[height, width, 3]``.

    Raises:
        ConfigError: If an argument is impossible.
        tf.errors.InvalidArgumentError: When called, if the bytes are no image.

    Example:
        >>> import tensorflow as tf
        >>> from mmfusion.data import ImageTransform
        >>> transform = ImageTransform(size=(4, 6))
        >>> white = tf.io.encode_png(tf.fill([10, 20, 3], tf.constant(255, tf.uint8)))
        >>> pixels = transform(white)
        >>> pixels.shape, float(tf.reduce_min(pixels))
        (TensorShape([4, 6, 3]), 1.0)
    """

    def __init__(
        self,
        *,
        size: int | Sequence[int],
        resize: str = "squash",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        interpolation: str = "bicubic",
    ) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
        if len(sides) != 2 or min(sides) < 1:
            raise ConfigError("impossible image size", expected="(height, width), each at least 1", found=size)
        if resize not in _RESIZES:
            raise ConfigError("unknown resize", expected=" or ".join(_RESIZES), found=repr(resize))
        if interpolation not in _INTERPOLATIONS:
            raise ConfigError("unknown interpolation", expected=" or ".join(_INTERPOLATIONS), found=repr(interpolation))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError("impossible normalisation", expected="three means and three positive stds", found=f"{mean}, {std}")
        self.size: tuple[int, int] = (sides[0], sides[1])
        self.resize_mode = resize
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.interpolation = interpolation

    @property
    def frames(self) -> int:
        """Pictures of an example: one. A `ClipTransform` has more."""
        return 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example, ``(H, W, 3)``."""
        return *self.size, 3

    def read(self, contents: Sequence[bytes]) -> tuple[np.ndarray, int]:
        """Decodes and resizes, operator by operator, the one file of an example: ``uint8[H, W, 3]``, and 1, the pictures in it.

        Raises:
            DataError: If there are several files.
            tf.errors.OpError: If it is no image.
        """
        if len(contents) != 1:
            raise DataError("several pictures", expected="one (data.frames is 1)", found=len(contents))
        return self.resize(self.decode(tf.constant(contents[0]))).numpy(), 1

    def __call__(self, content: tf.Tensor) -> tf.Tensor:
        """Decodes, resizes and normalises; see the class."""
        return self.normalize(self.resize(self.decode(content)))

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same transform again."""
        return {
            "size": self.size,
            "resize": self.resize_mode,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
        }

    def decode(self, content: tf.Tensor) -> tf.Tensor:
        """From ``string[]`` to ``uint8[h, w, 3]`` in the picture's own size; see `decode_image`."""
        return decode_image(content)

    def resize(self, image: tf.Tensor) -> tf.Tensor:
        """From ``uint8[h, w, 3]`` of any size to ``uint8[height, width, 3]``."""
        image = tf.convert_to_tensor(image)
        height, width = self.size
        if image.shape[:2].is_fully_defined():
            resized = image if image.shape[:2] == self.size else self._resize(image)
        else:
            is_right = tf.reduce_all(tf.shape(image)[:2] == tf.constant([height, width]))
            resized = tf.cond(is_right, lambda: image, lambda: self._resize(image))
        return tf.ensure_shape(resized, [height, width, 3])

    def normalize(self, image: tf.Tensor) -> tf.Tensor:
        """From ``uint8`` or ``float32[..., height, width, 3]`` in [0, 255] to ``float32``, what the model sees."""
        # Along whole rows: broadcasting along the three channels alone takes five times as long on a processor.
        width = self.size[1]
        scale = tf.constant([1.0 / (255.0 * std) for std in self.std] * width)
        shift = tf.constant([-mean / std for mean, std in zip(self.mean, self.std, strict=True)] * width)
        image = tf.convert_to_tensor(image)
        shape = tf.shape(image)
        rows = tf.reshape(image, tf.concat([shape[:-2], [3 * width]], 0))
        return tf.ensure_shape(tf.reshape(tf.cast(rows, tf.float32) * scale + shift, shape), image.shape)

    def _resize(self, image: tf.Tensor) -> tf.Tensor:
        if self.resize_mode == "squash":
            return self._scaled(image, self.size)
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        goal = tf.constant(self.size, tf.float32)
        if self.resize_mode == "crop":
            # Cropping first and scaling then never touches pixels that would be thrown away.
            inner = tf.maximum(tf.cast(tf.round(goal * tf.reduce_min(sides / goal)), tf.int32), 1)
            start = (tf.shape(image)[:2] - inner) // 2
            image = image[start[0] : start[0] + inner[0], start[1] : start[1] + inner[1]]
            return self._scaled(image, self.size)
        inner = tf.cast(tf.round(sides * tf.reduce_min(goal / sides)), tf.int32)
        inner = tf.clip_by_value(inner, 1, tf.constant(self.size))
        before = (tf.constant(self.size) - inner) // 2
        after = tf.constant(self.size) - inner - before
        margins = tf.stack([tf.stack([before[0], after[0]]), tf.stack([before[1], after[1]])])
        colour = tf.constant([round(255 * value) for value in self.mean], tf.int16)
        # Padding the difference from the mean with zeros pads with the mean.
        difference = tf.cast(self._scaled(image, inner), tf.int16) - colour
        return tf.cast(tf.pad(difference, tf.concat([margins, [[0, 0]]], 0)) + colour, tf.uint8)

    def _scaled(self, image: tf.Tensor, size: Any) -> tf.Tensor:
        if tf.executing_eagerly() and self.interpolation in _KERNELS:
            return self._scaled_at_once(image, size)
        scaled = tf.image.resize(image, size, method=self.interpolation, antialias=True)
        # Bicubic overshoots at edges.
        return tf.cast(tf.clip_by_value(tf.round(tf.cast(scaled, tf.float32)), 0.0, 255.0), tf.uint8)

    def _scaled_at_once(self, image: tf.Tensor, size: Any) -> tf.Tensor:
        # Operator by operator, what `tf.image.resize` does around its kernel costs as much as the kernel: this is the kernel
        # alone, with the same result to the bit.
        size = np.asarray(size, "int32")
        scaled = tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=size,
            scale=size.astype("float32") / np.asarray(image.shape[:2], "float32"),
            translation=[0.0, 0.0],
            kernel_type=_KERNELS[self.interpolation],
            antialias=True,
        )[0].numpy()
        np.rint(scaled, out=scaled)
        np.clip(scaled, 0.0, 255.0, out=scaled)
        return tf.constant(scaled.astype("uint8"))
