"""Matching loss: anchors, NumPy, masks, numerical safety."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops

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
    logits, labels = np.array([0.3, garbage, -2.0], "float32"), np.array([1.0, garbage, 0.0], "float32")
    mask = np.array([True, False, True])
    loss = np.asarray(matching_loss(logits, labels, mask))
    _, (gradient,) = value_and_gradients(lambda x: ops.sum(matching_loss(x, labels, mask)), [logits])
    np.testing.assert_array_equal(loss[[0, 2]], matching_loss(np.array([0.3, -2.0]), np.array([1.0, 0.0])))
    assert loss[1] == 0 and gradient[1] == 0
    assert (gradient[[0, 2]] != 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_extreme_logits(dtype: str) -> None:
    logits, labels = ops.cast([3e4, 3e4, -3e4, -3e4], dtype), np.array([1, 0, 1, 0])
    loss = matching_loss(logits, labels)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    np.testing.assert_allclose(loss, np.abs(ops.cast(logits, "float32")) * [0.0, 1.0, 1.0, 0.0])
    _, (gradient,) = value_and_gradients(lambda x: ops.sum(matching_loss(x, labels)), [logits])
    np.testing.assert_allclose(gradient, [0, 1, -1, 0], atol=1e-6)
