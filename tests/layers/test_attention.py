"""Attention against plain NumPy, what masks promise, and what it refuses."""

from __future__ import annotations

import keras
import layer_reference as reference
import numpy as np
import pytest
from gradients import graph, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_reference import built, padding, stream, to_numpy

from mmfusion.errors import ConfigError
from mmfusion.layers import Attention

B, T, S, D, DC = 2, 5, 7, 12, 8
KERNELS = {"exact": {"kernel": "exact"}, "chunked": {"kernel": "chunked", "chunk_size": 3}}
OPTIONS = {
    "plain": {},
    "grouped": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6},
    "multi-query": {"num_heads": 4, "num_key_value_heads": 1},
    "normalised": {"query_key_norm": True, "use_bias": False},
    "rotary": {"rotary": True, "rotary_base": 100.0},
    "everything": {
        "num_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "query_key_norm": True, "rotary": True, "output_dim": 10,
    },
}  # fmt: skip


@pytest.fixture(params=sorted(KERNELS))
def kernel(request) -> dict:
    return KERNELS[request.param]


def attention(context_dim: int | None = None, **options) -> Attention:
    layer = Attention(**{"num_heads": 2, **options})
    shapes = [(None, None, D)] if context_dim is None else [(None, None, D), (None, None, context_dim)]
    return built(layer, *shapes)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
def test_equals_numpy(kernel, options, causal, crossed):
    if crossed:
        options = {name: value for name, value in options.items() if "rotary" not in name}
    layer = attention(DC if crossed else None, **{**kernel, **options})
    query, context = stream(B, T, D), stream(B, S, DC, seed=1) if crossed else None
    length = S if crossed else T
    pattern = np.random.default_rng(2).uniform(size=(B, T, length)) < 0.6
    for mask in (None, padding([length, 2], length), pattern):
        output, scores, _ = layer(query, context, context_mask=mask, causal=causal, return_scores=True)
        expected, expected_scores = reference.attention(layer, query, context, mask, causal)
        real = np.ones((B, T), bool) if crossed or mask is None or mask.ndim == 3 else mask
        np.testing.assert_allclose(to_numpy(output)[real], expected[real], atol=2e-5)
        np.testing.assert_allclose(to_numpy(scores).swapaxes(1, 2)[real], expected_scores.swapaxes(1, 2)[real], atol=1e-5)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3), rows=st.integers(1, 6), length=st.integers(1, 9), heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    chunk=st.integers(1, 10), causal=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_equals_numpy(batch, rows, length, heads, chunk, causal, seed):
    query, context = stream(batch, rows, D, seed=seed), stream(batch, length, DC, seed=seed + 1)
    mask = np.random.default_rng(seed).uniform(size=(batch, length)) < 0.5
    options = {"num_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": 4}
    for kernel in ("exact", "chunked"):
        layer = attention(DC, kernel=kernel, chunk_size=chunk, **options)
        expected, _ = reference.attention(layer, query, context, mask, causal)
        np.testing.assert_allclose(to_numpy(layer(query, context, mask, causal=causal)), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "float16"])
def test_dtypes(kernel, dtype):
    layer = attention(DC, dtype=dtype, **kernel)
    query, context, mask = stream(B, T, D), stream(B, S, DC, seed=1), padding([S, 0], S)
    output, scores, _ = layer(query, context, context_mask=mask, return_scores=True)
    assert keras.backend.standardize_dtype(output.dtype) == layer.compute_dtype
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    expected, _ = reference.attention(layer, query, context, mask)
    tolerance = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 1.5e-1}[layer.compute_dtype]
    np.testing.assert_allclose(to_numpy(output), expected, atol=tolerance)
    np.testing.assert_array_equal(to_numpy(output)[1], 0.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("filler", [7.0, np.nan])
def test_padding_never_matters_bit_for_bit(kernel, filler, dtype):
    keys, pattern = padding([S, 4], S), np.ones((B, T, S), bool)
    pattern[1, :, 4:] = pattern[0, 2:, 1] = False
    layer = attention(DC, dtype=dtype, query_key_norm=True, **kernel)
    query, context = stream(B, T, D), stream(B, S, DC, seed=1)
    other = np.where(keys[..., None], context, filler).astype("float32")
    for mask in (keys, pattern, keys.astype("int32")):
        np.testing.assert_array_equal(*(to_numpy(layer(query, x, mask)) for x in (context, other)))
    itself = attention(dtype=dtype, rotary=True, **kernel)
    real = padding([T, 3], T)
    other = np.where(real[..., None], query, filler).astype("float32")
    for causal in (False, True):
        first, second = (to_numpy(itself(x, context_mask=real, causal=causal)) for x in (query, other))
        np.testing.assert_array_equal(first[real], second[real])


def gradients(layer, loss, *tensors) -> list[np.ndarray]:
    return value_and_gradients(loss, tensors, layer.trainable_weights)[1]


def test_nan_in_the_padding_gives_no_nan_gradient(kernel):
    keys, real = padding([S, 0], S), padding([T, 3], T)
    layer, itself = attention(DC, query_key_norm=True, **kernel), attention(**kernel)
    query, context = stream(B, T, D), stream(B, S, DC, seed=1)
    filled = np.where(keys[..., None], context, np.nan).astype("float32")
    first, second = (gradients(layer, lambda q, c: keras.ops.sum(layer(q, c, keys) ** 2), query, x) for x in (context, filled))
    for one, two in zip(first, second, strict=True):
        assert np.isfinite(two).all()
        np.testing.assert_array_equal(one, two)
    filled = np.where(real[..., None], query, np.nan).astype("float32")
    weight = real[..., None].astype("float32")
    for found in gradients(itself, lambda q: keras.ops.sum((itself(q, context_mask=real) * weight) ** 2), filled):
        assert np.isfinite(found).all()


def test_nothing_to_attend_to_gives_exact_zeros(kernel):
    query, context = stream(B, T, D), stream(B, S, DC, seed=1)
    layer = attention(DC, **kernel)
    nothing = np.zeros((B, S), bool)
    output, scores, _ = layer(query, context, nothing, return_scores=True)
    np.testing.assert_array_equal(to_numpy(output), 0.0)
    np.testing.assert_array_equal(to_numpy(scores), 0.0)
    for found in gradients(layer, lambda q, c: keras.ops.sum(layer(q, c, nothing) ** 2), query, context):
        np.testing.assert_array_equal(found, 0.0)
    # Causal with fewer keys than queries: the first queries precede every key.
    output = to_numpy(layer(query, context[:, :3], causal=True))
    np.testing.assert_array_equal(output[:, :2], 0.0)
    assert (np.abs(output[:, 2:]).max(-1) > 0).all()
    # Causal, and the only real key comes late.
    late = to_numpy(layer(query, context[:, :5], np.arange(5)[None] >= 3, causal=True))
    np.testing.assert_array_equal(late[:, :3], 0.0)
    assert (np.abs(late[:, 3:]).max(-1) > 0).all()


@pytest.mark.parametrize("shape", [(B, 1), (1, S), (1, 1), (B, 1, S), (B, T, 1), (1, T, S), (1, 1, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_an_axis_of_one_broadcasts(kernel, shape, causal):
    layer = attention(DC, **kernel)
    query, context = stream(B, T, D), stream(B, S, DC, seed=1)
    mask = np.random.default_rng(5).uniform(size=shape) < 0.5
    whole = np.broadcast_to(mask, (B, S) if mask.ndim == 2 else (B, T, S))
    expected, _ = reference.attention(layer, query, context, whole, causal)
    np.testing.assert_allclose(to_numpy(layer(query, context, mask, causal=causal)), expected, atol=2e-5)


def test_scores_on_request_change_nothing(kernel):
    layer = attention(DC, **kernel)
    query, context, mask = stream(B, T, D), stream(B, S, DC, seed=1), padding([S, 3], S)
    for causal in (False, True):
        result = layer(query, context, mask, causal=causal, return_scores=True)
        np.testing.assert_array_equal(to_numpy(result.output), to_numpy(layer(query, context, mask, causal=causal)))
        assert result.cache is None
        scores, allowed = to_numpy(result.scores), np.broadcast_to(mask[:, None, None], (B, 2, T, S))
        assert (scores[~allowed] == 0).all()
        if causal:
            assert (scores[:, :, ~np.tri(T, S, S - T, dtype=bool)] == 0).all()


def test_dropout_is_for_training_alone_and_spares_the_scores():
    layer = attention(DC, dropout=0.5, seed=3)
    query, context = stream(B, T, D), stream(B, S, DC, seed=1)
    calm, busy = (layer(query, context, return_scores=True, training=training) for training in (False, True))
    np.testing.assert_array_equal(to_numpy(calm.scores), to_numpy(busy.scores))
    assert np.abs(to_numpy(calm.output) - to_numpy(busy.output)).max() > 1e-2
    np.testing.assert_array_equal(to_numpy(calm.output), to_numpy(layer(query, context)))


def test_keras_masks_are_accepted(kernel):
    ids = np.array([[3, 4, 5, 0, 0], [1, 2, 0, 0, 0]])
    embedding, layer = keras.layers.Embedding(9, D, mask_zero=True), attention(**kernel)
    tokens = embedding(ids)
    np.testing.assert_array_equal(to_numpy(layer(tokens)), to_numpy(layer(to_numpy(tokens), context_mask=ids > 0)))
    query = stream(B, 3, D)
    crossed = attention(D, **kernel)
    np.testing.assert_array_equal(to_numpy(crossed(query, tokens)), to_numpy(crossed(query, to_numpy(tokens), ids > 0)))


def test_unknown_sizes_in_a_graph(kernel):
    layer = attention(DC, **kernel, num_key_value_heads=1)
    free = ((None, None, D), "float32"), ((None, None, DC), "float32"), ((None, None), "bool")
    read = graph(lambda q, c, m: layer(q, c, m, causal=True), *free)
    for length in (1, 3, 8):
        query, context, mask = stream(B, T, D), stream(B, length, DC, seed=1), padding([length, 1], length)
        expected, _ = reference.attention(layer, query, context, mask, causal=True)
        np.testing.assert_allclose(read(query, context, mask), expected, atol=2e-5)


QUERY, CONTEXT = np.zeros((B, T, D), "float32"), np.zeros((B, S, DC), "float32")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"query": QUERY[0]}, r"query is no stream of tokens \[a\]: expected query of shape .*, found \[5, 12\]$"),
    ({"query": QUERY[..., :4]}, r"query has another width .*\[batch, tokens, 12\], found \[2, 5, 4\]; project"),
    ({"query": QUERY.astype("int32")}, r"query has a wrong dtype \[a\]: expected floating point numbers, found int32; embed"),
    ({"context": CONTEXT[0]}, r"context is no stream of tokens"),
    ({"context": CONTEXT[..., :4]}, r"context has another width .*\[batch, tokens, 8\], found \[2, 7, 4\]"),
    ({"context": CONTEXT[:1]}, r"query and context differ in batch size \[a\]: expected 2, found 1$"),
    ({"context_mask": np.ones((B, S), "float32")}, r"context_mask has a wrong dtype \[a\]: expected bool.*, found float32; pass"),
    ({"context_mask": np.ones((B, T), bool)}, r"context_mask does not fit .*expected \[2, 7\] or \[2, 5, 7\], found \[2, 5\]$"),
    ({"context_mask": np.ones((B, 3, S), bool)}, r"context_mask does not fit"),
    ({"context_mask": np.ones((3, S), bool)}, r"context_mask does not fit"),
    ({"context_mask": np.ones(S, bool)}, r"context_mask does not fit"),
    ({"context_mask": np.ones((B, 1, T, S), bool)}, r"context_mask does not fit"),
])  # fmt: skip
def test_wrong_input_is_told_in_one_line(arguments, message):
    layer = attention(DC, name="a")
    with pytest.raises(ConfigError, match=message) as caught:
        layer(**{"query": QUERY, "context": CONTEXT, **arguments})
    assert "\n" not in str(caught.value) and "Exception encountered" not in str(caught.value)


@pytest.mark.parametrize(("options", "message"), [
    ({"num_heads": 0}, "impossible num_heads .*at least 1, found 0"),
    ({"num_heads": "4"}, "impossible num_heads .*a whole number of at least 1, found '4'"),
    ({"num_heads": 4.0}, "impossible num_heads .*a whole number of at least 1, found 4.0"),
    ({"num_heads": True}, "impossible num_heads .*found True"),
    ({"num_heads": 2, "head_dim": 4.5}, "impossible head_dim .*a whole number"),
    ({"num_heads": 2, "dropout": "0.1"}, "impossible dropout .*found '0.1'"),
    ({"num_heads": 2, "logit_cap": "5"}, "impossible logit_cap .*found '5'"),
    ({"num_heads": 2, "rotary": "2d", "grid": 5}, r"impossible grid .*expected \(rows, columns\), found 5"),
    ({"num_heads": 2, "rotary": "2d", "grid": (2, 3, 4)}, "impossible grid"),
    ({"num_heads": 2, "rotary": "2d", "grid": (2, 1.5)}, "impossible columns of the grid .*found 1.5"),
    ({"num_heads": 2, "kernel": "linear", "feature_map": lambda x: x}, "a feature_map without a name cannot be loaded again"),
    ({"num_heads": 4, "num_key_value_heads": 3}, "found 4 and 3"),
    ({"num_heads": 2, "kernel": "fast"}, "expected exact or chunked or local or linear, found 'fast'"),
    ({"num_heads": 2, "chunk_size": 0}, "impossible chunk_size"),
    ({"num_heads": 2, "head_dim": 0}, "impossible head_dim"),
    ({"num_heads": 2, "dropout": 1.0}, "impossible dropout"),
    ({"num_heads": 2, "dropout": 0.1, "kernel": "chunked"}, "expected dropout=0"),
])  # fmt: skip
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Attention(**options)


def test_nothing_to_attend_with_or_to_is_told_in_one_line():
    for call, message in (
        (lambda: Attention(num_heads=2, name="a")(None), r"^query is missing \[a\]: expected query of shape"),
        (lambda: attention(name="a")(None), r"^query is missing \[a\]"),
        (lambda: attention(name="a")(stream(B, 0, D)), r"^query has no tokens \[a\]: .*found \[2, 0, 12\]; mask one"),
        (
            lambda: attention(DC, name="a")(stream(B, T, D), stream(B, 0, DC)),
            r"^context has no tokens \[a\]: .*found \[2, 0, 8\]",
        ),
        (lambda: attention(DC, name="a", rotary=True)(stream(B, T, D), stream(B, S, DC)), r"^rotary positions are of self-atten"),
        (lambda: attention(DC, name="a")(stream(B, T, D), stream(B, S, DC), grid=(1, 5)), r"found rotary=False, grid=\(1, 5\)$"),
        (lambda: attention(rotary="2d", head_dim=4)(stream(B, T, D), grid=5), "impossible grid"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "shape", "message"), [
    ({"num_heads": 5}, (None, None, D), "the heads do not divide the width .*divides 12"),
    ({"num_heads": 4, "rotary": True}, (None, None, D), "fit the head width .*an even one"),
    ({"num_heads": 2}, (None, None, None), "known width"),
    ({"num_heads": 2}, (None, D), "query is no stream"),
])  # fmt: skip
def test_impossible_widths_are_refused_when_built(options, shape, message):
    with pytest.raises(ConfigError, match=message):
        Attention(**options).build(shape)
