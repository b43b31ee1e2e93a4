"""Captioning loss: anchors, NumPy, masks, shards, and the Keras loss around it."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from gradients import graph, tensorflow_only, to_numpy, value_and_gradients

from mmfusion.losses import CaptioningCrossentropy, captioning_loss

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)


def batch(vocabulary: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(*MASK.shape, vocabulary)).astype("float32") * 2
    return logits, generator.integers(vocabulary, size=MASK.shape)


def reference(logits, targets, mask, smoothing) -> np.ndarray:
    """Sums of ``-Σ_v q[v] log p[v]`` with the smoothed one-hot q, in float64."""
    logits = np.asarray(logits, "float64")
    vocabulary = logits.shape[-1]
    log_probability = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    smoothed = np.eye(vocabulary)[targets] * (1 - smoothing) + smoothing / vocabulary
    return (-(smoothed * log_probability).sum(-1) * mask).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_uniform_logits_cost_ln_v_a_token(smoothing: float) -> None:
    loss = captioning_loss(np.full((*MASK.shape, 11), 3.0), np.ones(MASK.shape, int), MASK, label_smoothing=smoothing)
    np.testing.assert_array_equal(loss.tokens, [3, 1, 4, 0])
    np.testing.assert_allclose(loss.loss_sum, np.array([3, 1, 4, 0]) * math.log(11), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_equals_numpy(smoothing: float) -> None:
    logits, targets = batch()
    loss = captioning_loss(logits, targets, MASK, label_smoothing=smoothing)
    np.testing.assert_allclose(loss.loss_sum, reference(logits, targets, MASK, smoothing), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_is_probability_minus_target(smoothing: float) -> None:
    logits, targets = batch()
    _, (gradient,) = value_and_gradients(
        lambda x: keras.ops.sum(captioning_loss(x, targets, MASK, label_smoothing=smoothing).loss_sum), [logits]
    )
    smoothed = np.eye(7)[targets] * (1 - smoothing) + smoothing / 7
    expected = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) - smoothed) * MASK[..., None]
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_padding_changes_nothing(smoothing: float, garbage: float) -> None:
    logits, targets = batch()
    noisy_logits = np.where(MASK[..., None], logits, garbage).astype("float32")
    noisy_targets = np.where(MASK, targets, -100)

    def sums(logits):
        return captioning_loss(logits, noisy_targets, MASK, label_smoothing=smoothing).loss_sum

    clean = captioning_loss(logits, targets, MASK, label_smoothing=smoothing)
    np.testing.assert_array_equal(sums(noisy_logits), clean.loss_sum)
    _, (gradient,) = value_and_gradients(lambda x: keras.ops.sum(sums(x)), [noisy_logits])
    assert np.isfinite(gradient).all() and (gradient[~MASK] == 0).all() and (gradient[MASK] != 0).any()


def test_longer_padding_changes_nothing() -> None:
    logits, targets = batch()
    longer = captioning_loss(
        np.pad(logits, ((0, 0), (0, 3), (0, 0))), np.pad(targets, ((0, 0), (0, 3))), np.pad(MASK, ((0, 0), (0, 3)))
    )
    np.testing.assert_allclose(longer.loss_sum, captioning_loss(logits, targets, MASK).loss_sum, rtol=1e-6)


def test_uneven_shards_make_the_mean_of_the_whole() -> None:
    logits, targets = batch()
    whole = captioning_loss(logits, targets, MASK)
    shards = [captioning_loss(logits[rows], targets[rows], MASK[rows]) for rows in (slice(0, 1), slice(1, 4))]
    mean = sum(keras.ops.sum(s.loss_sum) for s in shards) / sum(keras.ops.sum(s.tokens) for s in shards)
    np.testing.assert_allclose(mean, keras.ops.sum(whole.loss_sum) / keras.ops.sum(whole.tokens), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_logits(dtype: str) -> None:
    logits, targets = batch()
    logits = keras.ops.cast(logits * 1000, dtype)
    loss = captioning_loss(logits, targets, MASK, label_smoothing=0.1)
    assert keras.backend.standardize_dtype(loss.loss_sum.dtype) == "float32"
    assert np.isfinite(loss.loss_sum).all()
    _, (gradient,) = value_and_gradients(
        lambda x: keras.ops.sum(captioning_loss(x, targets, MASK, label_smoothing=0.1).loss_sum), [logits]
    )
    assert np.isfinite(gradient).all()
    float32 = captioning_loss(to_numpy(logits), targets, MASK, label_smoothing=0.1)
    np.testing.assert_array_equal(loss.loss_sum, float32.loss_sum)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_runs_in_graph_with_free_sizes(jit_compile: bool) -> None:
    loss_of = graph(
        lambda *batch: captioning_loss(*batch, label_smoothing=0.1),
        ((None, None, 7), "float32"), ((None, None), "int64"), ((None, None), "bool"), jit_compile=jit_compile,
    )  # fmt: skip
    logits, targets = batch()
    for rows in (2, 4):
        loss = loss_of(logits[:rows], targets[:rows], MASK[:rows])
        np.testing.assert_allclose(
            loss.loss_sum, reference(logits[:rows], targets[:rows], MASK[:rows], 0.1), rtol=1e-5, atol=1e-6
        )


@tensorflow_only
def test_spreads_no_target_over_the_vocabulary() -> None:
    import tensorflow as tf

    logits, targets = batch()

    @tf.function
    def gradient(logits):
        return tf.gradients(captioning_loss(logits, targets, MASK, label_smoothing=0.1).loss_sum, logits)

    traced = gradient.get_concrete_function(tf.constant(logits)).graph
    operations = {operation.type for operation in traced.get_operations()}
    assert "OneHot" not in operations and "SparseSoftmaxCrossEntropyWithLogits" in operations


class TestKerasLoss:
    """`CaptioningCrossentropy`."""

    def test_reductions(self) -> None:
        logits, targets = batch()
        targets = np.where(MASK, np.maximum(targets, 1), 0)
        parts = captioning_loss(logits, targets, MASK, label_smoothing=0.1)
        total, count = float(keras.ops.sum(parts.loss_sum)), float(keras.ops.sum(parts.tokens))
        for reduction, expected in (("sum_over_batch_size", total / count), ("sum", total), (None, parts.loss_sum)):
            loss = CaptioningCrossentropy(label_smoothing=0.1, reduction=reduction)
            np.testing.assert_allclose(loss(targets, logits), expected, rtol=1e-5)

    def test_equals_the_loss_of_keras_without_smoothing(self) -> None:
        logits, targets = batch()
        targets = np.where(MASK, np.maximum(targets, 1), 0)
        theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
        np.testing.assert_allclose(CaptioningCrossentropy()(targets, logits), theirs(targets, logits), rtol=1e-5)

    def test_round_trip(self) -> None:
        loss = CaptioningCrossentropy(pad_id=3, label_smoothing=0.2, reduction="sum")
        copy = keras.losses.deserialize(keras.losses.serialize(loss))
        assert copy.get_config() == loss.get_config()
        logits, targets = batch()
        np.testing.assert_array_equal(copy(targets, logits), loss(targets, logits))

    def test_only_padding_costs_nothing(self) -> None:
        assert float(CaptioningCrossentropy()(np.zeros((2, 3), int), np.ones((2, 3, 5)))) == 0

    def test_trains_a_model(self) -> None:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Embedding(6, 8), keras.layers.Dense(6)])
        model.compile(optimizer=keras.optimizers.Adam(0.05), loss=CaptioningCrossentropy())
        tokens = np.array([[1, 2, 3, 4, 5, 0], [5, 4, 0, 0, 0, 0]] * 4)
        targets = np.array([[2, 3, 4, 5, 1, 0], [1, 5, 0, 0, 0, 0]] * 4)
        history = model.fit(tokens, targets, epochs=15, verbose=0).history["loss"]
        assert history[0] == pytest.approx(math.log(6), abs=0.2) and history[-1] < 0.5 * history[0]


def test_the_log_partition_costs_its_square() -> None:
    random = np.random.default_rng(5)
    logits, targets = random.normal(size=(2, 3, 6)).astype("float32"), random.integers(6, size=(2, 3))
    mask = np.array([[True, True, False], [True, False, False]])
    plain = captioning_loss(logits, targets, mask, label_smoothing=0.1).loss_sum
    more = captioning_loss(logits, targets, mask, label_smoothing=0.1, z_loss=0.3).loss_sum
    log_partition = np.log(np.exp(logits.astype("float64")).sum(axis=-1))
    np.testing.assert_allclose(more - plain, 0.3 * (log_partition**2 * mask).sum(axis=-1), rtol=1e-4)
