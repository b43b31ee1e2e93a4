"""Which way up a JPEG is, in TensorFlow operators only, so that an exported model knows it too."""

from __future__ import annotations

import tensorflow as tf

_HEAD = 65536  # The orientation is in the first segment in all but contrived files.
_ORIENTATION_TAG = 0x0112


def jpeg_orientation(content: tf.Tensor) -> tf.Tensor | int:
    """The EXIF orientation of a JPEG.

    Args:
        content: ``string[]``, the file's bytes.

    Returns:
        From 1 (upright) to 8, 1 where the file does not say or says nonsense: ``int32[]`` in graph, a number eagerly.

    Example:
        >>> import tensorflow as tf
        >>> jpeg_orientation(tf.io.encode_jpeg(tf.zeros([8, 8, 3], tf.uint8)))
        1

    Source: JEITA CP-3451, Exif 2.3, sections 4.5 and 4.6.
    """
    if tf.executing_eagerly():
        # A hundred small operators, one by one, take longer than decoding the picture.
        return _read_orientation(content.numpy()[:_HEAD])
    return _find_orientation(tf.io.decode_raw(tf.strings.substr(content, 0, _HEAD), tf.uint8))


def _read_orientation(raw: bytes) -> int:
    def number(at: int, size: int, order: str = "big") -> int:
        return int.from_bytes(raw[at : at + size], "little" if order == "little" else "big")

    segment = 2
    while raw[segment : segment + 1] == b"\xff" and segment + 30 < len(raw):
        marker = raw[segment + 1]
        if marker == 0xE1 and raw[segment + 4 : segment + 6] == b"Ex":
            tiff = segment + 10
            order = "little" if raw[tiff : tiff + 1] == b"I" else "big"
            directory = tiff + number(tiff + 4, 4, order)
            values = [
                number(entry + 8, 2, order)
                for entry in range(directory + 2, directory + 2 + 12 * min(number(directory, 2, order), 128), 12)
                if entry + 12 <= len(raw) and number(entry, 2, order) == _ORIENTATION_TAG
            ]
            return values[0] if values and 1 <= values[0] <= 8 else 1
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            break
        segment += 2 + max(number(segment + 2, 2), 2)
    return 1


def _find_orientation(raw: tf.Tensor) -> tf.Tensor:
    length = tf.size(raw)

    def at(position: tf.Tensor | int) -> tf.Tensor:
        # Reading behind the end gives the last byte: damaged files give a wrong number, which is then refused.
        return tf.cast(raw[tf.clip_by_value(position, 0, length - 1)], tf.int32)

    def is_other_segment(position: tf.Tensor) -> tf.Tensor:
        marker = at(position + 1)
        is_metadata = (at(position) == 0xFF) & (((marker >= 0xE0) & (marker <= 0xEF)) | (marker == 0xFE))
        is_exif = (marker == 0xE1) & (at(position + 4) == ord("E")) & (at(position + 5) == ord("x"))
        return is_metadata & ~is_exif & (position + 30 < length)

    def next_segment(position: tf.Tensor) -> tuple[tf.Tensor]:
        return (position + 2 + tf.maximum(256 * at(position + 2) + at(position + 3), 2),)

    def orientation_tag() -> tf.Tensor:
        tiff = segment + 10
        little = at(tiff) == ord("I")

        def number(position: tf.Tensor, size: int) -> tf.Tensor:
            value = tf.constant(0)
            for index in range(size):
                value = value * 256 + at(tf.where(little, position + size - 1 - index, position + index))
            return value

        directory = tiff + tf.clip_by_value(number(tiff + 4, 4), 0, _HEAD)
        start = tf.minimum(directory + 2, length)
        count = tf.minimum(tf.clip_by_value(number(directory, 2), 0, 128), (length - start) // 12)
        entries = tf.cast(tf.reshape(raw[start : start + 12 * count], [count, 12]), tf.int32)
        low, high = tf.where(little, 0, 1), tf.where(little, 1, 0)
        tags = tf.gather(entries, low, axis=1) + 256 * tf.gather(entries, high, axis=1)
        values = tf.gather(entries, 8 + low, axis=1) + 256 * tf.gather(entries, 8 + high, axis=1)
        value = tf.concat([tf.boolean_mask(values, tags == _ORIENTATION_TAG), [1]], 0)[0]
        return tf.where((value >= 1) & (value <= 8), value, 1)

    (segment,) = tf.while_loop(is_other_segment, next_segment, (tf.constant(2),))
    is_exif = (at(segment) == 0xFF) & (at(segment + 1) == 0xE1) & (segment + 30 < length)
    return tf.cond(is_exif, orientation_tag, lambda: tf.constant(1))
