"""CoFusion: what its streams share, and what they do not."""

from __future__ import annotations

import numpy as np
import pytest
from factories import randomized
from gradients import to_numpy, value_and_gradients

from mmfusion.fusion import CoFusion

B, N, D = 2, 5, 8
STREAM = np.random.default_rng(0).normal(size=(B, N, D)).astype("float32")
OTHER = np.random.default_rng(1).normal(size=(B, N, D)).astype("float32")
# A block: four projections of attention, its feed-forward part of ratio 4, a normalisation before each.
PROJECTIONS, FEED_FORWARD, NORM = 4 * (D * D + D), 8 * D * D + 5 * D, 2 * D


def build(shared: bool, **options) -> CoFusion:
    fusion = CoFusion(dim=D, depth=2, num_heads=2, shared_cross=shared, **options)
    fusion.build()
    return randomized(fusion)


def test_weights_of_cross_attention_are_there_once_where_they_are_shared():
    itself = 2 * (PROJECTIONS + FEED_FORWARD + 2 * NORM)
    shared = PROJECTIONS + 2 * NORM
    apart = 2 * (PROJECTIONS + FEED_FORWARD + 3 * NORM)
    assert build(True).count_params() == 2 * (itself + shared) + 2 * NORM
    assert build(False).count_params() == 2 * (itself + apart) + 2 * NORM


@pytest.mark.parametrize("shared", [True, False])
def test_equal_streams_with_equal_weights_stay_equal(shared):
    fusion = build(shared)
    for index in range(2):
        fusion.image_blocks[index].set_weights(fusion.blocks[index].get_weights())
        if not shared:
            fusion.image_cross_blocks[index].set_weights(fusion.cross_blocks[index].get_weights())
    fusion.image_norm.set_weights(fusion.norm.get_weights())
    output, exchanged = fusion(STREAM, OTHER), fusion(OTHER, STREAM)
    np.testing.assert_array_equal(to_numpy(output.text), to_numpy(exchanged.image))
    np.testing.assert_array_equal(to_numpy(output.image), to_numpy(exchanged.text))
    assert np.abs(to_numpy(output.text) - to_numpy(output.image)).max() > 0.1


def test_shared_weights_learn_from_both_directions():
    fusion = build(True)
    weight = fusion.cross_blocks[1].cross.query_projection.kernel

    def gradient(stream):
        return value_and_gradients(lambda a, b: (getattr(fusion(a, b), stream) ** 2)[0, 0, 0], [STREAM, OTHER], [weight])[1][2]

    for stream in ("text", "image"):
        assert np.abs(gradient(stream)).max() > 1e-5


def test_an_image_of_another_width_is_projected_where_it_must_be():
    image = np.ones((B, 3, 12), "float32")
    assert tuple(build(True, image_dim=12)(STREAM, image).image.shape) == (B, 3, D)
    assert tuple(build(False, image_dim=12)(STREAM, image).image.shape) == (B, 3, 12)
