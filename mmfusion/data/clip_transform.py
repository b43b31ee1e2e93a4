"""From the files of one example to a stack of pictures: the frames of a clip, or several images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mmfusion.data.frames import SAMPLINGS, decode_frames, frame_places
from mmfusion.data.image_transform import ImageTransform
from mmfusion.errors import ConfigError, DataError


class Clip(NamedTuple):
    """A stack of pictures.

    Attributes:
        image: ``float32[F, H, W, 3]``, what the model sees.
        image_mask: ``bool[F]``, ``True`` = real picture.
    """

    image: tf.Tensor
    image_mask: tf.Tensor


class ClipTransform:
    """Decodes and resizes the pictures of an example, and pads them to one number.

    One file is a clip: of an animated GIF with more frames than there is room for some are taken; a still picture is a clip of
    one frame. Several files are several images, still ones: all of them count, in their order.

    Args:
        image: How each picture is resized and normalised.
        frames: Room for so many pictures, F.
        sampling: Which frames of a longer clip are taken: ``"uniform"`` or ``"start"``, see `frame_places`. Default
            ``"uniform"``.

    Call arguments:
        content: ``string[]``, the bytes of one file, or ``string[N]`` of several, where an empty string stands for no picture.

    Returns:
        A `Clip`; in graph too, so the very same function is part of an export.

    Raises:
        ConfigError: If an argument is impossible.
        tf.errors.InvalidArgumentError: When called, if a file is no image, there are more than F, or one of several moves.

    Example:
        >>> import tensorflow as tf
        >>> from mmfusion.data import ClipTransform, ImageTransform
        >>> transform = ClipTransform(ImageTransform(size=4), frames=3)
        >>> white = tf.io.encode_png(tf.fill([10, 20, 3], tf.constant(255, tf.uint8)))
        >>> clip = transform(tf.stack([white, white]))
        >>> tuple(clip.image.shape), clip.image_mask.numpy().tolist()
        ((3, 4, 4, 3), [True, True, False])
    """

    def __init__(self, image: ImageTransform, *, frames: int, sampling: str = "uniform") -> None:
        if frames < 1:
            raise ConfigError("impossible number of frames", where="data.frames", expected="at least 1", found=frames)
        if sampling not in SAMPLINGS:
            raise ConfigError("unknown sampling of frames", expected=" or ".join(SAMPLINGS), found=repr(sampling))
        self.image = image
        self.frames = frames
        self.sampling = sampling

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.size

    @property
    def resize_mode(self) -> str:
        """How other shapes become that size."""
        return self.image.resize_mode

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example, ``(F, H, W, 3)``."""
        return self.frames, *self.image.shape

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same transform again."""
        return {**self.image.get_config(), "frames": self.frames, "sampling": self.sampling}

    def normalize(self, image: tf.Tensor) -> tf.Tensor:
        """From ``[0, 255]`` to what the model sees; see `ImageTransform.normalize`."""
        return self.image.normalize(image)

    def read(self, contents: Sequence[bytes]) -> tuple[np.ndarray, int]:
        """Decodes and resizes, operator by operator, the files of an example.

        Returns:
            ``uint8[F, H, W, 3]``, zeros where there is no picture, and how many there are.

        Raises:
            DataError: If there are too many files, or one of several moves.
            tf.errors.OpError: If a file is no image.
        """
        if len(contents) > self.frames:
            raise too_many_pictures(len(contents), self.frames)
        stack = np.zeros(self.shape, np.uint8)
        if len(contents) == 1:
            pictures = decode_frames(tf.constant(contents[0]))
            places = frame_places(pictures.shape[0], self.frames, self.sampling).numpy()
            pictures = [pictures[int(place)] for place in places]
        else:
            pictures = [_still(decode_frames(tf.constant(content)), number) for number, content in enumerate(contents, 1)]
        for place, picture in enumerate(pictures):
            stack[place] = self.image.resize(picture).numpy()
        return stack, len(pictures)

    def __call__(self, content: tf.Tensor) -> Clip:
        """Decodes, resizes, normalises and pads; see the class."""
        content = tf.convert_to_tensor(content, tf.string)
        if len(content.shape) == 0:
            pictures = self._resized_frames(content)
        else:
            given = tf.boolean_mask(content, content != b"")
            few = tf.debugging.assert_positive(tf.size(given), "no picture: expected at least one file that is not empty")
            with tf.control_dependencies([few] if few is not None else []):
                count = tf.size(given)
            pictures = tf.cond(count == 1, lambda: self._resized_frames(given[0]), lambda: self._resized_stills(given))
        count = tf.shape(pictures)[0]
        padded = tf.ensure_shape(tf.pad(pictures, [[0, self.frames - count], [0, 0], [0, 0], [0, 0]]), self.shape)
        return Clip(self.normalize(padded), tf.range(self.frames) < count)

    def _resized_frames(self, content: tf.Tensor) -> tf.Tensor:
        pictures = decode_frames(content)
        return self._resized(tf.gather(pictures, frame_places(tf.shape(pictures)[0], self.frames, self.sampling)))

    def _resized_stills(self, contents: tf.Tensor) -> tf.Tensor:
        def still(content: tf.Tensor) -> tf.Tensor:
            pictures = decode_frames(content)
            one = tf.debugging.assert_equal(tf.shape(pictures)[0], 1, "one of several pictures moves: expected still ones")
            with tf.control_dependencies([one] if one is not None else []):
                return self.image.resize(pictures[0])

        room = tf.debugging.assert_less_equal(tf.size(contents), self.frames, f"more pictures than {self.frames}")
        with tf.control_dependencies([room] if room is not None else []):
            return tf.map_fn(still, contents, fn_output_signature=tf.TensorSpec(self.image.shape, tf.uint8))

    def _resized(self, pictures: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(self.image.resize, pictures, fn_output_signature=tf.TensorSpec(self.image.shape, tf.uint8))


Transform = ImageTransform | ClipTransform
"""From the files of an example to what a model sees."""


def too_many_pictures(found: int, frames: int) -> DataError:
    """The error of an example with more files than there is room for."""
    return DataError("too many pictures", expected=f"at most {frames} (data.frames)", found=found)


def _still(pictures: tf.Tensor, number: int) -> tf.Tensor:
    if pictures.shape[0] != 1:
        raise DataError(
            "one of several pictures moves",
            where=f"picture {number}",
            expected="still pictures, or one animated file",
            found=f"{pictures.shape[0]} frames",
        )
    return pictures[0]
