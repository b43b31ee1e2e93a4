"""Modality dropout hides what it says, as often as it says, and never everything."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import graph
from layer_reference import padding, stream
from scipy import stats

from mmfusion.errors import ConfigError
from mmfusion.layers import ModalityDropout

B, T, P = 4000, 3, 4
TEXT, IMAGE = stream(B, T, 2), stream(B, P, 5, seed=1)
TEXT_MASK = padding([1 + i % T for i in range(B)], T)


def drawn(layer, text_mask=None, image_mask=None, **options):
    return [np.asarray(mask) for mask in layer(TEXT, IMAGE, text_mask=text_mask, image_mask=image_mask, **options)]


@pytest.mark.parametrize(("rate", "share"), [(0.3, 0.5), (0.6, 0.2), (0.9, 1.0), (0.5, 0.0)])
def test_as_often_as_it_says_and_never_both(rate, share):
    text, image = drawn(ModalityDropout(rate=rate, text_share=share, seed=3), TEXT_MASK, training=True)
    no_text, no_image = ~text.any(1), ~image.any(1)
    assert not (no_text & no_image).any()
    # Whole: what is kept is kept as it was.
    np.testing.assert_array_equal(text[~no_text], TEXT_MASK[~no_text])
    assert image[~no_image].all()
    for hidden, probability in ((no_text, rate * share), (no_image, rate * (1 - share))):
        assert stats.binomtest(int(hidden.sum()), B, probability).pvalue > 1e-4, (hidden.mean(), probability)


def test_each_step_and_each_example_draws_anew_and_a_seed_repeats():
    first, second = (ModalityDropout(rate=0.5, seed=7) for _ in range(2))
    text, again = drawn(first, training=True)[0], drawn(second, training=True)[0]
    np.testing.assert_array_equal(text, again)
    later = drawn(first, training=True)[0]
    agreement = (text.any(1) == later.any(1)).mean()
    assert abs(agreement - (0.75**2 + 0.25**2)) < 0.04
    assert abs(np.corrcoef(text.any(1)[1:], text.any(1)[:-1])[0, 1]) < 0.06


def test_an_example_with_one_modality_keeps_it():
    text_mask, image_mask = np.ones((B, T), bool), np.ones((B, P), bool)
    text_mask[::2], image_mask[1::2] = False, False
    text, image = drawn(ModalityDropout(rate=0.8, seed=1), text_mask, image_mask, training=True)
    np.testing.assert_array_equal(text, text_mask)
    np.testing.assert_array_equal(image, image_mask)


def test_nothing_happens_outside_of_training():
    layer = ModalityDropout(rate=0.9)
    assert layer(TEXT, IMAGE, training=False) == (None, None) == ModalityDropout(rate=0.0)(TEXT, IMAGE, training=True)
    np.testing.assert_array_equal(layer(TEXT, IMAGE, text_mask=TEXT_MASK)[0], TEXT_MASK)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a graph that keeps its own random state")
def test_in_a_graph_each_call_draws_anew():
    layer = ModalityDropout(rate=0.5, seed=5)
    eager = [drawn(ModalityDropout(rate=0.5, seed=5), training=True)[0]]
    function = graph(
        lambda text, image: layer(text, image, training=True), ((None, None, 2), "float32"), ((None, None, 5), "float32")
    )
    one, two = (np.asarray(function(TEXT, IMAGE)[0]) for _ in range(2))
    np.testing.assert_array_equal(one, eager[0])
    assert (one != two).any()


def test_what_is_refused_and_its_configuration():
    with pytest.raises(ConfigError, match="impossible rate"):
        ModalityDropout(rate=1.0)
    with pytest.raises(ConfigError, match="impossible text_share"):
        ModalityDropout(rate=0.1, text_share=1.5)
    with pytest.raises(ConfigError, match="text_mask does not fit"):
        ModalityDropout(rate=0.1)(TEXT, IMAGE, text_mask=np.ones((B, P), bool), training=True)
    config = ModalityDropout(rate=0.1, text_share=0.3, seed=4, name="a").get_config()
    assert ModalityDropout.from_config(config).get_config() == config
