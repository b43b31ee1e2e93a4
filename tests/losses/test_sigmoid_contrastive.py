"""Sigmoid contrastive loss: anchors, a plain NumPy version, duplicates, shards, numerical safety."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from gradients import graph, value_and_gradients
from keras import ops

from mmfusion.errors import ConfigError
from mmfusion.losses import sigmoid_contrastive


def unit_rows(rows: int, dim: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, dim))
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype("float32")


def reference(image, text, scale, bias, ids, duplicates="positive") -> np.ndarray:
    """The loss by loops over pairs, in float64."""
    image, text = np.asarray(image, "float64"), np.asarray(text, "float64")
    losses = np.zeros(len(ids))
    for i in range(len(ids)):
        for j in range(len(ids)):
            if duplicates == "ignore" and i != j and ids[i] == ids[j]:
                continue
            sign = 1 if ids[i] == ids[j] else -1
            losses[i] += math.log1p(math.exp(-sign * (scale * image[i] @ text[j] + bias)))
    return losses


def test_without_scale_and_bias_each_pair_costs_ln_2() -> None:
    image, text = unit_rows(5, 8, 0), unit_rows(5, 8, 1)
    np.testing.assert_allclose(sigmoid_contrastive(image, text, 0.0, 0.0), np.full(5, 5 * math.log(2)), rtol=1e-6)


def test_the_bias_of_the_paper_starts_near_the_cost_of_the_positives() -> None:
    features = np.eye(8, dtype="float32")
    loss = sigmoid_contrastive(features, np.roll(features, 1, axis=0), 10.0, -10.0)
    # One positive at similarity 0 costs 10, one negative at similarity 1 costs ln 2, six cost next to nothing.
    np.testing.assert_allclose(loss, np.full(8, 10 + math.log(2) + 7 * 4.54e-5), rtol=1e-5)


@pytest.mark.parametrize("duplicates", ["positive", "ignore"])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [7, 3, 7, 7, 3, 1], [2, 2, 2, 2, 2, 2]])
def test_equals_loops_in_numpy(duplicates: str, ids: list[int]) -> None:
    image, text = unit_rows(6, 8, 3), unit_rows(6, 8, 4)
    loss = sigmoid_contrastive(image, text, 9.0, -2.0, image_id=np.array(ids), duplicates=duplicates)
    np.testing.assert_allclose(loss, reference(image, text, 9.0, -2.0, ids, duplicates), rtol=2e-5)


@pytest.mark.parametrize("duplicates", ["positive", "ignore"])
@pytest.mark.parametrize("with_ids", [True, False])
def test_shards_equal_the_whole_in_value_and_gradient(duplicates: str, with_ids: bool) -> None:
    arrays = unit_rows(6, 8, 5), unit_rows(6, 8, 6), np.float32(4.0), np.float32(-1.0)
    ids = np.array([1, 2, 1, 3, 2, 2]) if with_ids else None

    def of_all(image, text, scale, bias):
        return ops.mean(sigmoid_contrastive(image, text, scale, bias, image_id=ids, duplicates=duplicates))

    def of_shards(image, text, scale, bias):
        means = []
        for start in (0, 2, 4):
            rows = slice(start, start + 2)
            shard = sigmoid_contrastive(
                image[rows], text[rows], scale, bias, image_id=None if ids is None else ids[rows], all_text=text,
                all_image_id=ids, offset=start, duplicates=duplicates,
            )  # fmt: skip
            means.append(ops.mean(shard))
        return sum(means) / 3

    (whole, whole_gradients), (split, gradients) = (value_and_gradients(f, arrays) for f in (of_all, of_shards))
    np.testing.assert_allclose(split, whole, rtol=1e-6)
    for one, other in zip(gradients, whole_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_stays_finite_and_float32(dtype: str, scale: float) -> None:
    image, text, ids = ops.cast(unit_rows(5, 8, 7), dtype), ops.cast(unit_rows(5, 8, 8), dtype), np.array([1, 1, 2, 3, 3])

    def losses(image):
        return sigmoid_contrastive(image, text, scale, -1000.0, image_id=ids, duplicates="ignore")

    loss = losses(image)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert np.isfinite(loss).all() and (np.asarray(loss) >= 0).all()
    _, (gradient,) = value_and_gradients(lambda x: ops.sum(losses(x)), [image])
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_runs_in_graph_with_a_free_batch(jit_compile: bool) -> None:
    loss = graph(
        lambda image, text, ids: sigmoid_contrastive(image, text, 9.0, -3.0, image_id=ids),
        ((None, 8), "float32"), ((None, 8), "float32"), ((None,), "int32"), jit_compile=jit_compile,
    )  # fmt: skip
    for size in (2, 5):
        image, text, ids = unit_rows(size, 8, 9), unit_rows(size, 8, 10), np.arange(size, dtype="int32") // 2
        np.testing.assert_allclose(loss(image, text, ids), reference(image, text, 9.0, -3.0, ids), rtol=1e-4)


def test_says_what_does_not_go_together() -> None:
    image, text = unit_rows(4, 8, 11), unit_rows(4, 8, 12)
    with pytest.raises(ConfigError, match="unknown treatment of duplicates"):
        sigmoid_contrastive(image, text, 1.0, 0.0, duplicates="drop")
    with pytest.raises(ConfigError, match="found image_id only"):
        sigmoid_contrastive(image, text, 1.0, 0.0, image_id=np.arange(4), all_text=text)
