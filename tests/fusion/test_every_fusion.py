"""The battery that every fusion style passes with each of its options: the contract of `Fusion`, on whichever backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import graph, to_numpy, value_and_gradients
from keras import ops

from mmfusion.errors import ConfigError
from mmfusion.fusion import STYLES, Fusion, FusionOutput

B, T, P, D, DI, DEPTH, HEADS = 2, 5, 6, 12, 16, 2, 2
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "late": ("late", {}),
    "cross": ("cross", {}),
    "cross image": ("cross", {"direction": "image"}),
    "cross both": ("cross", {"direction": "both", "layer_scale": 0.5}),
    "cross chunked": ("cross", {"kernel": "chunked"}),
    "co": ("co", {}),
    "co shared": ("co", {"shared_cross": True}),
    "merged": ("merged", {}),
    "bottleneck": ("bottleneck", {"num_bottlenecks": 3}),
    "gated": ("gated", {}),
    "gated alone": ("gated", {"self_attention": False}),
    "qformer": ("qformer", {"num_queries": 3, "cross_every": 1}),
    "resampler": ("resampler", {"num_latents": 3, "resampler_depth": 1}),
    "resampler of merged": ("resampler", {"num_latents": 3, "resampler_depth": 1, "inner": "merged"}),
    "recurrent": ("recurrent", {}),
    "recurrent multiplicative": ("recurrent", {"attention": "multiplicative"}),
}
# Where a text token sees no other text: its own words come from the text encoder alone.
BLIND_TO_TEXT = ("late", "gated alone")
TEXT_MASK = np.arange(T) < np.array([[T], [3]])
IMAGE_MASK = np.arange(P) < np.array([[P], [4]])
_random = np.random.default_rng(0)
TEXT, IMAGE = _random.normal(size=(B, T, D)).astype("float32"), _random.normal(size=(B, P, DI)).astype("float32")
STREAMS = {"text": TEXT, "image": IMAGE, "text_mask": TEXT_MASK, "image_mask": IMAGE_MASK}


class Case(NamedTuple):
    """One variant with random weights, and what it makes of the streams."""

    name: str
    fusion: Fusion
    output: FusionOutput

    def make(self, **options: Any) -> Fusion:
        style, own = VARIANTS[self.name]
        layer = STYLES[style](**{"dim": D, "image_dim": DI, "depth": DEPTH, "num_heads": HEADS, **own, **options})
        layer.build((None, None, D), (None, None, DI))
        return layer


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def case(request) -> Case:
    fusion = randomized(Case(request.param, None, None).make())
    return Case(request.param, fusion, fusion(**STREAMS, return_scores=True))


def needs(case: Case, what: str) -> None:
    if not getattr(case.fusion, what):
        pytest.skip(f"{case.name}: {what} is false")


def only_plain(case: Case) -> None:
    if case.name not in STYLES:
        pytest.skip("the plain variant of the style shows it")


def total(output: FusionOutput, mask: np.ndarray = TEXT_MASK) -> Any:
    """One number of all real text tokens and, where they are as many as before, real image tokens."""
    text = ops.sum(ops.where(mask[..., None], output.text, 0.0) ** 2)
    image = output.image
    if image.shape[1] == P:
        image = ops.where(IMAGE_MASK[..., None], image, 0.0)
    return text + ops.sum(image**2)


def test_every_style_is_here():
    assert {style for style, _ in VARIANTS.values()} == set(STYLES)


def test_output_and_scores(case):
    plain = case.fusion(**STREAMS)
    assert isinstance(plain, FusionOutput) and plain.scores is None and plain.cache is None
    assert tuple(plain.text.shape) == (B, T, D) and plain.image.shape[0] == B
    scores = to_numpy(case.output.scores)
    assert scores.shape == (B, DEPTH, HEADS, T, P) and ops.dtype(case.output.scores) == "float32"
    # Asking for scores changes nothing.
    np.testing.assert_array_equal(to_numpy(plain.text), to_numpy(case.output.text))
    np.testing.assert_array_equal(to_numpy(plain.image), to_numpy(case.output.image))
    assert (scores >= 0).all() and (scores[1, ..., 4:] == 0).all()
    sums = scores.sum(-1).swapaxes(1, 3)[TEXT_MASK]
    assert np.isclose(sums[..., -1], 1.0, atol=1e-5).all(), "the last layer looks at the image"
    assert (np.isclose(sums, 1.0, atol=1e-5) | (sums == 0)).all()


def test_what_is_masked_never_matters(case):
    text = np.where(TEXT_MASK[..., None], TEXT, np.nan).astype("float32")
    image = np.where(IMAGE_MASK[..., None], IMAGE, np.inf).astype("float32")
    found = case.fusion(text, image, TEXT_MASK, IMAGE_MASK)
    np.testing.assert_array_equal(to_numpy(found.text)[TEXT_MASK], to_numpy(case.output.text)[TEXT_MASK])
    real = IMAGE_MASK if found.image.shape[1] == P else np.ones(found.image.shape[:2], bool)
    np.testing.assert_array_equal(to_numpy(found.image)[real], to_numpy(case.output.image)[real])
    if case.fusion.supports_causal:
        first, second = (
            to_numpy(case.fusion(x, y, TEXT_MASK, IMAGE_MASK, causal=True).text) for x, y in ((TEXT, IMAGE), (text, image))
        )
        np.testing.assert_array_equal(first[TEXT_MASK], second[TEXT_MASK])


def test_nan_in_the_padding_gives_no_nan_gradient_and_no_weight_is_dead(case):
    def loss(text, image):
        return total(case.fusion(text, image, TEXT_MASK, IMAGE_MASK))

    weights = case.fusion.trainable_weights
    _, clean = value_and_gradients(loss, [TEXT, IMAGE], weights)
    text = np.where(TEXT_MASK[..., None], TEXT, np.nan).astype("float32")
    image = np.where(IMAGE_MASK[..., None], IMAGE, np.nan).astype("float32")
    _, filled = value_and_gradients(loss, [text, image], weights)
    for one, two in zip(clean, filled, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (clean[0][~TEXT_MASK] == 0).all() and (clean[1][~IMAGE_MASK] == 0).all()
    assert np.abs(clean[0][TEXT_MASK]).max() > 1e-4 and np.abs(clean[1][IMAGE_MASK]).max() > 1e-4
    # The softmax does not see a key's bias.
    dead = [weight.path for weight, x in zip(weights, clean[2:], strict=True) if not np.abs(x).max() > 0]
    assert all("key/bias" in path for path in dead), dead


def test_nothing_to_attend_to_gives_no_nan(case):
    nothing, short = np.zeros((B, P), bool), np.array([[True] * T, [False] * T])
    for masks in ({"image_mask": nothing}, {"text_mask": short}, {"text_mask": ~short, "image_mask": nothing}):
        output = case.fusion(**{**STREAMS, **masks}, return_scores=True)
        assert np.isfinite(to_numpy(output.text)).all() and np.isfinite(to_numpy(output.image)).all()
        if "image_mask" in masks:
            np.testing.assert_array_equal(to_numpy(output.scores), 0.0)
    other = case.fusion(TEXT, IMAGE[::-1].copy(), image_mask=nothing)
    np.testing.assert_array_equal(to_numpy(other.text), to_numpy(case.fusion(TEXT, IMAGE, image_mask=nothing).text))
    weights = case.fusion.trainable_weights
    _, found = value_and_gradients(lambda x, y: ops.sum(case.fusion(x, y, short, nothing).text[0] ** 2), [TEXT, IMAGE], weights)
    assert all(np.isfinite(x).all() for x in found)


def test_the_image_matters_and_whether_it_informs_the_text_is_said(case):
    other = case.fusion(TEXT, IMAGE[::-1].copy())
    change = np.abs(to_numpy(case.fusion(TEXT, IMAGE).text) - to_numpy(other.text)).max()
    assert (change > 1e-2) == case.fusion.informs_text


def test_causal_is_causal(case):
    needs(case, "supports_causal")
    changed = TEXT.copy()
    changed[:, 3:] = _random.normal(size=(B, T - 3, D))
    for causal in (True, False):
        first, second = (case.fusion(x, IMAGE, image_mask=IMAGE_MASK, causal=causal, return_scores=True) for x in (TEXT, changed))
        difference = np.abs(to_numpy(first.text) - to_numpy(second.text))
        assert difference[:, 3:].max() > 1e-2
        if causal:
            np.testing.assert_array_equal(difference[:, :3], 0.0)
            np.testing.assert_array_equal(*(to_numpy(x.scores)[:, :, :, :3] for x in (first, second)))
            np.testing.assert_array_equal(*(to_numpy(x.image) for x in (first, second)))
        else:
            assert (difference[:, :3].max() > 1e-3) == (case.name not in BLIND_TO_TEXT)


def test_a_fusion_that_cannot_be_causal_says_so(case):
    if case.fusion.supports_causal:
        with pytest.raises(ConfigError, match="decoding with it is causal.*pass causal=True"):
            case.fusion(TEXT[:, :1], cache=case.fusion.init_cache(B, T, IMAGE))
    else:
        with pytest.raises(ConfigError, match="cannot be causal|is to be causal"):
            case.fusion(TEXT, IMAGE, causal=True)


def test_cached_steps_equal_the_causal_pass(case):
    needs(case, "supports_causal")
    whole = case.fusion(TEXT, IMAGE, image_mask=IMAGE_MASK, causal=True, return_scores=True)
    cache, outputs = case.fusion.init_cache(B, T + 1, IMAGE, IMAGE_MASK), []
    # A search over beams reorders the first axis.
    assert all(x is None or len(x.shape) == 0 or x.shape[0] == B for x in keras.tree.flatten(cache))
    for piece in np.split(TEXT, [1, 2], axis=1):
        output = case.fusion(piece, cache=cache, causal=True, return_scores=True)
        cache = output.cache
        outputs.append(output)
    np.testing.assert_allclose(np.concatenate([to_numpy(x.text) for x in outputs], axis=1), to_numpy(whole.text), atol=1e-5)
    np.testing.assert_allclose(np.concatenate([to_numpy(x.scores) for x in outputs], axis=3), to_numpy(whole.scores), atol=1e-5)


def test_a_mask_over_the_places_of_a_cache(case):
    needs(case, "supports_causal")
    places = np.array([[True] * T, [False, True, True, True, True]])
    text = np.where(places[..., None], TEXT, np.nan).astype("float32")
    whole = to_numpy(case.fusion(TEXT, IMAGE, places, causal=True).text)
    cache, outputs = case.fusion.init_cache(B, T, IMAGE), []
    for piece in np.split(text, [2], axis=1):
        output = case.fusion(piece, text_mask=places, cache=cache, causal=True)
        cache = output.cache
        outputs.append(to_numpy(output.text))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1)[places], whole[places], atol=1e-5)


def test_image_tokens_are_known_before_any_text(case):
    tokens = case.fusion.image_tokens(IMAGE, IMAGE_MASK)
    assert tokens.shape[0] == B and tokens.shape[-1] == case.fusion.image_width
    if tokens.shape[1] != P:
        filled = np.where(IMAGE_MASK[..., None], IMAGE, np.nan).astype("float32")
        np.testing.assert_array_equal(to_numpy(case.fusion.image_tokens(filled, IMAGE_MASK)), to_numpy(tokens))
    real = case.fusion.image_tokens_mask(IMAGE_MASK)
    assert tuple(real.shape) == tuple(tokens.shape[:2]) and case.fusion.image_tokens_mask(None) is None
    np.testing.assert_array_equal(real, IMAGE_MASK if tokens.shape[1] == P else np.ones(real.shape, bool))


def test_configuration(case):
    config = case.fusion.get_config()
    copy = type(case.fusion).from_config(config)
    assert copy.get_config() == config
    assert {name: config[name] for name in VARIANTS[case.name][1]} == VARIANTS[case.name][1]
    paths = [w.path for w in case.fusion.trainable_weights]
    assert len(set(paths)) == len(paths), "two weights of one name"


def test_a_functional_model_is_saved_and_loaded(case, tmp_path):
    only_plain(case)
    inputs = {name: keras.Input((None, *x.shape[2:]), dtype=x.dtype.name, name=name) for name, x in STREAMS.items()}
    layer = case.make()
    layer.set_weights(case.fusion.get_weights())
    output = layer(**inputs, return_scores=True)
    assert output.text.shape == (None, None, D) and output.cache is None
    model = keras.Model(inputs, [output.text, output.scores])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for found, expected in zip(loaded(STREAMS), (case.output.text, case.output.scores), strict=True):
        np.testing.assert_allclose(to_numpy(found), to_numpy(expected), atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("mixed_bfloat16", 0.25), ("float16", 0.05)])
def test_half_precision(case, dtype, tolerance):
    half = case.make(dtype=dtype)
    half.set_weights(case.fusion.get_weights())
    output = half(**STREAMS, return_scores=True)
    assert keras.backend.standardize_dtype(output.text.dtype) == half.compute_dtype
    assert keras.backend.standardize_dtype(output.scores.dtype) == "float32"
    assert {w.dtype for w in half.trainable_weights} == {half.variable_dtype}
    # Of streams of variance one.
    np.testing.assert_allclose(to_numpy(output.text)[TEXT_MASK], to_numpy(case.output.text)[TEXT_MASK], atol=tolerance)
    real = np.broadcast_to(TEXT_MASK[:, None, None], output.scores.shape[:-1])
    np.testing.assert_allclose(to_numpy(output.scores)[real].sum(-1), to_numpy(case.output.scores)[real].sum(-1), atol=1e-2)
    if case.fusion.supports_causal:
        cache = half.init_cache(B, T, IMAGE)
        step = half(TEXT[:, :1], cache=cache, causal=True)
        assert np.isfinite(to_numpy(step.text)).all()
        # What a loop carries keeps its dtype.
        before, after = ([getattr(x, "dtype", None) for x in keras.tree.flatten(state)] for state in (cache, step.cache))
        assert before == after


def test_unknown_sizes_in_a_graph(case):
    free = ((None, None, D), "float32"), ((None, None, DI), "float32"), ((None, None), "bool"), ((None, None), "bool")

    def read(*streams):
        output = case.fusion(*streams, return_scores=True)
        return output.text, output.scores

    only_plain(case)
    call = graph(read, *free)
    for rows, length, patches in ((B, T, P), (1, 1, 2)):
        streams = TEXT[:rows, :length], IMAGE[:rows, :patches], TEXT_MASK[:rows, :length], IMAGE_MASK[:rows, :patches]
        for one, two in zip(call(*streams), read(*streams), strict=True):
            np.testing.assert_allclose(to_numpy(one), to_numpy(two), atol=2e-5)


def test_what_drops_drops_in_training_alone(case):
    only_plain(case)
    for rate in ("dropout", "attention_dropout", "stochastic_depth"):
        if rate == "attention_dropout" and case.fusion.kernel != "exact":
            continue
        layer = case.make(**{rate: 0.5})
        layer.set_weights([*case.fusion.get_weights(), *layer.get_weights()[len(case.fusion.get_weights()) :]])
        calm = layer(TEXT, IMAGE, training=False)
        np.testing.assert_array_equal(to_numpy(calm.text), to_numpy(case.fusion(TEXT, IMAGE).text))
        busy = (layer(TEXT, IMAGE, training=True) for _ in range(8))
        assert any(
            max(np.abs(to_numpy(x) - to_numpy(y)).max() for x, y in ((output.text, calm.text), (output.image, calm.image))) > 1e-3
            for output in busy
        ), rate


@pytest.mark.parametrize(("streams", "message"), [
    ({"text": TEXT[0]}, r"text is no stream of tokens .*found \[5, 12\]"),
    ({"text": TEXT[..., :4]}, r"text has another width .*found \[2, 5, 4\]"),
    ({"image": IMAGE[..., :4]}, r"image has another width .*found \[2, 6, 4\]"),
    ({"image": IMAGE[:, 0]}, "image is no stream of tokens"),
    ({"image": IMAGE[:1], "image_mask": None}, "text and image differ in batch size .*expected 2, found 1"),
    ({"image": None}, "expected an image, or a cache made of one"),
    ({"text_mask": TEXT_MASK[:, :2]}, r"text_mask does not fit .*found \[2, 2\]"),
    ({"image_mask": IMAGE_MASK[..., None]}, "image_mask does not fit|image_mask .*found"),
    ({"image_mask": IMAGE_MASK.astype("float32")}, "image_mask has a wrong dtype"),
])  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(case, streams, message):
    with pytest.raises(ConfigError, match=message) as caught:
        case.fusion(**{**STREAMS, **streams})
    assert "\n" not in str(caught.value) and case.fusion.name in str(caught.value)


def test_a_cache_needs_weights(case):
    only_plain(case)
    fresh = type(case.fusion).from_config(case.fusion.get_config())
    with pytest.raises(ConfigError, match="no weights yet .*call it once"):
        fresh.init_cache(B, T, IMAGE)
    assert fresh(TEXT, IMAGE).text.shape == (B, T, D)


@pytest.mark.parametrize(("options", "message"), [
    ({"depth": 0}, "impossible depth"), ({"num_heads": 5}, "heads do not divide"), ({"dropout": 1.0}, "dropout"),
])  # fmt: skip
def test_impossible_options_are_refused(case, options, message):
    with pytest.raises(ConfigError, match=message):
        case.make(**options)
