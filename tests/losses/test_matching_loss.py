"""Matching loss: anchors, NumPy, masks, numerical safety."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from mmfusion.losses import matching_loss


def test_undecided_costs_ln_2() -> None:
    loss = matching_loss(np.zeros(3), np.array([0.0, 1.0, 0.5]))
    np.testing.assert_allclose(loss, np.full(3, math.log(2)), rtol=1e-6)


def test_equals_the_definition_and_keras() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=20) * 3, generator.uniform(size=20)
    probability = 1 / (1 + np.exp(-logits))
    expected = -labels * np.log(probability) - (1 - labels) * np.log(1 - probability)
    loss = matching_loss(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert float(keras.ops.mean(loss)) == pytest.approx(
        float(keras.losses.BinaryCrossentropy(from_logits=True)(labels, logits)), rel=1e-5
    )


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_nothing_comes_through_the_mask(garbage: float) -> None:
    logits = tf.Variable(np.array([0.3, garbage, -2.0], "float32"))
    mask = np.array([True, False, True])
    with tf.GradientTape() as tape:
        loss = matching_loss(logits, np.array([1.0, garbage, 0.0], "float32"), mask)
        total = tf.reduce_sum(loss)
    gradient = tape.gradient(total, logits).numpy()
    np.testing.assert_array_equal(loss.numpy()[[0, 2]], matching_loss(np.array([0.3, -2.0]), np.array([1.0, 0.0])))
    assert loss.numpy()[1] == 0 and gradient[1] == 0
    assert (gradient[[0, 2]] != 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_extreme_logits(dtype: str) -> None:
    logits = tf.Variable(tf.constant([3e4, 3e4, -3e4, -3e4], dtype))
    with tf.GradientTape() as tape:
        loss = matching_loss(logits, tf.constant([1, 0, 1, 0]))
    expected = tf.cast(tf.abs(logits), tf.float32) * [0.0, 1.0, 1.0, 0.0]
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, expected)
    np.testing.assert_allclose(tf.cast(tape.gradient(loss, logits), tf.float32), [0, 1, -1, 0], atol=1e-6)
