"""CrossFusion keeps the contract of every fusion."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized

from mmfusion.errors import ConfigError
from mmfusion.fusion import STYLES, CrossFusion, FusionOutput

B, T, P, D, DI = 2, 5, 6, 12, 16


def to_numpy(value):
    return keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))


@pytest.fixture
def streams():
    random = np.random.default_rng(0)
    return {
        "text": random.normal(size=(B, T, D)).astype("float32"),
        "image": random.normal(size=(B, P, DI)).astype("float32"),
        "text_mask": np.array([[True] * T, [True] * 3 + [False] * 2]),
        "image_mask": np.array([[True] * P, [True] * 4 + [False] * 2]),
    }


@pytest.fixture(params=sorted(STYLES))
def fusion(request):
    layer = STYLES[request.param](dim=D, image_dim=DI, depth=2, num_heads=2)
    layer.build((None, None, D), (None, None, DI))
    return randomized(layer)


def test_output(fusion, streams):
    output = fusion(**streams, return_scores=True)
    assert isinstance(output, FusionOutput)
    assert tuple(output.text.shape) == (B, T, D) and tuple(output.scores.shape) == (B, 2, 2, T, P)
    assert output.cache is None


def test_scores_on_request_change_nothing(fusion, streams):
    plain = fusion(**streams)
    assert plain.scores is None
    np.testing.assert_array_equal(to_numpy(plain.text), to_numpy(fusion(**streams, return_scores=True).text))


def test_what_is_masked_never_matters(fusion, streams):
    other = {name: value.copy() for name, value in streams.items()}
    other["text"][1, 3:] = np.nan
    other["image"][1, 4:] = np.inf
    first, second = to_numpy(fusion(**streams).text), to_numpy(fusion(**other).text)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1, :3], second[1, :3])


def test_an_image_without_tokens_gives_no_nan(fusion, streams):
    output = fusion(**{**streams, "image_mask": np.zeros((B, P), bool)}, return_scores=True)
    assert np.isfinite(to_numpy(output.text)).all()
    np.testing.assert_array_equal(to_numpy(output.scores), 0.0)


def test_the_image_matters(fusion, streams):
    other = {**streams, "image": streams["image"][::-1].copy()}
    assert np.abs(to_numpy(fusion(**streams).text) - to_numpy(fusion(**other).text)).max() > 1e-2


def test_cached_steps_equal_the_causal_pass(fusion, streams):
    text, image, image_mask = streams["text"], streams["image"], streams["image_mask"]
    whole = to_numpy(fusion(text, image, image_mask=image_mask, causal=True).text)
    cache = fusion.init_cache(B, T, image, image_mask)
    steps = []
    for t in range(T):
        output = fusion(text[:, t : t + 1], cache=cache, causal=True)
        cache = output.cache
        steps.append(to_numpy(output.text))
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_round_trip_and_dtype(dtype, streams):
    layer = CrossFusion(dim=D, image_dim=DI, depth=1, num_heads=2, dropout=0.1, dtype=dtype)
    copy = CrossFusion.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert np.isfinite(to_numpy(copy(**streams).text)).all()
    assert copy.compute_dtype == ("bfloat16" if dtype == "mixed_bfloat16" else "float32")


def test_gradients_reach_both_streams(fusion, streams):
    import tensorflow as tf

    text, image = tf.Variable(streams["text"]), tf.Variable(streams["image"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fusion(text, image).text ** 2)
    for gradient in tape.gradient(loss, [text, image]):
        assert np.abs(gradient.numpy()).max() > 1e-4


def test_a_cache_without_causal_is_refused(fusion, streams):
    cache = fusion.init_cache(B, T, streams["image"])
    with pytest.raises(ConfigError, match="decoding with it is causal.*pass causal=True"):
        fusion(streams["text"][:, :1], cache=cache)
