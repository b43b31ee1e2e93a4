"""CrossFusion where the image asks."""

from __future__ import annotations

import numpy as np
import pytest
from factories import randomized
from gradients import to_numpy

from mmfusion.errors import ConfigError
from mmfusion.fusion import CrossFusion

B, T, P, D, DI = 2, 3, 6, 8, 12
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = RANDOM.normal(size=(B, T, D)).astype("float32"), RANDOM.normal(size=(B, P, DI)).astype("float32")
IMAGE_MASK = np.arange(P) < np.array([[P], [4]])


def build(direction: str, **options) -> CrossFusion:
    fusion = CrossFusion(**{"dim": D, "image_dim": DI, "depth": 2, "num_heads": 2, "direction": direction, **options})
    fusion.build()
    return randomized(fusion)


def test_the_image_asks_and_the_text_stays_as_it_is():
    fusion = build("image")
    output = fusion(TEXT, IMAGE, image_mask=IMAGE_MASK)
    np.testing.assert_array_equal(to_numpy(output.text), TEXT)
    other = fusion(TEXT[:, ::-1].copy() + 1.0, IMAGE, image_mask=IMAGE_MASK)
    assert np.abs(to_numpy(output.image) - to_numpy(other.image))[IMAGE_MASK].min(-1).max() > 1e-4
    assert not fusion.informs_text and not fusion.supports_causal
    assert not any(weight.path.split("/")[0] == "block_0" for weight in fusion.weights)


def test_one_word_gets_all_that_each_patch_gives():
    # Each real patch can look at nothing else, so that the word is looked at by all of them alike.
    scores = to_numpy(build("image")(TEXT[:, :1], IMAGE, image_mask=IMAGE_MASK, return_scores=True).scores)
    assert scores.shape == (B, 2, 2, 1, P)
    np.testing.assert_allclose(
        scores, np.broadcast_to((IMAGE_MASK / IMAGE_MASK.sum(1, keepdims=True))[:, None, None, None], scores.shape)
    )


def test_words_share_what_a_patch_gives():
    mask = np.array([[True, True, True], [True, False, True]])
    scores = to_numpy(build("image")(TEXT, IMAGE, mask, IMAGE_MASK, return_scores=True).scores)
    np.testing.assert_allclose(scores.sum(-1), np.broadcast_to(mask[:, None, None], scores.shape[:-1]), atol=1e-6)
    assert (scores[1, ..., 4:] == 0).all()


def test_both_directions_at_depth_one_are_the_two_alone():
    both = build("both", depth=1, norm_first=False)
    output = both(TEXT, IMAGE, image_mask=IMAGE_MASK)
    for direction, stream, blocks in (("text", "text", "blocks"), ("image", "image", "image_blocks")):
        alone = build(direction, depth=1, norm_first=False)
        getattr(alone, blocks)[0].set_weights(getattr(both, blocks)[0].get_weights())
        found = getattr(alone(TEXT, IMAGE, image_mask=IMAGE_MASK), stream)
        np.testing.assert_array_equal(to_numpy(found), to_numpy(getattr(output, stream)))


def test_what_cannot_be_is_told_in_one_line():
    asking = build("image")
    for make, message in (
        (lambda: build("left"), "unknown direction.*expected text or image or both, found 'left'"),
        (lambda: build("both", image_dim=9), "the heads do not divide the width.*divides 9, found 2"),
        (lambda: asking(TEXT, IMAGE, causal=True), "this fusion cannot be causal"),
        (lambda: asking.init_cache(B, 4, IMAGE), "this fusion cannot be causal"),
        (lambda: build("text")(TEXT), "a fusion got no image"),
        (lambda: build("text")(TEXT, IMAGE, np.ones((B, T, T), bool)), "text_mask does not fit.*found \\[2, 3, 3\\]"),
        (lambda: build("text", depth=0), "impossible depth.*at least 1, found 0"),
        (lambda: build("text", stochastic_depth=1.0), "impossible stochastic_depth"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
