"""What a fusion refuses, and how it says so: one line that names the fusion, what was expected and what was found."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest

from mmfusion.errors import ConfigError
from mmfusion.fusion import STYLES, Fusion

B, T, P, D = 2, 3, 4, 8
TEXT, IMAGE = np.ones((B, T, D), "float32"), np.ones((B, P, D), "float32")


@functools.cache  # no test here changes a weight
def made(style: str, **options) -> Fusion:
    fusion = STYLES[style](dim=D, depth=2, num_heads=2, name=f"the_{style}", **options)
    fusion.build((None, None, D), (None, None, D))
    return fusion


@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize(("lengths", "message"), [
    (("a", 49), "impossible text_length [the_{}]: expected a whole number of at least 1, found 'a'"),
    ((7, -1), "impossible image_length [the_{}]: expected at least 1, found -1"),
    ((7.5, 49), "impossible text_length [the_{}]: expected a whole number of at least 1, found 7.5"),
])  # fmt: skip
def test_what_is_no_length_has_no_cost(style, lengths, message):
    with pytest.raises(ConfigError) as caught:
        made(style).cost(*lengths)
    assert str(caught.value) == message.format(style)
    assert made(style).cost(np.int64(7), np.int32(9)) == made(style).cost(7, 9)


@pytest.mark.parametrize("style", sorted(STYLES))
def test_an_unknown_option_is_told_with_those_that_there_are(style):
    message = r"has no option 'drop_out' \[name\].*expected one of dim.*kernel.*perhaps dropout was meant"
    with pytest.raises(ConfigError, match=message) as caught:
        STYLES[style](dim=D, drop_out=0.1, name="name")
    own = set(STYLES[style](dim=D).get_config()) - {"name", "dtype", "trainable"}
    assert all(option in str(caught.value) for option in own) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no option 'one' and no option 'two'"):
        STYLES[style](dim=D, one=1, two=2)
    assert STYLES[style](dim=D, dtype="bfloat16", trainable=False).compute_dtype == "bfloat16"


@pytest.mark.parametrize(("options", "message"), [
    ({"depth": "two"}, "impossible depth [f]: expected a whole number of at least 1, found 'two'"),
    ({"num_heads": 2.0}, "impossible num_heads [f]: expected a whole number of at least 1, found 2.0"),
    ({"kernel": "quick"}, "unknown kernel [f]: expected exact or chunked or local or linear, found 'quick'"),
    ({"kernel": "chunked", "attention_dropout": 0.1},
     "attention weights are not kept by this kernel, so they cannot be dropped [f]: "
     "expected attention_dropout=0, found attention_dropout=0.1, kernel='chunked'; set dropout instead, or kernel='exact'"),
])  # fmt: skip
def test_an_impossible_option_is_the_fusions_and_not_a_layers_inside(options, message):
    with pytest.raises(ConfigError) as caught:
        STYLES["cross"](dim=D, name="f", **options)
    assert str(caught.value) == message


def test_what_a_layer_inside_refuses_names_the_fusion():
    cross, resampler = made("cross"), made("resampler")
    for fusion, where in ((cross, "the_cross: self_attention"), (resampler, "the_resampler: fusion: self_attention")):
        cache = fusion.init_cache(B, T - 1, IMAGE)
        with pytest.raises(ConfigError, match=rf"the query does not fit the cache \[{where}\]"):
            fusion(TEXT, cache=cache, causal=True)
    with pytest.raises(ConfigError, match=r"impossible num_bottlenecks \[r: fusion\]"):
        STYLES["resampler"](dim=D, inner="bottleneck", inner_options={"num_bottlenecks": 0}, name="r")
    # In a graph of Keras's too, and what the fusion says itself is not told twice.
    with pytest.raises(ConfigError, match=r"text and image differ in batch size \[the_cross\]"):
        cross(keras.Input((T, D), batch_size=2), keras.Input((P, D), batch_size=3))


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_cache_of_another_style_is_refused(style):
    for other in sorted(set(STYLES) - {style}):
        cache = made(other).init_cache(B, T, IMAGE)
        with pytest.raises(ConfigError) as caught:
            made(style)(TEXT[:, :1], cache=cache, causal=True)
        assert str(caught.value) == (
            f"the cache is of another fusion [the_{style}]: expected what init_cache of this {type(made(style)).__name__} gives, "
            f"found FusionCache of {len(cache.layers)} x {type(cache.layers[0]).__name__}"
        )
    with pytest.raises(ConfigError, match="the cache is of another fusion.*found tuple"):
        made(style)(TEXT[:, :1], cache=made(style).init_cache(B, T, IMAGE).layers[:0], causal=True)
    assert made(style)(TEXT[:, :1], cache=made(style).init_cache(B, T, IMAGE), causal=True).cache is not None


def test_a_cache_of_another_depth_is_refused():
    deeper = STYLES["co"](dim=D, depth=3, num_heads=2)
    deeper.build((None, None, D), (None, None, D))
    with pytest.raises(ConfigError, match="another fusion .*found FusionCache of 3 x CoCache"):
        made("co")(TEXT[:, :1], cache=deeper.init_cache(B, T, IMAGE), causal=True)


def test_a_cross_fusion_says_which_direction_can_be_causal():
    message = "this fusion cannot be causal.*expected direction='text' or direction='both', found direction='image'"
    asking = STYLES["resampler"](dim=D, inner="cross", inner_options={"direction": "image"}, name="r")
    asking(TEXT, IMAGE)
    for fusion, where in ((made("cross", direction="image"), "the_cross"), (asking, "r: fusion")):
        for call in (lambda f=fusion: f(TEXT, IMAGE, causal=True), lambda f=fusion: f.init_cache(B, T, IMAGE)):
            with pytest.raises(ConfigError, match=message) as caught:
                call()
            assert caught.value.where == where
