"""TransformerBlock against plain NumPy, and what masks promise of it."""

from __future__ import annotations

import keras
import layer_reference as reference
import numpy as np
import pytest
from gradients import value_and_gradients
from layer_reference import built, padding, stream, to_numpy

from mmfusion.errors import ConfigError
from mmfusion.layers import BlockOutput, TransformerBlock

B, N, S, D, DC = 2, 5, 7, 12, 8
KERNELS = {"exact": {"kernel": "exact"}, "chunked": {"kernel": "chunked", "chunk_size": 3}}
TOKENS, CONTEXT = stream(B, N, D), stream(B, S, DC, seed=1)
MASK, CONTEXT_MASK = padding([N, 3], N), padding([S, 0], S)


@pytest.fixture(params=sorted(KERNELS))
def kernel(request) -> dict:
    return KERNELS[request.param]


def block(crossed: bool = True, **options) -> TransformerBlock:
    layer = TransformerBlock(**{"num_heads": 2, "cross_attention": crossed, **options})
    return built(layer, (None, None, D), (None, None, DC) if crossed else None)


@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 1, "rotary": True, "query_key_norm": True, "mlp_ratio": 2.0}])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_numpy(kernel, options, causal):
    single, crossed = block(False, **kernel, **options), block(**kernel, **options)
    expected = reference.block(single, TOKENS, MASK, causal=causal)
    np.testing.assert_allclose(to_numpy(single(TOKENS, MASK, causal=causal))[MASK], expected[MASK], atol=5e-5)
    found = to_numpy(crossed(TOKENS, MASK, CONTEXT, CONTEXT_MASK, causal=causal))
    expected = reference.block(crossed, TOKENS, MASK, CONTEXT, CONTEXT_MASK, causal)
    np.testing.assert_allclose(found[MASK], expected[MASK], atol=5e-5)


@pytest.mark.parametrize("filler", [3.0, np.inf, np.nan])
def test_padding_never_matters(kernel, filler):
    layer, mask = block(**kernel), CONTEXT_MASK
    tokens = np.where(MASK[..., None], TOKENS, filler).astype("float32")
    context = np.where(mask[..., None], CONTEXT, filler).astype("float32")
    first, second = to_numpy(layer(TOKENS, MASK, CONTEXT, mask)), to_numpy(layer(tokens, MASK, context, mask))
    np.testing.assert_array_equal(first[MASK], second[MASK])
    weight = MASK[..., None].astype("float32")

    def loss(x, c):
        return keras.ops.sum((layer(x, MASK, c, mask) * weight) ** 2)

    found = [value_and_gradients(loss, pair, layer.trainable_weights)[1] for pair in ((TOKENS, CONTEXT), (tokens, context))]
    for one, two in zip(*found, strict=True):
        assert np.isfinite(two).all()
        np.testing.assert_array_equal(one, two)


def test_a_token_that_is_asked_but_asks_nothing_is_real(kernel):
    layer, pattern = block(False, **kernel), np.ones((B, N, N), bool)
    pattern[:, 1] = False  # asks nothing, is asked by all
    pattern[:, 2] = pattern[:, :, 2] = False  # takes no part
    expected = reference.block(layer, TOKENS, pattern)
    real = np.arange(N) != 2
    for tokens in (TOKENS, np.where(real[:, None], TOKENS, np.nan).astype("float32")):
        np.testing.assert_allclose(to_numpy(layer(tokens, pattern))[:, real], expected[:, real], atol=5e-5)


def test_scores_on_request_change_nothing(kernel):
    layer = block(**kernel)
    plain = layer(TOKENS, MASK, CONTEXT, CONTEXT_MASK, causal=True)
    result = layer(TOKENS, MASK, CONTEXT, CONTEXT_MASK, causal=True, return_scores=True)
    assert isinstance(result, BlockOutput) and result.cache is None
    np.testing.assert_array_equal(to_numpy(plain), to_numpy(result.tokens))
    assert tuple(result.self_scores.shape) == (B, 2, N, N) and tuple(result.cross_scores.shape) == (B, 2, N, S)
    assert (to_numpy(result.cross_scores)[1] == 0).all()
    assert block(False, **kernel)(TOKENS, return_scores=True).cross_scores is None


def test_positions_are_of_self_attention_alone():
    layer = block(rotary="2d", attention_options={"grid": (2, 2), "num_unrotated_tokens": 1, "logit_cap": 5.0}, num_heads=1)
    assert layer.attention.rotary == "2d" and layer.attention.grid == (2, 2) and layer.attention.logit_cap == 5.0
    assert layer.cross.rotary is False and layer.cross.grid is None and layer.cross.logit_cap == 5.0
    assert np.isfinite(to_numpy(layer(TOKENS, context=CONTEXT))).all()


def test_gains_of_zero_make_the_identity():
    layer = block(layer_scale=0.0)
    for gain in layer.gains.values():
        gain.gain.assign(np.zeros(gain.gain.shape))
    np.testing.assert_array_equal(to_numpy(layer(TOKENS, context=CONTEXT)), TOKENS)


def test_what_drops_drops_in_training_alone():
    for options in ({"dropout": 0.5}, {"attention_dropout": 0.5}, {"stochastic_depth": 0.5}):
        layer = block(False, **options)
        calm = to_numpy(layer(TOKENS, training=False))
        np.testing.assert_array_equal(calm, to_numpy(layer(TOKENS)))
        assert max(np.abs(to_numpy(layer(TOKENS, training=True)) - calm).max() for _ in range(8)) > 1e-3


def test_keras_masks_are_accepted_and_passed_on():
    ids = np.array([[3, 4, 5, 0, 0], [1, 2, 0, 0, 0]])
    tokens, real = keras.layers.Embedding(9, D, mask_zero=True)(ids), ids > 0
    single, crossed = block(False), block()
    output = single(tokens)
    np.testing.assert_array_equal(to_numpy(output), to_numpy(single(to_numpy(tokens), real)))
    np.testing.assert_array_equal(output._keras_mask, real)
    output = crossed(tokens, context=CONTEXT)
    np.testing.assert_array_equal(to_numpy(output), to_numpy(crossed(to_numpy(tokens), real, CONTEXT)))


def test_what_does_not_fit_is_told_in_one_line():
    single, crossed = block(False, name="a"), block(name="b")
    for layer, arguments, message in (
        (single, {"tokens": TOKENS[0]}, r"tokens is no stream of tokens \[a\]"),
        (single, {"tokens": TOKENS[..., :4]}, r"tokens has another width .*found \[2, 5, 4\]"),
        (single, {"tokens": TOKENS, "mask": MASK.astype("float32")}, r"mask has a wrong dtype \[a\]"),
        (single, {"tokens": TOKENS, "mask": MASK[:, :3]}, r"mask does not fit .*found \[2, 3\]"),
        (single, {"tokens": TOKENS, "context": CONTEXT}, r"without cross-attention got a context \[a\]; build it"),
        (crossed, {"tokens": TOKENS}, r"with cross-attention got no context \[b\]"),
        (crossed, {"tokens": TOKENS, "context": CONTEXT[..., :3]}, r"context has another width"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            layer(**arguments)
        assert "\n" not in str(caught.value) and "Exception encountered" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected one"):
        crossed.init_cache(B, 9)
    with pytest.raises(ConfigError, match="expected none"):
        single.init_cache(B, 9, context=CONTEXT)
