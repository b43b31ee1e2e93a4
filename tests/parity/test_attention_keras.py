"""`Attention` against `keras.layers.MultiHeadAttention` with the same weights, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from gradients import to_numpy, value_and_gradients
from keras import ops

from mmfusion.layers import Attention

B, S, DC, HEADS, WIDTH = 2, 9, 10, 3, 4
KERNELS = {"exact": {"kernel": "exact"}, "chunked": {"kernel": "chunked", "chunk_size": 4}}


def stream(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def pair(dim: int, context_dim: int, **options: Any) -> tuple[Attention, keras.layers.MultiHeadAttention]:
    """Both layers, with the same random weights."""
    ours = Attention(num_heads=HEADS, head_dim=WIDTH, **options)
    theirs = keras.layers.MultiHeadAttention(HEADS, WIDTH)
    ours.build((None, None, dim), (None, None, context_dim))
    theirs.build((None, None, dim), (None, None, context_dim))
    assert len(ours.weights) == len(theirs.weights) == 8
    for seed, (one, two) in enumerate(zip(ours.weights, theirs.weights, strict=True)):
        value = stream(*one.shape, seed=seed) * 0.4
        one.assign(value)
        two.assign(value.reshape(two.shape))
    return ours, theirs


def results(function: Callable[..., Any], layer: keras.layers.Layer, *arrays: np.ndarray) -> list[np.ndarray]:
    """The output, and the gradient of a weighted sum of it by inputs and weights."""
    output = function(*map(ops.convert_to_tensor, arrays))
    upstream = stream(*output.shape, seed=50)
    _, gradients = value_and_gradients(lambda *x: ops.sum(function(*x) * upstream), arrays, layer.trainable_weights)
    return [to_numpy(output), *gradients]


def assert_equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for index, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(one, two.reshape(one.shape), rtol=1e-5, atol=1e-4 if index else 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["none", "keys", "pattern"])
def test_self_attention(kernel: str, causal: bool, masked: str) -> None:
    ours, theirs = pair(12, 12, **KERNELS[kernel])
    # Each query sees itself: of a row without any key Keras makes an average of all.
    masks = {
        "none": None,
        "keys": np.broadcast_to((np.arange(S) < np.array([[S], [5]]))[:, None], (B, S, S)),
        "pattern": (np.random.default_rng(3).uniform(size=(B, S, S)) < 0.5) | np.eye(S, dtype=bool),
    }
    mask = masks[masked]
    tokens = stream(B, S, 12, seed=1)
    found = results(lambda x: ours(x, context_mask=mask, causal=causal), ours, tokens)
    assert_equal(found, results(lambda x: theirs(x, x, attention_mask=mask, use_causal_mask=causal), theirs, tokens))


@pytest.mark.parity
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention(kernel: str, masked: bool) -> None:
    ours, theirs = pair(12, DC, **KERNELS[kernel])
    query, context = stream(B, 5, 12, seed=1), stream(B, S, DC, seed=2)
    mask = np.arange(S) < np.array([[S], [4]]) if masked else None
    found = results(lambda q, c: ours(q, c, context_mask=mask), ours, query, context)
    whole = None if mask is None else mask[:, None]
    assert_equal(found, results(lambda q, c: theirs(q, c, attention_mask=whole), theirs, query, context))


@pytest.mark.parity
def test_at_a_length_of_tiles() -> None:
    ours, theirs = pair(12, 12)
    tokens = stream(1, 300, 12, seed=1)
    found = results(lambda x: ours(x, causal=True), ours, tokens)
    assert_equal(found, results(lambda x: theirs(x, x, use_causal_mask=True), theirs, tokens))


@pytest.mark.parity
def test_scores() -> None:
    ours, theirs = pair(12, DC)
    query, context = stream(B, 5, 12, seed=1), stream(B, S, DC, seed=2)
    _, scores = theirs(query, context, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(ours(query, context, return_scores=True).scores), to_numpy(scores), atol=1e-6)
