"""What is particular to `LateFusion`: one vector stands for the image, and each text token meets it alone."""

from __future__ import annotations

import numpy as np
import pytest
from factories import randomized
from gradients import to_numpy
from scipy.special import erf

from mmfusion.fusion import FusionCache, LateFusion
from mmfusion.fusion.late_fusion import LateCache

B, T, P, D, DI = 2, 4, 5, 8, 6
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=shape).astype("float32") for shape in ((B, T, D), (B, P, DI)))
IMAGE_MASK = np.array([[True] * 3 + [False] * 2, [True] * P])


@pytest.fixture
def fusion():
    layer = LateFusion(dim=D, image_dim=DI, depth=2, num_heads=2, mlp_ratio=3.0)
    layer.build()
    return randomized(layer)


def pooled(fusion):
    return to_numpy(fusion.pooling(IMAGE, tokens_mask=IMAGE_MASK))


def norm(layer, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.epsilon)
    return scaled * to_numpy(layer.gamma) + to_numpy(layer.beta)


def test_equals_numpy(fusion):
    text, vector = TEXT, pooled(fusion)
    for merge in fusion.merges:
        joined = np.concatenate([norm(merge.norm, text), np.repeat(vector[:, None], T, axis=1)], axis=-1)
        kernel = np.concatenate([to_numpy(merge.text_dense.kernel), to_numpy(merge.image_dense.kernel)])
        hidden = joined @ kernel + to_numpy(merge.text_dense.bias)
        hidden = 0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))
        text = text + hidden @ to_numpy(merge.output_dense.kernel) + to_numpy(merge.output_dense.bias)
    output = fusion(TEXT, IMAGE, image_mask=IMAGE_MASK)
    np.testing.assert_allclose(to_numpy(output.text), norm(fusion.norm, text), atol=1e-5)


def test_reads_the_image_only_through_its_vector(fusion):
    cache = FusionCache((LateCache(pooled(fusion), np.zeros((B, 2, P), "float32")),))
    expected = fusion(TEXT, IMAGE, image_mask=IMAGE_MASK).text
    np.testing.assert_array_equal(to_numpy(fusion(TEXT, cache=cache, causal=True).text), to_numpy(expected))


def test_an_image_without_patches_is_the_zero_vector(fusion):
    cache = FusionCache((LateCache(np.zeros((B, D), "float32"), np.zeros((B, 2, P), "float32")),))
    none = fusion(TEXT, IMAGE, image_mask=np.zeros((B, P), bool), return_scores=True)
    np.testing.assert_array_equal(to_numpy(none.text), to_numpy(fusion(TEXT, cache=cache, causal=True).text))
    np.testing.assert_array_equal(to_numpy(none.scores), 0.0)


def test_no_text_token_sees_another(fusion):
    other = TEXT.copy()
    other[:, 1] = 3.0
    first, second = (to_numpy(fusion(text, IMAGE).text) for text in (TEXT, other))
    np.testing.assert_array_equal(np.delete(first, 1, axis=1), np.delete(second, 1, axis=1))
    assert np.abs(first[:, 1] - second[:, 1]).max() > 0.1


def test_all_tokens_and_layers_look_where_the_pooling_looks(fusion):
    scores = to_numpy(fusion(TEXT, IMAGE, image_mask=IMAGE_MASK, return_scores=True).scores)
    pooling = to_numpy(fusion.pooling(IMAGE, tokens_mask=IMAGE_MASK, return_scores=True).scores)
    np.testing.assert_array_equal(scores, np.broadcast_to(pooling[:, None], scores.shape))
    np.testing.assert_allclose(scores.sum(-1), 1.0, atol=1e-6)
    assert (scores[0, ..., 3:] == 0).all()


def test_scores_of_a_step_are_those_of_the_pass(fusion):
    scores = to_numpy(fusion(TEXT, IMAGE, image_mask=IMAGE_MASK, causal=True, return_scores=True).scores)
    step = fusion(TEXT[:, :1], cache=fusion.init_cache(B, T, IMAGE, IMAGE_MASK), causal=True, return_scores=True)
    np.testing.assert_allclose(to_numpy(step.scores), scores[..., :1, :], atol=1e-6)
