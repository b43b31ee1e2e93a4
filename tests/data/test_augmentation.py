"""Augmentation: a function of the seed, in its ranges, and nothing at all when all is off."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from mmfusion.data import Augmentation
from mmfusion.errors import ConfigError

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def many(augmentation, image=IMAGE, count=200):
    run = tf.function(augmentation)
    return np.stack([run(tf.constant(image), tf.constant([5, index], tf.int64)).numpy() for index in range(count)])


def test_same_seed_same_picture_eagerly_and_in_graph():
    augmentation = Augmentation(color=0.3)
    run = tf.function(augmentation)
    seed = tf.constant([-(2**62), 2**62], tf.int64)
    np.testing.assert_allclose(augmentation(IMAGE, seed), run(IMAGE, seed), atol=1e-3)
    np.testing.assert_array_equal(run(IMAGE, seed), run(IMAGE, seed))


def test_off_is_the_identity():
    augmentation = Augmentation(flip=False, crop_scale=(1.0, 1.0))
    assert augmentation.is_identity
    np.testing.assert_array_equal(augmentation(IMAGE, [0, 0]), IMAGE)


def test_flip_mirrors_half_and_changes_nothing_else():
    pictures = many(Augmentation(flip=True, crop_scale=(1.0, 1.0)))
    mirrored = (pictures == IMAGE[:, ::-1]).all((1, 2, 3))
    plain = (pictures == IMAGE).all((1, 2, 3))
    assert (mirrored | plain).all()
    assert 70 <= mirrored.sum() <= 130


def test_crops_are_parts_of_the_right_area():
    # Values tell where they come from: rows in channel 0, columns in channel 1.
    rows, columns = np.mgrid[0:24, 0:32].astype(np.float32)
    image = np.stack([rows, columns, np.zeros_like(rows)], -1)
    pictures = many(Augmentation(flip=False, crop_scale=(0.3, 0.6)), image)
    height = pictures[..., 0].max((1, 2)) - pictures[..., 0].min((1, 2)) + 1
    width = pictures[..., 1].max((1, 2)) - pictures[..., 1].min((1, 2)) + 1
    area = height * width / (24 * 32)
    assert area.min() > 0.25 and area.max() < 0.66 and area.std() > 0.05
    relative = (width / 32) / (height / 24)
    assert relative.min() > 0.68 and relative.max() < 1.48 and relative.min() < 0.85 and relative.max() > 1.18
    assert pictures[..., 0].min() == 0 and pictures[..., 0].max() == 23, "every part of the picture is reached"
    assert pictures[..., 1].min() == 0 and pictures[..., 1].max() == 31


def test_colour_jitter_equals_its_formula_and_stays_in_range():
    augmentation = Augmentation(flip=False, crop_scale=(1.0, 1.0), color=0.4)
    seed = [3, 4]
    numbers = tf.random.stateless_uniform([8], tf.constant(seed, tf.int64)).numpy()
    brightness, contrast, saturation = 0.6 + 0.8 * numbers[5:8]
    expected = IMAGE * brightness
    expected = expected.mean() + (expected - expected.mean()) * contrast
    grey = expected @ np.array([0.299, 0.587, 0.114])
    expected = np.clip(grey[..., None] + (expected - grey[..., None]) * saturation, 0, 255)
    np.testing.assert_allclose(augmentation(IMAGE, seed), expected, atol=0.05)
    pictures = many(Augmentation(flip=False, crop_scale=(1.0, 1.0), color=1.0), count=50)
    assert pictures.min() >= 0 and pictures.max() <= 255 and pictures.mean((1, 2, 3)).std() > 20


def test_from_config():
    config = SimpleNamespace(flip=True, crop_scale=(0.5, 0.9), crop_ratio=(0.8, 1.2), color=0.1)
    augmentation = Augmentation.from_config(config)
    assert vars(augmentation) == vars(config)


@pytest.mark.parametrize(
    "arguments",
    [{"crop_scale": (0.0, 1.0)}, {"crop_scale": (0.9, 0.8)}, {"crop_scale": (0.5, 1.5)}, {"crop_ratio": (2.0, 1.0)}]
    + [{"crop_ratio": (0.0, 1.0)}, {"color": -0.1}, {"color": 1.5}],
)
def test_impossible_ranges(arguments):
    with pytest.raises(ConfigError, match=f"impossible {next(iter(arguments))}"):
        Augmentation(**arguments)
