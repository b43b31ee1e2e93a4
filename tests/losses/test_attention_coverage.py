"""Attention coverage: known cases, a plain NumPy version, padding."""

from __future__ import annotations

import keras
import numpy as np
from gradients import value_and_gradients

from mmfusion.losses import attention_coverage


def scores(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    values = random.uniform(size=(3, 2, 4, 5, 6)).astype("float32")
    mask = np.arange(5) < np.array([5, 3, 1])[:, None]
    return values / values.sum(axis=-1, keepdims=True), mask


def test_equals_loops_in_numpy() -> None:
    values, mask = scores()
    expected = []
    for row, real in zip(values, mask, strict=True):
        looked = row[:, :, real].sum(axis=2)
        expected.append(((real.sum() / 6 - looked) ** 2).sum(axis=-1).mean())
    np.testing.assert_allclose(attention_coverage(values, mask), expected, rtol=1e-5)


def test_even_attention_costs_nothing() -> None:
    _, mask = scores()
    np.testing.assert_allclose(attention_coverage(np.full((3, 2, 4, 5, 6), 1 / 6), mask), 0.0, atol=1e-6)


def test_padding_changes_nothing() -> None:
    values, mask = scores()
    spoilt = np.where(mask[:, None, None, :, None], values, np.nan)
    np.testing.assert_array_equal(attention_coverage(spoilt, mask), attention_coverage(values, mask))
    _, (gradient,) = value_and_gradients(lambda x: keras.ops.sum(attention_coverage(x, mask)), [spoilt])
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[1, :, :, 3:].any()
