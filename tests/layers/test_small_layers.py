"""AttentionPooling, FeedForward, LayerScale, StochasticDepth, the embeddings and rotary positions against plain NumPy."""

from __future__ import annotations

import keras
import layer_reference as reference
import numpy as np
import pytest
from gradients import value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_reference import built, padding, stream, to_numpy

from mmfusion.errors import ConfigError
from mmfusion.layers import (
    AttentionPooling,
    FeedForward,
    LayerScale,
    PatchEmbedding,
    StochasticDepth,
    TokenEmbedding,
)
from mmfusion.layers.rotary import apply_rotary

B, N, D = 3, 5, 8
TOKENS = stream(B, N, D)


@pytest.mark.parametrize("queries", [1, 3])
def test_attention_pooling_equals_numpy(queries):
    layer = built(AttentionPooling(num_heads=2, num_queries=queries), (None, None, D))
    mask = padding([N, 2, 0], N)
    learned = np.broadcast_to(to_numpy(layer.query), (B, queries, D))
    expected, _ = reference.attention(layer.attention, learned, TOKENS, mask)
    found = to_numpy(layer(TOKENS, mask))
    np.testing.assert_allclose(found, expected[:, 0] if queries == 1 else expected, atol=1e-5)
    filled = np.where(mask[..., None], TOKENS, np.nan).astype("float32")
    np.testing.assert_array_equal(found, to_numpy(layer(filled, mask)))
    np.testing.assert_array_equal(found[2], 0.0)
    _, gradients = value_and_gradients(lambda x: keras.ops.sum(layer(x, mask) ** 2), [filled], layer.trainable_weights)
    assert all(np.isfinite(x).all() for x in gradients)


def test_attention_pooling_ends_the_keras_mask():
    ids = np.array([[3, 4, 0], [1, 0, 0]])
    tokens = keras.layers.Embedding(9, D, mask_zero=True)(ids)
    layer = built(AttentionPooling(num_heads=2), (None, None, D))
    output = layer(tokens)
    np.testing.assert_array_equal(to_numpy(output), to_numpy(layer(to_numpy(tokens), ids > 0)))
    assert getattr(output, "_keras_mask", None) is None


def test_feed_forward_equals_numpy():
    layer = built(FeedForward(hidden_dim=11), (None, None, D))
    hidden = reference.gelu(reference.dense(layer.hidden, TOKENS))
    np.testing.assert_allclose(to_numpy(layer(TOKENS)), reference.dense(layer.output_dense, hidden), atol=1e-5)


def test_feed_forward_drops_in_training_alone():
    layer = built(FeedForward(hidden_dim=11, dropout=0.5), (None, None, D))
    calm = to_numpy(layer(TOKENS, training=False))
    np.testing.assert_array_equal(calm, to_numpy(layer(TOKENS)))
    assert np.abs(to_numpy(layer(TOKENS, training=True)) - calm).max() > 1e-3


def test_layer_scale():
    layer = LayerScale(initial=0.25)
    np.testing.assert_array_equal(to_numpy(layer(TOKENS)), 0.25 * TOKENS)
    layer.gain.assign(np.arange(D, dtype="float32"))
    np.testing.assert_array_equal(to_numpy(layer(TOKENS)), np.arange(D, dtype="float32") * TOKENS)


def test_stochastic_depth_drops_whole_examples():
    layer, branch = StochasticDepth(rate=0.25, seed=1), np.ones((2000, 2, 3), "float32")
    np.testing.assert_array_equal(layer(branch), branch)
    found = to_numpy(layer(branch, training=True))
    kept = found[:, 0, 0] > 0
    np.testing.assert_allclose(found, np.where(kept[:, None, None], branch / 0.75, 0.0), rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 0.05
    overflowed = to_numpy(layer(np.full_like(branch, np.inf), training=True))
    assert not np.isnan(overflowed).any() and (overflowed == 0).any()
    np.testing.assert_array_equal(StochasticDepth(rate=0.0)(branch, training=True), branch)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(rows=st.integers(1, 3), columns=st.integers(1, 4), side=st.integers(1, 4), channels=st.integers(1, 3))
def test_patch_embedding_equals_numpy(rows, columns, side, channels):
    images = stream(B, rows * side, columns * side, channels)
    layer = built(PatchEmbedding(patch_size=side, dim=D), (None, *images.shape[1:]))
    patches = np.stack(
        [
            images[:, row * side : (row + 1) * side, column * side : (column + 1) * side].reshape(B, -1)
            for row in range(rows)
            for column in range(columns)
        ],
        axis=1,
    )
    expected = reference.dense(layer.projection, patches) + to_numpy(layer.position)
    np.testing.assert_allclose(to_numpy(layer(images)), expected, atol=1e-5)
    assert layer.grid == (rows, columns)
    assert layer.compute_output_shape(images.shape) == (B, rows * columns, D)


def test_token_embedding_equals_numpy():
    layer = built(TokenEmbedding(vocabulary_size=11, dim=D, max_length=9))
    ids, (table, position, bias) = np.array([[1, 2, 10], [0, 3, 3]]), map(to_numpy, layer.weights)
    np.testing.assert_allclose(to_numpy(layer(ids)), table[ids] + position[:3], rtol=1e-6)
    np.testing.assert_allclose(to_numpy(layer(ids, offset=4)), table[ids] + position[4:7], rtol=1e-6)
    np.testing.assert_allclose(to_numpy(layer(ids, offset=keras.ops.convert_to_tensor(4))), table[ids] + position[4:7], rtol=1e-6)
    np.testing.assert_allclose(to_numpy(layer.logits(TOKENS)), TOKENS @ table.T + bias, atol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.logits(TOKENS[:, :1])), TOKENS[:, :1] @ table.T + bias, atol=1e-5)
    assert layer.compute_output_shape((2, 3)) == (2, 3, D)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(length=st.integers(1, 6), half=st.integers(1, 4), shift=st.integers(0, 20))
def test_rotary_products_depend_on_distance_alone(length, half, shift):
    query, key = stream(1, length, 2, 2 * half), stream(1, length, 2, 2 * half, seed=1)
    places = np.arange(length)
    heads = [x.transpose(0, 2, 1, 3) for x in (query, key)]
    expected = reference.rotate(query, 50.0).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(apply_rotary(heads[0], places, 50.0), expected, atol=1e-5)

    def products(start: int) -> np.ndarray:
        turned = (to_numpy(apply_rotary(x, places + start)) for x in heads)
        return np.einsum("bhtd,bhsd->bhts", *turned)

    np.testing.assert_allclose(products(shift), products(0), atol=1e-4)


IMAGES, IDS = stream(B, 4, 6, 3), np.ones((B, 3), "int32")


@pytest.mark.parametrize(("layer", "given_first", "given_then", "message"), [
    (AttentionPooling(num_heads=2), TOKENS, TOKENS[0], "tokens is no stream of tokens"),
    (AttentionPooling(num_heads=2), TOKENS, TOKENS[..., :4], "tokens has another width"),
    (FeedForward(hidden_dim=3), TOKENS, TOKENS[..., :4], "tokens has another width"),
    (FeedForward(hidden_dim=3), TOKENS, TOKENS.astype("int32"), "tokens has a wrong dtype"),
    (LayerScale(), TOKENS, TOKENS[..., :1], "branch has another width"),
    (PatchEmbedding(patch_size=2, dim=D), IMAGES, IMAGES[0], "images of another size"),
    (PatchEmbedding(patch_size=2, dim=D), IMAGES, np.tile(IMAGES, (1, 2, 1, 1)), r"\['batch', 4, 6, 3\], found \[3, 8, 6, 3\]"),
    (PatchEmbedding(patch_size=2, dim=D), IMAGES, IMAGES[..., :1], "images of another size"),
    (PatchEmbedding(patch_size=2, dim=D), IMAGES, IMAGES.astype("uint8"), "images have a wrong dtype .*found uint8; cast"),
    (TokenEmbedding(vocabulary_size=5, dim=D, max_length=4), IDS, IDS.astype("float32"), "token_ids have a wrong dtype"),
    (TokenEmbedding(vocabulary_size=5, dim=D, max_length=4), IDS, IDS[0], "token_ids do not fit"),
    (TokenEmbedding(vocabulary_size=5, dim=D, max_length=4), IDS, np.ones((B, 5), "int32"), "at most 4 tokens, found"),
])  # fmt: skip
def test_wrong_input_is_told_in_one_line(layer, given_first, given_then, message):
    layer(given_first)
    with pytest.raises(ConfigError, match=message) as caught:
        layer(given_then)
    assert "\n" not in str(caught.value) and "Exception encountered" not in str(caught.value)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: AttentionPooling(num_heads=2, num_queries=0), "impossible num_queries"),
    (lambda: FeedForward(hidden_dim=0), "impossible hidden_dim"),
    (lambda: FeedForward(hidden_dim=3, dropout=1.5), "impossible dropout"),
    (lambda: StochasticDepth(rate=1.0), "impossible rate"),
    (lambda: PatchEmbedding(patch_size=0, dim=3), "impossible sizes"),
    (lambda: PatchEmbedding(patch_size=4, dim=3).build((None, 6, 8, 3)), r"multiples of 4, found \[None, 6, 8, 3\]"),
    (lambda: PatchEmbedding(patch_size=4, dim=3).build((None, None, 8, 3)), "the patches do not fill"),
    (lambda: PatchEmbedding(patch_size=4, dim=3).build((8, 8, 3)), "the patches do not fill"),
    (lambda: TokenEmbedding(vocabulary_size=0, dim=3, max_length=2), "impossible sizes"),
])  # fmt: skip
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
