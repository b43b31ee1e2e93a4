"""From the bytes of an image file to RGB, in TensorFlow operators only."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from mmfusion.data.exif import jpeg_orientation


def decode_image(content: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, WebP, GIF, BMP or JPEG XL to upright RGB.

    The same function serves eagerly, inside `tf.data` and inside an exported model.

    - JPEG: grey and CMYK become RGB; the EXIF orientation is applied (that of other formats is not);
      a truncated file is an error, never filled up with grey.
    - PNG: palettes and grey become RGB, 16 bits become 8, alpha is laid over white (a transparent colour of an RGB PNG
      stays that colour).
    - WebP: alpha over white; of an animation the first frame, without the canvas around it.
    - GIF: the first frame; transparent pixels are black (all that TensorFlow's decoder says).
    - BMP: 8-bit palettes, 24 and 32 bits; the fourth channel is ignored, since most writers leave it zero.

    Args:
        content: ``string[]``, the file's bytes.

    Returns:
        ``uint8[height, width, 3]``.

    Raises:
        tf.errors.InvalidArgumentError: If the bytes are no image, or a damaged one.

    Example:
        >>> import tensorflow as tf
        >>> half_red = tf.constant([[[255, 0, 0, 128]]], tf.uint8)
        >>> decode_image(tf.io.encode_png(half_red)).numpy().tolist()
        [[[255, 127, 127]]]
    """
    content = tf.convert_to_tensor(content, tf.string)
    content.shape.assert_has_rank(0)
    try:
        image = _decode_any(content)
    except UnicodeDecodeError as error:
        # TensorFlow quotes some of a damaged file in its message, and then fails to turn that into text.
        raise tf.errors.InvalidArgumentError(None, None, "damaged image") from error
    return tf.ensure_shape(image, [None, None, 3])


def _decode_any(content: tf.Tensor) -> tf.Tensor:
    return _if(
        _starts_with(content, b"\xff\xd8"),
        lambda: _decode_jpeg(content),
        lambda: _if(
            _starts_with(content, b"BM"),
            lambda: _decode_bmp(content),
            lambda: _to_rgb(
                _decode(_if(_starts_with(content, b"RI"), lambda: _still_webp(content), lambda: content), channels=0)
            ),
        ),
    )


def _starts_with(content: tf.Tensor, prefix: bytes) -> tf.Tensor | bool:
    if tf.executing_eagerly():
        return content.numpy().startswith(prefix)
    return tf.strings.substr(content, 0, len(prefix)) == prefix


def _if(condition: tf.Tensor | bool, then: Callable[[], tf.Tensor], otherwise: Callable[[], tf.Tensor]) -> tf.Tensor:
    # Picture by picture, `tf.cond` and its small operators take longer than decoding: what Python knows, it decides.
    if isinstance(condition, bool):
        return then() if condition else otherwise()
    return tf.cond(condition, then, otherwise)


def _decode(content: tf.Tensor, channels: int) -> tf.Tensor:
    return tf.io.decode_image(content, channels=channels, expand_animations=False)


def _decode_jpeg(content: tf.Tensor) -> tf.Tensor:
    decoded = _decode(content, channels=3)
    orientation = jpeg_orientation(content)
    # Orientations 5 to 8 swap the axes; what is left is a mirror along one axis, or both.
    turned = _if(orientation >= 5, lambda: tf.transpose(decoded, (1, 0, 2)), lambda: decoded)
    mirrored = _if(_is_one_of(orientation, (2, 3, 6, 7)), lambda: tf.reverse(turned, [1]), lambda: turned)
    return _if(_is_one_of(orientation, (3, 4, 7, 8)), lambda: tf.reverse(mirrored, [0]), lambda: mirrored)


def _is_one_of(orientation: tf.Tensor | int, values: tuple[int, ...]) -> tf.Tensor | bool:
    if isinstance(orientation, int):
        return orientation in values
    return tf.reduce_any(orientation == tf.constant(values))


def _to_rgb(image: tf.Tensor) -> tf.Tensor:
    channels = image.shape[-1] or tf.shape(image)[2]
    return _if(
        channels == 3,
        lambda: image,
        lambda: _if(channels == 1, lambda: tf.repeat(image, 3, axis=2), lambda: _over_white(image)),
    )


def _over_white(image: tf.Tensor) -> tf.Tensor:
    pixels = tf.cast(image, tf.float32)
    alpha = pixels[..., -1:] / 255.0
    colour = tf.round(pixels[..., :-1] * alpha + 255.0 * (1.0 - alpha))
    shape = tf.shape(image)
    # Grey with alpha has one colour channel, RGBA has three: both broadcast to three.
    return tf.cast(tf.broadcast_to(colour, [shape[0], shape[1], 3]), tf.uint8)


def _decode_bmp(content: tf.Tensor) -> tf.Tensor:
    image = _decode(content, channels=0)
    return tf.cond(tf.shape(image)[2] == 1, lambda: _apply_palette(image, content), lambda: image[..., :3])


def _apply_palette(indices: tf.Tensor, content: tf.Tensor) -> tf.Tensor:
    # TensorFlow returns the indices of an 8-bit BMP as if they were grey. The palette lies between the headers and
    # the pixels: four bytes a colour, blue first.
    header = tf.cast(tf.io.decode_raw(tf.strings.substr(content, 0, 54), tf.uint8), tf.int32)

    def integer(at: int) -> tf.Tensor:
        return header[at] + 256 * (header[at + 1] + 256 * (header[at + 2] + 256 * header[at + 3]))

    start, end = 14 + integer(14), integer(10)
    palette = tf.io.decode_raw(tf.strings.substr(content, start, end - start), tf.uint8)
    colours = tf.size(palette) // 4
    palette = tf.reverse(tf.reshape(palette[: colours * 4], [colours, 4])[:, :3], [1])
    rows = tf.cast(indices[..., 0], tf.int32)
    in_range = tf.debugging.assert_less(rows, colours, message="BMP palette is too short")
    with tf.control_dependencies([in_range] if in_range is not None else []):
        return tf.gather(palette, rows)


def is_animated_webp(content: tf.Tensor) -> tf.Tensor:
    """Whether a file's bytes, ``string[]``, are a WebP of several frames: ``bool[]``."""
    head = tf.strings.substr(content, 0, 64)
    head = tf.concat([tf.io.decode_raw(head, tf.uint8), tf.zeros([64], tf.uint8)], 0)[:64]
    extended = tf.reduce_all(head[8:16] == tf.constant(list(b"WEBPVP8X"), tf.uint8))
    return extended & (tf.bitwise.bitwise_and(head[20], tf.constant(2, tf.uint8)) != 0)


def _still_webp(content: tf.Tensor) -> tf.Tensor:
    """The first frame of an animated WebP as a WebP file of its own; any other WebP as it is."""
    # TensorFlow 2.21 writes past its buffer when an animation without alpha is decoded ("free(): invalid next size"),
    # which ends the process: no animation may reach its decoder.
    return tf.cond(is_animated_webp(content), lambda: _first_webp_frame(content), lambda: content)


def _first_webp_frame(content: tf.Tensor) -> tf.Tensor:
    length = tf.strings.length(content)

    def integer(at: tf.Tensor, size: int) -> tf.Tensor:
        # `substr` itself refuses a position behind the end, in words about positions.
        raw = tf.io.decode_raw(tf.strings.substr(content, tf.minimum(at, length), size), tf.uint8)
        raw = tf.concat([raw, tf.zeros([size], tf.uint8)], 0)[:size]
        return tf.reduce_sum(tf.cast(raw, tf.int32) * tf.constant([1 << (8 * i) for i in range(size)]))

    def name(at: tf.Tensor) -> tf.Tensor:
        return tf.strings.substr(content, tf.minimum(at, length), 4)

    def not_a_frame(at: tf.Tensor) -> tf.Tensor:
        return (name(at) != b"ANMF") & (at < length)

    def next_chunk(at: tf.Tensor) -> tuple[tf.Tensor]:
        size = integer(at + 4, 4)
        size = tf.where(size < 0, length, size)  # A size past 2 GiB can only be damage.
        return (tf.minimum(at + 8 + size + size % 2, length),)

    (at,) = tf.while_loop(not_a_frame, next_chunk, (tf.constant(30),))
    size = integer(at + 4, 4) - 16
    found = tf.debugging.Assert((size > 8) & (at + 24 + size <= length), ["animated WebP without a whole first frame"])
    with tf.control_dependencies([found] if found is not None else []):
        frame = tf.strings.substr(content, at + 24, size)
    has_alpha = tf.strings.substr(frame, 0, 4) == b"ALPH"
    sides = tf.strings.substr(content, at + 14, 6)  # width - 1 and height - 1 of the frame, three bytes each
    extended = tf.strings.join([b"VP8X\x0a\0\0\0\x10\0\0\0", sides])
    body = tf.where(has_alpha, tf.strings.join([extended, frame]), frame)
    total = tf.strings.length(body) + 4
    return tf.strings.join([b"RIFF", _little_endian(total), b"WEBP", body])


def _little_endian(number: tf.Tensor) -> tf.Tensor:
    # TensorFlow cannot turn integers into bytes: a table of the 256 bytes can.
    table = tf.constant([bytes([value]) for value in range(256)])
    return tf.strings.reduce_join([tf.gather(table, number // unit % 256) for unit in (1, 1 << 8, 1 << 16, 1 << 24)])
