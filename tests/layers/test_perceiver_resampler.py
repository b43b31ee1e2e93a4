"""The resampler's masks and scores; its numbers are compared with Idefics' in tests/parity."""

from __future__ import annotations

import keras
import numpy as np
from gradients import value_and_gradients
from layer_reference import built, padding, stream, to_numpy

from mmfusion.layers import PerceiverResampler

B, S, N, D, DM = 2, 5, 3, 8, 6
MEDIA, MASK = stream(B, S, DM), padding([3, S], S)


def resampler(**options):
    return built(PerceiverResampler(num_latents=N, num_heads=2, dim=D, **options), (None, None, DM))


def test_what_is_masked_never_matters():
    layer, filled = resampler(), np.where(MASK[..., None], MEDIA, np.nan).astype("float32")
    one, two = (to_numpy(layer(media, media_mask=MASK)) for media in (MEDIA, filled))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one[:1], to_numpy(layer(MEDIA[:1, :3])), atol=1e-6)
    _, (gradient,) = value_and_gradients(lambda media: keras.ops.sum(layer(media, media_mask=MASK) ** 3), [filled])
    assert np.isfinite(gradient).all() and not gradient[0, 3:].any() and np.abs(gradient[0, :3]).max() > 1e-4


def test_the_medias_own_keras_mask_is_taken():
    layer, ids = resampler(), np.array([[3, 4, 0, 0], [5, 6, 7, 0]])
    media = keras.layers.Embedding(9, DM, mask_zero=True)(ids)
    found = to_numpy(layer(media))
    np.testing.assert_array_equal(found, to_numpy(layer(to_numpy(media), media_mask=ids > 0)))
    assert np.abs(found - to_numpy(layer(to_numpy(media)))).max() > 1e-3


def test_without_media_the_latents_see_each_other_alone():
    layer = resampler()
    output = layer(MEDIA, media_mask=np.zeros((B, S), bool), return_scores=True)
    assert np.isfinite(to_numpy(output.latents)).all() and not to_numpy(output.scores).any()
    np.testing.assert_allclose(*to_numpy(output.latents), atol=1e-5)


def test_scores_are_what_latents_leave_and_change_nothing():
    for kernel in ("exact", "chunked"):
        layer = resampler(kernel=kernel)
        output = layer(MEDIA, media_mask=MASK, return_scores=True)
        np.testing.assert_array_equal(to_numpy(output.latents), to_numpy(layer(MEDIA, media_mask=MASK)))
        scores = to_numpy(output.scores)
        assert scores.shape == (B, 2, 2, N, S) and (scores[0, ..., 3:] == 0).all()
        assert (0 < scores.sum(-1)).all() and (scores.sum(-1) < 1).all()
