"""What is particular to `ResamplerFusion`: a fixed number of latents, and another style that joins them with the text."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import to_numpy

from mmfusion.errors import ConfigError
from mmfusion.fusion import STYLES, CrossFusion, GatedFusion, ResamplerFusion

B, T, P, N, D, DI = 2, 4, 5, 3, 8, 6
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=shape).astype("float32") for shape in ((B, T, D), (B, P, DI)))
IMAGE_MASK = np.array([[True] * 3 + [False] * 2, [True] * P])
INNER = sorted(set(STYLES) - {"resampler"})


def made(**options):
    options = {"dim": D, "image_dim": DI, "depth": 2, "num_heads": 2, "num_latents": N, "resampler_depth": 2, **options}
    fusion = ResamplerFusion(**options)
    fusion.build()
    return randomized(fusion, scale=0.4)


def test_as_many_latents_whatever_the_image():
    fusion = made()
    for length in (1, 60):
        image = np.ones((B, length, DI), "float32")
        output = fusion(TEXT, image, return_scores=True)
        assert tuple(output.image.shape) == tuple(fusion.image_tokens(image).shape) == (B, N, fusion.image_width)
        assert tuple(output.scores.shape) == (B, 2, 2, T, length)
    costs = [fusion.cost(T, length) for length in (10, 20, 30)]
    for name in ("flops", "memory"):
        one, two, three = (getattr(cost, name) for cost in costs)
        assert three - two == two - one > 0, "linear in the image"


@pytest.mark.parametrize("inner", INNER)
def test_every_other_style_joins_the_latents(inner):
    fusion = made(inner=inner)
    assert type(fusion.fusion) is STYLES[inner]
    output = fusion(TEXT, IMAGE, image_mask=IMAGE_MASK, return_scores=True)
    scores = to_numpy(output.scores)
    assert scores.shape[0] == B and scores.shape[-2:] == (T, P) and np.isfinite(to_numpy(output.text)).all()
    sums = scores.sum(-1)
    assert (np.isclose(sums, 1.0, atol=1e-5) | (sums == 0)).all() and sums.max() > 0.9
    assert (scores[0, ..., 3:] == 0).all(), "behind the mask"


def test_with_one_latent_text_looks_where_it_looked():
    fusion = made(num_latents=1)
    scores = to_numpy(fusion(TEXT, IMAGE, image_mask=IMAGE_MASK, return_scores=True).scores)
    read = to_numpy(fusion.resampler(IMAGE, media_mask=IMAGE_MASK, return_scores=True).scores)[:, :, :, 0].mean((1, 2))
    expected = read / read.sum(-1, keepdims=True)
    np.testing.assert_allclose(scores, np.broadcast_to(expected[:, None, None, None], scores.shape), atol=1e-6)


def test_the_image_is_a_set():
    fusion, order = made(), RANDOM.permutation(P)
    first, second = fusion(TEXT, IMAGE, image_mask=IMAGE_MASK), fusion(TEXT, IMAGE[:, order], image_mask=IMAGE_MASK[:, order])
    np.testing.assert_allclose(to_numpy(first.text), to_numpy(second.text), atol=1e-5)


def test_a_step_is_as_the_pass():
    fusion = made(inner="gated", kernel="chunked")
    whole = fusion(TEXT, IMAGE, image_mask=IMAGE_MASK, causal=True, return_scores=True)
    cache = fusion.init_cache(B, T, IMAGE, IMAGE_MASK)
    for t in range(2):
        step = fusion(TEXT[:, t : t + 1], cache=cache, causal=True, return_scores=True)
        cache = step.cache
        np.testing.assert_allclose(to_numpy(step.text), to_numpy(whole.text)[:, t : t + 1], atol=1e-5)
        np.testing.assert_allclose(to_numpy(step.scores), to_numpy(whole.scores)[..., t : t + 1, :], atol=1e-5)


def test_is_causal_where_the_inner_style_is():
    assert made(inner="gated").supports_causal
    fusion = made(inner="cross", inner_options={"direction": "image"})
    assert not fusion.supports_causal and not fusion.informs_text
    with pytest.raises(ConfigError, match="cannot be causal"):
        fusion(TEXT, IMAGE, causal=True)


@pytest.mark.parametrize("options", [{"inner": "gated", "inner_options": {"self_attention": False}}, {"fusion": None}])
def test_round_trip(options):
    if "fusion" in options:
        options = {"fusion": GatedFusion(dim=D, depth=1, num_heads=4, mlp_ratio=2.0, name="mine")}
    fusion = made(**options)
    config = fusion.get_config()
    copy = ResamplerFusion.from_config(config)
    assert copy.get_config() == config and type(copy.fusion) is GatedFusion
    assert copy.fusion.get_config() == fusion.fusion.get_config()
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(fusion))
    if not copy.built:
        copy.build()
    copy.set_weights(fusion.get_weights())
    np.testing.assert_array_equal(to_numpy(copy(TEXT, IMAGE).text), to_numpy(fusion(TEXT, IMAGE).text))


def test_what_is_refused():
    for inner in ("resampler", "crss"):
        with pytest.raises(ConfigError, match=f"unknown inner style.*late.*found '{inner}'"):
            ResamplerFusion(dim=D, num_heads=2, inner=inner)
    with pytest.raises(ConfigError, match=r"CrossFusion has no option 'nothing' \[.*: fusion\].*direction, norm_first"):
        ResamplerFusion(dim=D, num_heads=2, inner_options={"nothing": 1})
    with pytest.raises(ConfigError, match="other widths.*dim=8, image_dim=8.*image_dim=6"):
        ResamplerFusion(dim=D, num_heads=2, fusion=CrossFusion(dim=D, image_dim=6, num_heads=2))
