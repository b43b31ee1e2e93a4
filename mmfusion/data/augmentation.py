"""Random changes of training pictures, as a pure function of a seed per picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import tensorflow as tf

from mmfusion.errors import ConfigError

if TYPE_CHECKING:
    from mmfusion.config import AugmentConfig

_NUMBERS = 8  # area, ratio, row, column, flip, brightness, contrast, saturation
_LUMA = (0.299, 0.587, 0.114)


class Augmentation:
    """Random resized crop, horizontal flip and colour jitter of a picture, as a pure function of its seed.

    Picture by picture, not batch by batch: what one needs stays in the processor's cache, which is twice as fast.

    Args:
        flip: Whether half of the pictures are mirrored. Captions that say left or right are then wrong. Default True.
        crop_scale: Range of the crop's share of the area, in (0, 1]; ``(1, 1)`` never crops. Default ``(0.8, 1.0)``.
        crop_ratio: Range of the crop's width over height, relative to the picture's. Default ``(3 / 4, 4 / 3)``.
        color: Strength of the jitter in [0, 1]: brightness, contrast and saturation are each multiplied by a number
            from ``[1 - color, 1 + color]``. Default 0.

    Call arguments:
        image: ``uint8`` or ``float32[H, W, 3]`` in [0, 255]; or a clip ``[F, H, W, 3]``, whose frames all change alike.
        seed: ``int64[2]``.
        mask: ``bool[F]`` of a clip, ``True`` = real frame; the others take no part in its mean colour. Default all.

    Returns:
        ``float32``, of the same shape, in [0, 255].

    Raises:
        ConfigError: If a range is impossible.

    Example:
        >>> import tensorflow as tf
        >>> from mmfusion.data import Augmentation
        >>> image = tf.random.stateless_uniform([8, 8, 3], [0, 0], maxval=255.0)
        >>> augment = Augmentation(color=0.2)
        >>> bool(tf.reduce_all(augment(image, [7, 1]) == augment(image, [7, 1])))
        True
        >>> bool(tf.reduce_all(augment(image, [7, 1]) == augment(image, [7, 2])))
        False

    Source: random resized crop: Szegedy et al., "Going deeper with convolutions", 2015, section 6.
    """

    def __init__(
        self,
        *,
        flip: bool = True,
        crop_scale: tuple[float, float] = (0.8, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        color: float = 0.0,
    ) -> None:
        if not 0.0 < crop_scale[0] <= crop_scale[1] <= 1.0:
            raise ConfigError("impossible crop_scale", expected="0 < low <= high <= 1", found=list(crop_scale))
        if not 0.0 < crop_ratio[0] <= crop_ratio[1]:
            raise ConfigError("impossible crop_ratio", expected="0 < low <= high", found=list(crop_ratio))
        if not 0.0 <= color <= 1.0:
            raise ConfigError("impossible color", expected="0 <= color <= 1", found=color)
        self.flip = flip
        self.crop_scale = (float(crop_scale[0]), float(crop_scale[1]))
        self.crop_ratio = (float(crop_ratio[0]), float(crop_ratio[1]))
        self.color = color

    @classmethod
    def from_config(cls, config: AugmentConfig) -> Augmentation:
        """The augmentation that a recipe asks for."""
        return cls(
            flip=config.flip,
            crop_scale=(config.crop_scale[0], config.crop_scale[1]),
            crop_ratio=(config.crop_ratio[0], config.crop_ratio[1]),
            color=config.color,
        )

    @property
    def is_identity(self) -> bool:
        """Whether nothing is changed."""
        return not (self.flip or self._crops or self.color)

    @property
    def _crops(self) -> bool:
        return self.crop_scale != (1.0, 1.0)

    def __call__(self, image: tf.Tensor, seed: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Changes a picture; see the class."""
        image = tf.convert_to_tensor(image)
        if self.is_identity:
            return tf.cast(image, tf.float32)
        numbers = tf.random.stateless_uniform([_NUMBERS], tf.cast(seed, tf.int64))
        if self._crops:
            image = self._cropped(image, numbers)
        elif self.flip:
            image = self._flipped(image, numbers)
        image = tf.cast(image, tf.float32)
        return self._jittered(image, numbers, mask) if self.color else image

    def _cropped(self, image: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        sides = tf.cast(tf.shape(image)[-3:-1], tf.float32)
        area = _between(numbers[0], *self.crop_scale)
        ratio = tf.exp(_between(numbers[1], math.log(self.crop_ratio[0]), math.log(self.crop_ratio[1])))
        share = tf.minimum(tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)]), 1.0)
        inner = tf.maximum(tf.round(sides * share), 1.0)
        start = tf.cast(tf.floor(numbers[2:4] * (sides - inner + 1.0)), tf.int32)
        end = start + tf.cast(inner, tf.int32)
        part = image[..., start[0] : end[0], start[1] : end[1], :]
        if self.flip:
            part = self._flipped(part, numbers)
        # A crop is never larger than the picture: nothing is scaled down, so plain bilinear sampling is enough.
        return tf.ensure_shape(tf.image.resize(part, tf.shape(image)[-3:-1], "bilinear"), image.shape)

    def _flipped(self, image: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        return tf.cond(numbers[4] < 0.5, lambda: tf.reverse(image, [-2]), lambda: image)

    def _jittered(self, image: tf.Tensor, numbers: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        brightness, contrast, saturation = tf.unstack(_between(numbers[5:8], 1.0 - self.color, 1.0 + self.color))
        # All three are linear in the colour: mean + contrast (pixel - mean), grey + saturation (pixel - grey), in which
        # the grey of the mean colour is unchanged. One product of matrices does them together.
        luma = tf.tile(tf.constant(_LUMA)[:, None], [1, 3])
        matrix = brightness * contrast * (saturation * tf.eye(3) + (1.0 - saturation) * luma)
        offset = brightness * (1.0 - contrast) * tf.reduce_mean(image if mask is None else tf.boolean_mask(image, mask))
        shape = tf.shape(image)
        pixels = tf.reshape(image, [-1, 3]) @ matrix
        return tf.ensure_shape(tf.clip_by_value(tf.reshape(pixels, shape) + offset, 0.0, 255.0), image.shape)


def _between(numbers: tf.Tensor, low: float, high: float) -> tf.Tensor:
    return low + numbers * (high - low)
