"""Attention of recurrent decoders, and the LSTM that uses it, against plain NumPy."""

from __future__ import annotations

import keras
import layer_reference as reference
import numpy as np
import pytest
from gradients import graph, to_numpy, value_and_gradients
from layer_reference import built, padding, stream

from mmfusion.errors import ConfigError
from mmfusion.layers import AdditiveAttention, AttentiveLSTM, MultiplicativeAttention

B, T, S, D, DM, U = 3, 4, 5, 6, 8, 4
LAYERS = {
    "additive": lambda: AdditiveAttention(name="a"),
    "additive of two": lambda: AdditiveAttention(units=10, num_heads=2, name="a"),
    "general": lambda: MultiplicativeAttention(name="a"),
    "general of two": lambda: MultiplicativeAttention(num_heads=2, scaled=True, name="a"),
    "dot": lambda: MultiplicativeAttention(score="dot", name="a"),
}
MASK = padding([S, 2, 0], S)


def layer_of(name: str):
    return built(LAYERS[name](), (None, None, DM if name == "dot" else D), (None, None, DM))


@pytest.mark.parametrize("name", LAYERS)
def test_equals_numpy(name):
    layer, memory = layer_of(name), stream(B, S, DM, seed=1)
    queries = stream(B, T, DM if name == "dot" else D)
    filled = np.where(MASK[..., None], memory, np.nan).astype("float32")
    for mask, given in ((None, memory), (MASK, memory), (MASK, filled)):
        context, weights = layer(queries, given, memory_mask=mask)
        weights = to_numpy(weights)[:, None] if layer.num_heads == 1 else to_numpy(weights)
        assert weights.shape == (B, layer.num_heads, T, S)
        once = layer.project_memory(given, mask)
        for t in range(T):
            expected, expected_weights = reference.memory_attention(layer, queries[:, t], memory, mask)
            np.testing.assert_allclose(to_numpy(context)[:, t], expected, atol=1e-5)
            np.testing.assert_allclose(weights[:, :, t], expected_weights, atol=1e-6)
            step, step_weights = layer(queries[:, t], projected=once)
            np.testing.assert_allclose(to_numpy(step), expected, atol=1e-5)
            assert tuple(step_weights.shape) == ((B, S) if layer.num_heads == 1 else (B, 2, S))
    np.testing.assert_array_equal(to_numpy(context)[2], 0.0)
    _, found = value_and_gradients(
        lambda q, m: keras.ops.sum(layer(q, m, memory_mask=MASK).context ** 2), [queries, filled], layer.trainable_weights
    )
    assert all(np.isfinite(x).all() for x in found) and np.abs(found[0]).max() > 0


@pytest.mark.parametrize("options", [
    {}, {"attention": "multiplicative", "num_heads": 2}, {"num_heads": 2, "unroll": True},
], ids=["additive", "multiplicative", "unrolled"])  # fmt: skip
@pytest.mark.parametrize("reverse", [False, True])
def test_an_lstm_equals_numpy(options, reverse):
    layer = built(AttentiveLSTM(units=U, **options), (None, None, D), (None, None, DM))
    tokens, memory, mask = stream(B, T, D), stream(B, S, DM, seed=1), np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 1]]) > 0
    for tokens_mask, memory_mask in ((None, None), (mask, MASK)):
        found = layer(tokens, memory, tokens_mask=tokens_mask, memory_mask=memory_mask, reverse=reverse)
        expected = reference.attentive_lstm(layer, tokens, memory, tokens_mask, memory_mask, reverse)
        for name, value in expected.items():
            np.testing.assert_allclose(to_numpy(getattr(found, name)), value, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(to_numpy(found.state.hidden), to_numpy(found.hidden)[:, 0 if reverse else -1])
    # In pieces, from the state where the last one ended.
    once = layer.project_memory(memory, MASK)
    pieces, state = [], None
    for piece, piece_mask in ((tokens[:, :1], mask[:, :1]), (tokens[:, 1:], mask[:, 1:])):
        output = layer(piece, tokens_mask=piece_mask, projected=once, state=state)
        state = output.state
        pieces.append(to_numpy(output.hidden))
    expected = reference.attentive_lstm(layer, tokens, memory, mask, MASK)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected["hidden"], atol=1e-5)


def test_a_loop_has_the_gradient_of_its_steps():
    layers = [built(AttentiveLSTM(units=U, unroll=unroll), (None, None, D), (None, None, DM)) for unroll in (False, True)]
    tokens, memory, mask = stream(B, T, D), stream(B, S, DM, seed=1), padding([T, 2, 1], T)
    loop, steps = (
        value_and_gradients(
            lambda x, m, layer=layer: keras.ops.sum(layer(x, m, tokens_mask=mask, memory_mask=MASK).hidden ** 2),
            [tokens, memory],
            layer.trainable_weights,
        )[1]
        for layer in layers
    )
    assert all(np.abs(x).max() > 0 for x in steps)
    for one, two in zip(loop, steps, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_sizes_unknown_in_a_graph():
    layer = built(AttentiveLSTM(units=U), (None, None, D), (None, None, DM))
    run = graph(lambda x, m: layer(x, m).hidden, ((None, None, D), "float32"), ((None, None, DM), "float32"))
    for length in (1, T):
        tokens, memory = stream(B, length, D), stream(B, S, DM, seed=1)
        np.testing.assert_allclose(to_numpy(run(tokens, memory)), to_numpy(layer(tokens, memory).hidden), atol=1e-6)


def test_attention_dropout_is_for_training_alone():
    layer = built(AttentiveLSTM(units=U, attention_dropout=0.5, seed=1), (None, None, D), (None, None, DM))
    tokens, memory = stream(B, T, D), stream(B, S, DM, seed=1)
    calm, busy = (layer(tokens, memory, training=training) for training in (False, True))
    np.testing.assert_array_equal(to_numpy(calm.weights)[:, :, 0], to_numpy(busy.weights)[:, :, 0])
    assert np.abs(to_numpy(calm.context) - to_numpy(busy.context)).max() > 1e-2


@pytest.mark.parametrize("name", ["additive of two", "general of two", "dot"])
def test_round_trip_and_half_precision(name):
    layer = layer_of(name)
    copy = type(layer).from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})
    copy.build((None, None, DM if name == "dot" else D), (None, None, DM))
    copy.set_weights(layer.get_weights())
    queries, memory = stream(B, DM if name == "dot" else D), stream(B, S, DM, seed=1)
    context, weights = copy(queries, memory, memory_mask=MASK)
    assert keras.backend.standardize_dtype(context.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(weights.dtype) == "float32"
    np.testing.assert_allclose(to_numpy(context), to_numpy(layer(queries, memory, memory_mask=MASK).context), atol=5e-2)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: MultiplicativeAttention(score="concat"), "unknown score .*found 'concat'; Luong's 'concat' is AdditiveAttention"),
    (lambda: MultiplicativeAttention(score="dot", name="a").build((None, D), (None, S, DM)), r"as wide as the memory \[a\]"),
    (lambda: AdditiveAttention(units=3, num_heads=2), "num_heads that divides units, 3, found 2"),
    (lambda: AdditiveAttention(num_heads=3).build((None, D), (None, S, DM)), "divides the memory's width, 8, found 3"),
    (lambda: AttentiveLSTM(units=4, attention="sharp"), "unknown attention .*found 'sharp'"),
    (lambda: AttentiveLSTM(units=0), "impossible units"),
    (lambda: AttentiveLSTM(units=4, attention_dropout=1.0), "impossible attention_dropout"),
    (lambda: layer_of("additive")(stream(B, D + 1), stream(B, S, DM)), r"query has another width .*\[a\]"),
    (lambda: layer_of("additive")(stream(B, D), stream(B, S, D)), "memory has another width"),
    (lambda: layer_of("additive")(stream(B, D), stream(B, S, DM), memory_mask=np.ones((B, T), bool)), "does not fit"),
])  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
