"""Every kind of picture that people have, against Pillow; eagerly and in graph; and garbage."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from mmfusion.data import decode_image

in_graph = tf.function(decode_image, input_signature=[tf.TensorSpec([], tf.string)])


def with_pillow(content: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode in ("P", "LA", "RGBA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return np.asarray(image.convert("RGB"))


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write in colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def both(content: bytes) -> np.ndarray:
    eager, graph = decode_image(tf.constant(content)).numpy(), in_graph(tf.constant(content)).numpy()
    np.testing.assert_array_equal(eager, graph)
    assert eager.dtype == np.uint8 and eager.ndim == 3 and eager.shape[-1] == 3
    return eager


def variants(gradient: np.ndarray, encode) -> dict[str, bytes]:
    image = Image.fromarray(gradient)
    ramp = np.linspace(0, 255, 60).astype(np.uint8)[None, :, None].repeat(40, 0)
    translucent = Image.fromarray(np.concatenate([gradient, ramp], -1), "RGBA")
    palette = image.quantize(16)
    turned = image.transpose(Image.Transpose.ROTATE_180)
    return {
        "jpeg": encode(image, "JPEG", quality=95),
        "progressive jpeg": encode(image, "JPEG", quality=95, progressive=True),
        "cmyk jpeg": encode(image.convert("CMYK"), "JPEG", quality=95),
        "grey jpeg": encode(image.convert("L"), "JPEG"),
        "png": encode(image),
        "grey png": encode(image.convert("L")),
        "1-bit png": encode(image.convert("1")),
        "grey png with alpha": encode(translucent.convert("LA")),
        "png with alpha": encode(translucent),
        "palette png": encode(palette),
        "palette png with alpha": encode(palette, transparency=3),
        "bmp": encode(image, "BMP"),
        "palette bmp": encode(palette, "BMP"),
        "grey bmp": encode(image.convert("L"), "BMP"),
        "gif": encode(palette, "GIF"),
        "animated gif": encode(palette, "GIF", save_all=True, append_images=[palette.rotate(180)], duration=9),
        "webp": encode(image, "WEBP"),
        "lossless webp": encode(image, "WEBP", lossless=True),
        "webp with alpha": encode(translucent, "WEBP", lossless=True),
        "animated webp": encode(image, "WEBP", save_all=True, append_images=[turned], duration=9),
        "animated webp with alpha": encode(
            translucent, "WEBP", save_all=True, append_images=[translucent.rotate(180)], duration=9
        ),
        "animated webp with profile": encode(
            image, "WEBP", save_all=True, append_images=[turned], duration=9, icc_profile=b"odd length"[:9]
        ),
    }


NAMES = list(variants(np.zeros((40, 60, 3), np.uint8), lambda *args, **kwargs: b""))


@pytest.mark.parametrize("name", NAMES)
def test_equals_pillow(name, gradient, encode):
    content = variants(gradient, encode)[name]
    # JPEG decoders may round differently, everything else is exact.
    np.testing.assert_allclose(both(content), with_pillow(content), atol=4 if "jpeg" in name else 0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_become_eight(channels):
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (6, 5, channels)).astype(np.uint16)
    got = both(png16(pixels)).astype(int)
    values = pixels / 257.0
    if channels in (2, 4):
        alpha = values[..., -1:] / 255.0
        values = values[..., :-1] * alpha + 255.0 * (1 - alpha)
    np.testing.assert_allclose(got, np.broadcast_to(values, got.shape), atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["little", "big"])
def test_exif_orientation(orientation, order, gradient, encode):
    exif = Image.Exif()
    exif.endian = "<" if order == "little" else ">"
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    content = encode(gradient, "JPEG", quality=98, exif=exif.tobytes())
    assert content.count(b"II*\0" if order == "little" else b"MM\0*") == 1
    decoded = both(content)
    assert decoded.shape == ((60, 40, 3) if orientation >= 5 else (40, 60, 3))
    np.testing.assert_allclose(decoded, with_pillow(content), atol=8)


def test_nonsense_in_exif_means_upright(gradient, encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(gradient, "JPEG", exif=exif.tobytes())
    at = content.index(b"Exif\0\0") + 6
    plain = both(encode(gradient, "JPEG"))
    for damage in (
        content[: at + 4] + b"\xff\xff\xff\x7f" + content[at + 8 :],  # the directory is behind the end
        content[: at + 18] + b"\x63\x63" + content[at + 20 :],  # orientation 25443
    ):
        np.testing.assert_array_equal(both(damage), plain)


def test_the_fourth_channel_of_a_bmp_is_no_alpha(gradient, encode):
    empty = np.concatenate([gradient, np.zeros((40, 60, 1), np.uint8)], -1)
    np.testing.assert_array_equal(both(encode(Image.fromarray(empty, "RGBA"), "BMP")), gradient)


@pytest.mark.parametrize(
    ("name", "keep"),
    [("jpeg", 0.6), ("jpeg", 0.999), ("progressive jpeg", 0.6), ("png with alpha", 0.6), ("gif", 0.3), ("bmp", 0.5)]
    + [("webp", 0.5), ("animated webp", 0.3), ("animated webp with alpha", 0.3)],
)
def test_a_truncated_file_is_an_error(name, keep, gradient, encode):
    content = variants(gradient, encode)[name]
    for decode in (decode_image, in_graph):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode(tf.constant(content[: int(keep * len(content))]))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"\xff\xd8", b"BM", b"BM" + b"\0" * 60, b"RI", b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0\2", b"GIF89a", b"\x89PNG"]
    + ["a text called .jpg ü".encode(), b"II*\0" + b"\0" * 40, b"RIFF\x40\0\0\0WEBPVP8X\n\0\0\0\2" + b"\xff" * 60],
)
def test_garbage_is_an_error(content):
    for decode in (decode_image, in_graph):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode(tf.constant(content))


def test_damage_is_decoded_or_an_error_never_anything_else(gradient, encode):
    chance, refused, decoded = random.Random(0), 0, 0
    contents = list(variants(gradient, encode).values())
    for _ in range(1500):
        content = bytearray(chance.choice(contents))
        for _ in range(chance.choice([1, 2, 5])):
            content[chance.randrange(min(len(content), chance.choice([64, 200, 9999])))] = chance.randrange(256)
        try:
            image = decode_image(tf.constant(bytes(content)))
        except tf.errors.InvalidArgumentError:
            refused += 1
        else:
            decoded += 1
            assert image.dtype == tf.uint8 and image.shape[-1] == 3 and min(image.shape) > 0
    assert refused > 100 and decoded > 100
