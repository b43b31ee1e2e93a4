"""Sizes from headers, against Pillow's own files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmfusion.errors import DataError
from mmfusion.serving.image_header import read_header


def saved(sort: str, size: tuple[int, int], mode: str = "RGB", **options) -> bytes:
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, sort, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("sort", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("JPEG", "L", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0", "comment": b"\xff\xc0" * 9}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WebP", "RGB", {"lossless": True}),
        ("WebP", "RGB", {"quality": 50}),
        ("WebP", "RGBA", {"quality": 50}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
    ],
)
def test_sizes_are_those_of_the_file(sort, mode, options):
    content = saved(sort, (301, 23), mode, **options)
    assert read_header(content) == (sort, 301, 23, 301 * 23)
    assert tf.io.decode_image(content, expand_animations=False).shape[:2] == (23, 301)


def test_all_frames_of_an_animation_count():
    frames = [Image.new("RGB", (20, 10), (40 * shade, 0, 0)) for shade in range(6)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert tf.io.decode_gif(buffer.getvalue()).shape == (6, 10, 20, 3)
    assert read_header(buffer.getvalue()) == ("GIF", 20, 10, 6 * 200)
    webp = io.BytesIO()
    frames[0].save(webp, "WebP", save_all=True, append_images=frames[1:])
    assert read_header(webp.getvalue()) == ("WebP", 20, 10, 200)  # TensorFlow decodes its first frame alone


def test_a_bitmap_that_stands_on_its_head():
    content = bytearray(saved("BMP", (8, 6)))
    content[22:26] = (-6).to_bytes(4, "little", signed=True)
    assert read_header(bytes(content))[1:] == (8, 6, 48)


@pytest.mark.parametrize("sort", ["JPEG", "PNG", "WebP", "GIF", "BMP"])
def test_no_cut_and_no_spoilt_byte_is_more_than_an_error(sort):
    content = saved(sort, (16, 16))
    random = np.random.default_rng(1)
    for length in range(0, len(content), 7):
        spoilt = bytearray(content[:length])
        for place in random.integers(0, max(length, 1), 3):
            if length:
                spoilt[place] = random.integers(256)
        for attempt in (content[:length], bytes(spoilt)):
            try:
                assert read_header(attempt).pixels >= 0
            except DataError as error:
                assert "not a readable image [image_bytes]: expected JPEG, PNG" in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"a picture, believe me", b"\xff\xd8", b"\xff\xd8\xff\xd9" + bytes(20), b"RIFF0000WAVE" + bytes(40)]
)
def test_what_is_no_picture(content):
    with pytest.raises(DataError, match="not a readable image"):
        read_header(content)
