"""Hard negatives: never the same image, drawn from the right distribution."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import BACKEND, graph, value_and_gradients
from keras import ops

from mmfusion.losses import sample_hard_negatives

IDS = np.array([4, 9, 4, 7, 9, 1])


def draw(similarity: np.ndarray, ids: np.ndarray, times: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Many draws: ``int[times, B]`` twice."""
    generator = keras.random.SeedGenerator(seed)
    if BACKEND == "jax":
        import jax

        def one(state, _):
            with keras.StatelessScope(state_mapping=[(generator.state, state)]) as scope:
                negatives = sample_hard_negatives(similarity, ids, seed=generator)
            return scope.get_current_value(generator.state), negatives[:2]

        indices = jax.jit(lambda state: jax.lax.scan(one, state, None, length=times)[1])(generator.state.value)
        return tuple(np.asarray(index) for index in indices)
    import tensorflow as tf

    @tf.function
    def many() -> tuple[tf.Tensor, tf.Tensor]:
        images = tf.TensorArray(tf.int32, times)
        texts = tf.TensorArray(tf.int32, times)
        for i in tf.range(times):
            negatives = sample_hard_negatives(tf.constant(similarity), tf.constant(ids), seed=generator)
            images, texts = images.write(i, negatives.image_index), texts.write(i, negatives.text_index)
        return images.stack(), texts.stack()

    image_index, text_index = many()
    return image_index.numpy(), text_index.numpy()


def distribution(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max()) * (ids[:, None] != ids[None, :])
    return weights / weights.sum(-1, keepdims=True)


def test_frequencies_are_the_softmax_over_other_images() -> None:
    similarity = np.random.default_rng(0).normal(size=(6, 6)).astype("float32") * 1.5
    times = 20_000
    image_index, text_index = draw(similarity, IDS, times, seed=1)
    for index, expected in (
        (text_index, distribution(similarity, IDS)),
        (image_index, distribution(similarity.T, IDS)),
    ):
        observed = np.stack([np.bincount(index[:, i], minlength=6) for i in range(6)]) / times
        # Five standard errors of a share of `times` draws.
        assert (np.abs(observed - expected) <= 5 * np.sqrt(expected * (1 - expected) / times)).all()
        assert (observed[IDS[:, None] == IDS[None, :]] == 0).all()


def test_image_and_text_draws_are_independent() -> None:
    image_index, text_index = draw(np.zeros((6, 6), "float32"), np.arange(6), 2_000, seed=2)
    assert np.mean(image_index[:, 0] == text_index[:, 0]) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 3e38])
def test_never_its_own_image_however_similar(scale: float) -> None:
    # The own pairs are by far the most similar, and all others are as unlikely as can be.
    similarity = (np.where(IDS[:, None] == IDS[None, :], 1.0, -1.0) * scale).astype("float32")
    image_index, text_index = draw(similarity, IDS, 50, seed=3)
    assert (IDS[image_index] != IDS).all() and (IDS[text_index] != IDS).all()


def test_a_row_without_other_images_is_not_valid() -> None:
    alone = sample_hard_negatives(np.eye(3), np.array([2, 2, 2]), seed=0)
    assert not np.any(alone.valid)
    for index in (alone.image_index, alone.text_index):
        assert ((0 <= np.asarray(index)) & (np.asarray(index) < 3)).all()
    assert np.all(sample_hard_negatives(np.eye(3), np.array([2, 2, 1]), seed=0).valid)
    assert not np.any(sample_hard_negatives(np.zeros((1, 1)), np.array([5]), seed=0).valid)


def test_seeds() -> None:
    similarity, ids = np.zeros((32, 32), "float32"), np.arange(32)
    first, again = (sample_hard_negatives(similarity, ids, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first.image_index, again.image_index)
    generator = keras.random.SeedGenerator(7)
    first, again = (sample_hard_negatives(similarity, ids, seed=generator) for _ in range(2))
    assert (np.asarray(first.image_index) != np.asarray(again.image_index)).any()


def test_no_gradient_passes() -> None:
    def chosen(similarity):
        negatives = sample_hard_negatives(similarity, np.arange(4), seed=0)
        return ops.sum(ops.take(ops.stop_gradient(similarity), negatives.image_index, axis=0)) + ops.sum(similarity)

    _, (gradient,) = value_and_gradients(chosen, [np.random.default_rng(0).normal(size=(4, 4)).astype("float32")])
    np.testing.assert_array_equal(gradient, 1.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_runs_in_graph_with_a_free_batch(dtype: str, jit_compile: bool) -> None:
    draw_one = graph(
        lambda similarity, ids: sample_hard_negatives(similarity, ids, seed=3),
        ((None, None), dtype), ((None,), "int32"), jit_compile=jit_compile,
    )  # fmt: skip
    for size in (2, 6):
        negatives = draw_one(ops.cast(np.eye(size) * 100, dtype), np.arange(size, dtype="int32"))
        assert (np.asarray(negatives.image_index) != np.arange(size)).all()
        assert (np.asarray(negatives.text_index) != np.arange(size)).all()
        assert negatives.image_index.dtype == "int32" and np.all(negatives.valid)
