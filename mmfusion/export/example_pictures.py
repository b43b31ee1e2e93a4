"""Drawn pictures for examples, warm-up requests and checks."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def example_image(size: int = 96) -> bytes:
    r"""A drawn picture as JPEG bytes: free of any licence, for examples and checks.

    Args:
        size: Its side in pixels. Default 96.

    Example:
        >>> from mmfusion.export.example_pictures import example_image
        >>> example_image()[:2]
        b'\xff\xd8'
    """
    ramp = tf.linspace(0.0, 255.0, size)
    red, green = tf.meshgrid(ramp, ramp)
    distance = tf.sqrt((red - 127.0) ** 2 + (green - 127.0) ** 2)
    blue = tf.where(distance < 80.0, 230.0, 40.0)
    return tf.io.encode_jpeg(tf.cast(tf.stack([red, green, blue], axis=-1), tf.uint8), quality=95).numpy()


def example_clip(size: int = 96, frames: int = 6) -> bytes:
    r"""A drawn moving picture as GIF bytes, as free as `example_image`.

    Args:
        size: Its side in pixels. Default 96.
        frames: Its frames. Default 6.

    Example:
        >>> from mmfusion.export.example_pictures import example_clip
        >>> example_clip()[:3]
        b'GIF'
    """
    import io

    from PIL import Image

    still = tf.io.decode_jpeg(example_image(size)).numpy()
    pictures = [Image.fromarray(np.roll(still, step * size // 12, axis=1)) for step in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return buffer.getvalue()
