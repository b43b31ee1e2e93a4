"""Resizing in three ways, and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmfusion.data import ImageTransform
from mmfusion.errors import ConfigError


def test_normalises_channel_by_channel():
    transform = ImageTransform(size=(2, 3), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    image = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 3), dtype=np.uint8)
    expected = (image / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    np.testing.assert_allclose(transform.normalize(image), expected, atol=1e-5)
    np.testing.assert_allclose(transform.normalize(image[0].astype(np.float32)), expected[0], atol=1e-5)


def test_squash_is_close_to_pillow_and_in_range(gradient):
    got = ImageTransform(size=(16, 16)).resize(gradient).numpy().astype(int)
    expected = np.asarray(Image.fromarray(gradient).resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(got - expected).mean() < 1.0
    checker = (np.indices((40, 40)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    assert ImageTransform(size=61).resize(checker).dtype == tf.uint8, "bicubic overshoot does not wrap around"
    np.testing.assert_array_equal(ImageTransform(size=(20, 20)).resize(np.full((9, 9, 3), 255, np.uint8)), 255)


def test_a_picture_of_the_right_size_is_untouched(gradient):
    np.testing.assert_array_equal(ImageTransform(size=(40, 60)).resize(gradient), gradient)


def test_crop_keeps_the_middle():
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, 15:25] = 200
    np.testing.assert_array_equal(ImageTransform(size=(10, 10), resize="crop").resize(image), 200)
    np.testing.assert_array_equal(ImageTransform(size=(10, 10), resize="crop").resize(image.transpose(1, 0, 2)), 200)


def test_pad_keeps_all_and_fills_with_the_mean():
    transform = ImageTransform(size=(12, 12), resize="pad", mean=(0.2, 0.4, 0.6))
    image = np.full((6, 24, 3), 255, np.uint8)
    padded = transform.resize(image).numpy()
    assert (padded[4:7] > 250).all() or (padded[5:8] > 250).all()
    np.testing.assert_array_equal(padded[0, 0], [51, 102, 153])
    np.testing.assert_allclose(transform.normalize(padded)[0, 0], 0.0, atol=1e-6)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5), (33, 64)])
def test_every_shape_works_eagerly_and_in_graph(resize, shape, encode):
    transform = ImageTransform(size=(16, 24), resize=resize)
    content = tf.constant(encode(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)))
    graph = tf.function(transform, input_signature=[tf.TensorSpec([], tf.string)])
    assert graph.get_concrete_function().output_shapes == (16, 24, 3)
    np.testing.assert_array_equal(transform(content), graph(content))


def test_works_in_map_fn_as_exports_use_it(encode, gradient):
    transform = ImageTransform(size=8)
    contents = tf.constant([encode(gradient), encode(gradient[:, ::-1], "JPEG")])
    spec = tf.TensorSpec((8, 8, 3), tf.float32)
    pixels = tf.function(lambda batch: tf.map_fn(transform, batch, fn_output_signature=spec))(contents)
    np.testing.assert_array_equal(pixels[0], transform(contents[0]))
    np.testing.assert_array_equal(pixels[1], transform(contents[1]))


def test_config_round_trip():
    transform = ImageTransform(size=(4, 6), resize="pad", mean=(0.1, 0.2, 0.3), std=(1, 2, 3), interpolation="bilinear")
    assert ImageTransform(**transform.get_config()).get_config() == transform.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "impossible image size"),
        ({"size": (1, 2, 3)}, "impossible image size"),
        ({"size": 4, "resize": "stretch"}, "unknown resize: expected squash or crop or pad, found 'stretch'"),
        ({"size": 4, "interpolation": "cubic"}, "unknown interpolation"),
        ({"size": 4, "std": (0.5, 0.0, 0.5)}, "impossible normalisation"),
        ({"size": 4, "mean": (0.5,)}, "impossible normalisation"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ImageTransform(**arguments)


def test_real_photos(shared):
    transform = ImageTransform(size=64, resize="crop")
    files = sorted((shared / "data" / "coco_photos" / "images").glob("*.jpg"))[:6]
    for file in files:
        pixels = transform(tf.constant(file.read_bytes())).numpy()
        image = Image.open(file).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        expected = image.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.BICUBIC)
        assert np.abs(pixels - (np.asarray(expected) / 127.5 - 1.0)).mean() < 0.02, file.name


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos3", "area", "nearest"])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_operator_by_operator_equals_the_graph_bit_for_bit(resize, interpolation):
    random = np.random.default_rng(0)
    transform = ImageTransform(size=(20, 28), resize=resize, interpolation=interpolation)
    traced = tf.function(transform.resize, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    for shape in ((64, 48, 3), (33, 97, 3), (7, 5, 3), (20, 40, 3)):
        image = random.integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_array_equal(transform.resize(tf.constant(image)).numpy(), traced(image).numpy())
