"""Softmax contrastive loss: anchors, a plain NumPy version, duplicates, shards, numerical safety."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from gradients import BACKEND, graph, to_numpy, value_and_gradients
from keras import ops

from mmfusion.errors import ConfigError
from mmfusion.losses import softmax_contrastive


def unit_rows(rows: int, dim: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, dim))
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype("float32")


def reference(image, text, scale, ids, smoothing=0.0, duplicates="positive") -> np.ndarray:
    """The loss by loops over pairs, in float64."""
    image, text = np.asarray(image, "float64"), np.asarray(text, "float64")
    losses = []
    for i in range(len(ids)):
        total = 0.0
        for query, candidates in ((image[i], text), (text[i], image)):
            kept = [j for j in range(len(ids)) if duplicates == "positive" or j == i or ids[j] != ids[i]]
            positive = [j for j in kept if ids[j] == ids[i]]
            logits = np.array([scale * query @ candidates[j] for j in kept])
            probability = np.exp(logits - logits.max())
            log_probability = np.log(probability / probability.sum())
            for j, value in zip(kept, log_probability, strict=True):
                target = smoothing / len(kept) + (1 - smoothing) * (j in positive) / len(positive)
                total -= target * value
        losses.append(total / 2)
    return np.array(losses)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_equal_features_cost_ln_of_the_batch(size: int, smoothing: float) -> None:
    features = np.tile([[0.6, 0.8]], (size, 1)).astype("float32")
    loss = softmax_contrastive(features, features, 14.3, label_smoothing=smoothing)
    np.testing.assert_allclose(loss, np.full(size, math.log(size)), atol=1e-5)


def test_perfect_pairs_at_a_high_scale_cost_nothing() -> None:
    np.testing.assert_allclose(softmax_contrastive(np.eye(5), np.eye(5), 100.0), np.zeros(5), atol=1e-6)


@pytest.mark.parametrize("duplicates", ["positive", "ignore"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [7, 3, 7, 7, 3, 1], [2, 2, 2, 2, 2, 2]])
def test_equals_loops_in_numpy(duplicates: str, smoothing: float, ids: list[int]) -> None:
    image, text = unit_rows(6, 8, 0), unit_rows(6, 8, 1)
    loss = softmax_contrastive(image, text, 9.0, image_id=np.array(ids), label_smoothing=smoothing, duplicates=duplicates)
    np.testing.assert_allclose(loss, reference(image, text, 9.0, ids, smoothing, duplicates), rtol=2e-5, atol=1e-6)


def distilled_reference(image, text, keys, scale, ids, key_ids, valid, teachers, alpha, z_loss, duplicates) -> np.ndarray:
    """The loss with a teacher, more keys than rows and a log-partition, by loops over pairs, in float64."""
    losses = []
    for i in range(len(ids)):
        total = 0.0
        for query, candidates, teacher in ((image[i], keys[1], teachers[0][i]), (text[i], keys[0], teachers[1][i])):
            same = [j for j in range(len(key_ids)) if valid[j] and key_ids[j] == ids[i]]
            positive = same if duplicates == "positive" else [i]
            kept = [j for j in range(len(key_ids)) if valid[j] and (j in positive or j not in same)]
            logits = np.array([scale * query.astype("float64") @ candidates[j] for j in kept])
            log_partition = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
            q = np.exp(np.array([scale * teacher.astype("float64") @ candidates[j] for j in kept]))
            target = alpha * q / q.sum() + (1 - alpha) * np.isin(kept, positive) / len(positive)
            total += -(target * (logits - log_partition)).sum() + z_loss * log_partition**2
        losses.append(total / 2)
    return np.array(losses)


@pytest.mark.parametrize("duplicates", ["positive", "ignore"])
@pytest.mark.parametrize(("alpha", "z_loss"), [(0.4, 0.0), (0.0, 0.3), (1.0, 0.1)])
def test_a_teacher_and_a_queue_equal_loops_in_numpy(duplicates: str, alpha: float, z_loss: float) -> None:
    image, text, *teachers = (unit_rows(3, 8, seed) for seed in range(4))
    keys = unit_rows(7, 8, 4), unit_rows(7, 8, 5)
    ids, key_ids = np.array([5, 6, 5]), np.array([5, 6, 5, 9, 6, 0, 5])
    valid = np.array([True, True, True, True, True, False, True])
    options = {"alpha": alpha, "z_loss": z_loss, "duplicates": duplicates}
    inputs = {"all_image": keys[0], "all_text": keys[1], "teacher_image": teachers[0], "teacher_text": teachers[1]}
    loss = softmax_contrastive(image, text, 6.0, image_id=ids, all_image_id=key_ids, valid=valid, **inputs, **options)
    expected = distilled_reference(image, text, keys, 6.0, ids, key_ids, valid, teachers, **options)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)


def test_a_teacher_that_cannot_tell_costs_ln_of_all_keys() -> None:
    features, keys = np.tile([[0.6, 0.8]], (2, 1)), np.tile([[0.6, 0.8]], (9, 1))
    inputs = {"all_image": keys, "all_text": keys, "teacher_image": features, "teacher_text": features, "alpha": 0.4}
    np.testing.assert_allclose(softmax_contrastive(features, features, 3.0, **inputs), math.log(9), rtol=1e-6)
    loss = softmax_contrastive(features, features, 3.0, **inputs, valid=np.arange(9) < 5, z_loss=0.5)
    log_partition = 3.0 + math.log(5)
    np.testing.assert_allclose(loss, math.log(5) + 0.5 * log_partition**2, rtol=1e-6)


def test_no_gradient_reaches_a_teacher_and_places_not_filled_do_not_matter() -> None:
    image, text, teacher = (unit_rows(2, 8, seed) for seed in range(3))
    keys = unit_rows(5, 8, 4)

    def loss(image, text, teacher, keys):
        return ops.mean(softmax_contrastive(
            image, text, 6.0, all_image=keys, all_text=keys, valid=np.arange(5) < 4, teacher_image=teacher,
            teacher_text=teacher, alpha=0.5,
        ))  # fmt: skip

    first, gradients = value_and_gradients(loss, [image, text, teacher, keys])
    other, _ = value_and_gradients(loss, [image, text, teacher, np.where(np.arange(5)[:, None] < 4, keys, np.float32(1e6))])
    assert first == other
    assert np.abs(gradients[0]).max() > 0 and (gradients[2] == 0).all()


def test_a_teacher_knows_both_streams() -> None:
    with pytest.raises(ConfigError, match="a teacher knows both streams"):
        softmax_contrastive(np.eye(2), np.eye(2), 1.0, teacher_image=np.eye(2))


def test_another_caption_of_the_image_is_never_pushed_away() -> None:
    image, text = unit_rows(4, 8, 2), unit_rows(4, 8, 3)
    ids = np.array([5, 5, 8, 9])
    for duplicates, sign in (("positive", 1), ("ignore", 0)):

        def first(other, duplicates=duplicates):
            return softmax_contrastive(
                image, text, 1.0, image_id=ids, all_image=image, all_text=other, all_image_id=ids, duplicates=duplicates
            )[0]

        _, (gradient,) = value_and_gradients(first, [text])
        # Moving text 1 towards image 0 lowers the loss of image 0, or leaves it as it is.
        slope = float(np.dot(gradient[1], image[0]))
        assert slope < 0 if sign else slope == 0


def test_large_ids_are_not_confused() -> None:
    image, text = unit_rows(3, 8, 4), unit_rows(3, 8, 5)
    ids = np.array([2**24, 2**24 + 1, 2**24 + 2])
    np.testing.assert_array_equal(softmax_contrastive(image, text, 5.0, image_id=ids), softmax_contrastive(image, text, 5.0))


@pytest.mark.parametrize("duplicates", ["positive", "ignore"])
@pytest.mark.parametrize("with_ids", [True, False])
def test_shards_equal_the_whole_in_value_and_gradient(duplicates: str, with_ids: bool) -> None:
    arrays = unit_rows(6, 8, 6), unit_rows(6, 8, 7), np.float32(4.0)
    ids = np.array([1, 2, 1, 3, 2, 2]) if with_ids else None

    def of_all(image, text, scale):
        return ops.mean(softmax_contrastive(image, text, scale, image_id=ids, label_smoothing=0.1, duplicates=duplicates))

    def of_shards(image, text, scale):
        means = []
        for start in (0, 2, 4):
            rows = slice(start, start + 2)
            shard = softmax_contrastive(
                image[rows], text[rows], scale, image_id=None if ids is None else ids[rows], all_image=image,
                all_text=text, all_image_id=ids, offset=ops.convert_to_tensor(start), label_smoothing=0.1, duplicates=duplicates,
            )  # fmt: skip
            means.append(ops.mean(shard))
        return sum(means) / 3

    (whole, whole_gradients), (split, split_gradients) = (value_and_gradients(f, arrays) for f in (of_all, of_shards))
    np.testing.assert_allclose(split, whole, rtol=1e-6)
    for one, other in zip(split_gradients, whole_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_gradient_equals_finite_differences() -> None:
    image, text = unit_rows(4, 3, 8), unit_rows(4, 3, 9)
    ids = [1, 1, 2, 3]
    _, (gradient,) = value_and_gradients(
        lambda x: ops.sum(softmax_contrastive(x, text, 3.0, image_id=np.array(ids), label_smoothing=0.2)), [image]
    )
    for row, column in ((0, 0), (1, 2), (3, 1)):
        step = np.zeros_like(image, dtype="float64")
        step[row, column] = 1e-5
        ends = [reference(image + sign * step, text, 3.0, ids, 0.2).sum() for sign in (1, -1)]
        assert gradient[row, column] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1e4])
def test_stays_finite_and_float32(dtype: str, scale: float) -> None:
    if (BACKEND, dtype) == ("jax", "float64"):
        pytest.skip("JAX has no float64 unless told so for the whole process")
    image, text, ids = ops.cast(unit_rows(5, 8, 10), dtype), ops.cast(unit_rows(5, 8, 11), dtype), np.array([1, 1, 2, 3, 3])

    def losses(image):
        return softmax_contrastive(image, text, scale, image_id=ids, duplicates="ignore", label_smoothing=0.1)

    loss = losses(image)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert np.isfinite(loss).all() and (np.asarray(loss) > -1e-3).all()
    _, (gradient,) = value_and_gradients(lambda x: ops.sum(losses(x)), [image])
    assert np.isfinite(gradient).all()
    if scale <= 100:
        exact = reference(to_numpy(image), to_numpy(text), scale, ids, 0.1, "ignore")
        np.testing.assert_allclose(loss, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_runs_in_graph_with_a_free_batch(jit_compile: bool) -> None:
    loss = graph(
        lambda image, text, ids: softmax_contrastive(image, text, 9.0, image_id=ids, duplicates="ignore"),
        ((None, 8), "float32"), ((None, 8), "float32"), ((None,), "int32"), jit_compile=jit_compile,
    )  # fmt: skip
    for size in (2, 5):
        image, text, ids = unit_rows(size, 8, 12), unit_rows(size, 8, 13), np.arange(size, dtype="int32") // 2
        np.testing.assert_allclose(
            loss(image, text, ids), reference(image, text, 9.0, ids, duplicates="ignore"), rtol=1e-4, atol=1e-6
        )


def test_accepts_a_keras_variable_as_scale() -> None:
    features = unit_rows(3, 4, 14)
    scale = keras.Variable(2.0)
    np.testing.assert_allclose(softmax_contrastive(features, features, scale), softmax_contrastive(features, features, 2.0))


def test_says_what_does_not_go_together() -> None:
    image, text, ids = unit_rows(4, 8, 15), unit_rows(4, 8, 16), np.arange(4)
    with pytest.raises(ConfigError, match="unknown treatment of duplicates.*'positive' or 'ignore', found 'drop'"):
        softmax_contrastive(image, text, 1.0, duplicates="drop")
    with pytest.raises(ConfigError, match=r"do not pair up.*\(4, 8\) and \(3, 8\)"):
        softmax_contrastive(image, text[:3], 1.0)
    with pytest.raises(ConfigError, match="given together.*found all_text"):
        softmax_contrastive(image, text, 1.0, all_text=text)
    with pytest.raises(ConfigError, match="found image_id only"):
        softmax_contrastive(image, text, 1.0, image_id=ids, all_image=image, all_text=text)
    with pytest.raises(ConfigError, match="found all_image_id only"):
        softmax_contrastive(image, text, 1.0, all_image_id=ids)
