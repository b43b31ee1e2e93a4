"""Moving pictures: all frames of a file, and which of them a clip takes."""

from __future__ import annotations

import tensorflow as tf

from mmfusion.data.decoding import decode_image, is_animated_webp

SAMPLINGS = ("uniform", "start")


def decode_frames(content: tf.Tensor) -> tf.Tensor:
    """Decodes every frame of a picture's file; a still picture has one.

    A GIF's frames are laid over each other as they are shown (TensorFlow's decoder leaves what a frame does not draw, also where
    the file says that it is to be cleared). Of an animated PNG the still picture counts. Eagerly and in graph alike.

    Args:
        content: ``string[]``, the file's bytes; see `decode_image`.

    Returns:
        ``uint8[frames, height, width, 3]``.

    Raises:
        tf.errors.InvalidArgumentError: If the bytes are no image, a damaged one, or an animated WebP, of which TensorFlow decodes
            no more than the first frame.

    Example:
        >>> import tensorflow as tf
        >>> tuple(decode_frames(tf.io.encode_png(tf.zeros([4, 6, 3], tf.uint8))).shape)
        (1, 4, 6, 3)
    """
    content = tf.convert_to_tensor(content, tf.string)
    if tf.executing_eagerly():
        start = content.numpy()[:3]
        if start == b"GIF":
            return _decode_gif(content)
        return _decode_still(content) if start == b"RIF" else decode_image(content)[None]
    is_gif = tf.strings.substr(content, 0, 3) == b"GIF"
    frames = tf.cond(is_gif, lambda: _decode_gif(content), lambda: _decode_still(content))
    return tf.ensure_shape(frames, [None, None, None, 3])


def frame_places(count: int | tf.Tensor, frames: int, sampling: str = "uniform") -> tf.Tensor:
    """Which of `count` frames a clip of at most `frames` takes, in their order.

    Args:
        count: Frames that there are.
        frames: Frames that there is room for.
        sampling: ``"uniform"`` spreads them evenly from the first to the last; ``"start"`` takes the first ones. Default
            ``"uniform"``.

    Returns:
        ``int32[min(count, frames)]``.

    Example:
        >>> [frame_places(count, 4).numpy().tolist() for count in (2, 10)], frame_places(10, 4, "start").numpy().tolist()
        ([[0, 1], [0, 3, 6, 9]], [0, 1, 2, 3])
    """
    taken = tf.range(tf.minimum(tf.cast(count, tf.int32), frames))
    if sampling == "start" or frames == 1:
        return taken
    # Whole numbers, so that every machine rounds alike; fewer frames than there is room for are all taken.
    last, steps = tf.cast(count, tf.int32) - 1, frames - 1
    return tf.where(last < steps, taken, (2 * taken * last + steps) // (2 * steps))


def _decode_gif(content: tf.Tensor) -> tf.Tensor:
    try:
        return tf.io.decode_gif(content)
    except UnicodeDecodeError as error:
        # TensorFlow quotes some of a damaged file in its message, and then fails to turn that into text.
        raise tf.errors.InvalidArgumentError(None, None, "damaged image") from error


def _decode_still(content: tf.Tensor) -> tf.Tensor:
    moves = is_animated_webp(content)
    checked = tf.debugging.Assert(tf.logical_not(moves), ["an animated WebP in a clip: expected an animated GIF"])
    with tf.control_dependencies([checked] if checked is not None else []):
        return decode_image(tf.identity(content))[None]
