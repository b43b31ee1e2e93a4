"""Models in other number formats: what they answer, weigh and leave as it was, beside NumPy and the model as it was trained."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from factories import IMAGE_SIZE, MAX_LENGTH, VOCABULARY_SIZE, randomized, tiny_batch, tiny_model
from keras import ops

from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import STYLES, CrossFusion
from mmfusion.models import CaptioningHead, ContrastiveHead, ImageTextModel, MatchingHead, in_number_format, weight_bytes
from mmfusion.models.number_format import FEWEST_QUANTISED, quantised_layers

HALVES = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""How far rounding moves a number at most, relatively."""


def wide_model(**parts: keras.layers.Layer | None) -> ImageTextModel:
    """Wide enough that all weights of its blocks are large ones."""
    image = VisionTransformer(image_size=IMAGE_SIZE, patch_size=8, dim=32, depth=1, num_heads=2, name="image_encoder")
    text = TextTransformer(
        vocabulary_size=VOCABULARY_SIZE, max_length=MAX_LENGTH, dim=32, depth=1, num_heads=2, name="text_encoder"
    )
    usual = {
        "fusion": CrossFusion(dim=32, depth=1, num_heads=2, name="fusion"),
        "contrastive_head": ContrastiveHead(embedding_dim=32, name="contrastive_head"),
        "matching_head": MatchingHead(name="matching_head"),
        "captioning_head": CaptioningHead(start_id=2, end_id=3, name="captioning_head"),
    }
    return ImageTextModel(image_encoder=image, text_encoder=text, **{**usual, **parts})


@pytest.fixture(scope="module")
def model() -> ImageTextModel:
    return randomized(wide_model())


@pytest.fixture(scope="module")
def before(model: ImageTextModel) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Weights and answers of the model before anything is made of it."""
    return [ops.convert_to_numpy(weight) for weight in model.weights], {k: numbers(v) for k, v in model(tiny_batch()).items()}


@pytest.fixture(scope="module")
def converted(model: ImageTextModel, before: object) -> dict[str, ImageTextModel]:
    return {precision: in_number_format(model, precision) for precision in ("float32", "bfloat16", "float16", "int8")}


def numbers(tensor: object) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def cosines(a: object, b: object) -> np.ndarray:
    return np.sum(numbers(a) * numbers(b), axis=-1)


def test_the_model_itself_stays_as_it_is(model, before, converted) -> None:
    spoilt = in_number_format(model, "float32")
    for weight in spoilt.weights:
        weight.assign(ops.zeros(weight.shape, weight.dtype))
    for weight, value in zip(model.weights, before[0], strict=True):
        assert weight.dtype == "float32"
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), value)
    for each in (model, converted["float32"]):
        for name, value in each(tiny_batch()).items():
            np.testing.assert_array_equal(numbers(value), before[1][name])


@pytest.mark.parametrize(("precision", "step"), HALVES.items())
def test_half_formats(model, converted, precision: str, step: float) -> None:
    """Weights are rounded, to half the bytes; answers are as near as the format's steps let them be."""
    copy, batch = converted[precision], tiny_batch()
    rounded = 0
    for weight, original in zip(copy.weights, model.weights, strict=True):
        if weight.dtype == "float32":
            assert weight.path.split("/")[-2:] in (
                ["contrastive_head", "log_scale"], ["contrastive_head", "bias"], ["output", "kernel"], ["output", "bias"]
            )  # fmt: skip
            continue
        assert weight.dtype == precision
        value, found = ops.convert_to_numpy(original), numbers(weight)
        assert np.all(np.abs(found - value) <= step * np.abs(value) + 1e-7)
        rounded += 2 * value.size
    assert weight_bytes(model) - weight_bytes(copy) == rounded
    assert 0.5 <= weight_bytes(copy) / weight_bytes(model) < 0.51
    expected, found = model(batch), copy(batch)
    for name in ("image_embedding", "text_embedding"):
        assert keras.backend.standardize_dtype(found[name].dtype) == "float32"
        assert np.all(cosines(expected[name], found[name]) > 1 - 100 * step**2)
    assert keras.backend.standardize_dtype(found["match_logits"].dtype) == "float32"
    for name in ("match_logits", "caption_logits"):
        largest = np.max(np.abs(numbers(expected[name])))
        np.testing.assert_allclose(numbers(found[name]), numbers(expected[name]), rtol=0, atol=10 * step * max(largest, 1.0))
    # It is no float32 in disguise.
    assert np.max(np.abs(numbers(found["caption_logits"]) - numbers(expected["caption_logits"]))) > step / 10


def test_bfloat16_computes_as_mixed_precision_does(converted) -> None:
    """The same computation as Keras's mixed policy, whose weights are float32: it rounds them at each use."""
    half = converted["bfloat16"]
    config = half.get_config()
    mixed = ImageTextModel.from_config(_renamed(config))
    for weight, value in zip(mixed.weights, half.weights, strict=True):
        weight.assign(ops.cast(value, "float32"))
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    batch = tiny_batch()
    for name, value in mixed(batch).items():
        np.testing.assert_allclose(numbers(half(batch)[name]), numbers(value), atol=1e-6)


def _renamed(config: object) -> object:
    if isinstance(config, list | tuple):
        return type(config)(map(_renamed, config))
    if not isinstance(config, dict):
        return "mixed_bfloat16" if config == "bfloat16" else config
    return {key: _renamed(value) for key, value in config.items()}


def test_what_int8_quantises(model, converted) -> None:
    """Every large Dense and nothing else, each weight to the nearest of 255 steps of its channel."""
    copy = converted["int8"]
    dense = {id(layer): layer for layer in copy._flatten_layers() if isinstance(layer, keras.layers.Dense)}.values()
    originals = {layer.path: layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)}
    large = [layer for layer in dense if math.prod(layer.kernel.shape) >= FEWEST_QUANTISED]
    assert {layer.path for layer in quantised_layers(copy)} == {layer.path for layer in large} and len(large) == 27
    assert [layer.path for layer in dense if layer not in large] == ["matching_head/output"]
    saved = 0
    for layer in large:
        original = numbers(_of(originals, layer.path).kernel)
        found, scale = ops.convert_to_numpy(layer.kernel), numbers(layer.kernel_scale)
        assert found.dtype == np.int8 and scale.shape == original.shape[1:]
        np.testing.assert_allclose(scale, 127.0 / np.max(np.abs(original), axis=0), rtol=1e-5)
        assert np.all(np.abs(found / scale - original) <= (0.5 + 1e-3) / scale)
        saved += 3 * original.size - 4 * scale.size
    assert weight_bytes(model) - weight_bytes(copy) == saved
    assert {weight.dtype for weight in copy.weights} == {"int8", "float32"}


def _of(layers: dict[str, keras.layers.Layer], path: str) -> keras.layers.Layer:
    # A model's name leads the path of what was built in it.
    (found,) = [layer for name, layer in layers.items() if name == path or name.endswith(f"/{path}")]
    return found


def test_int8_products_are_those_of_whole_numbers(model, converted) -> None:
    """As NumPy computes them in int32, and within the error that rounding both factors makes at most."""
    layer = converted["int8"].captioning_head.transform
    x = np.random.default_rng(0).normal(size=(2, 5, 32)).astype("float32")
    kernel, bias = (numbers(weight) for weight in model.captioning_head.transform.weights)
    scale, token_scale = 127.0 / np.max(np.abs(kernel), axis=0), 127.0 / np.max(np.abs(x), axis=-1, keepdims=True)
    whole = np.rint(x * token_scale).astype("int32") @ np.rint(kernel * scale).astype("int32")
    products = whole / (scale * token_scale)
    linear = layer.activation
    layer.activation = None
    try:
        found = numbers(layer(x))
    finally:
        layer.activation = linear
    np.testing.assert_allclose(found, products + bias, rtol=1e-4, atol=1e-5)
    of_x, of_kernel = 0.5 / token_scale, 0.5 / scale
    largest = of_x * np.sum(np.abs(kernel), axis=0) + of_kernel * (np.sum(np.abs(x), axis=-1, keepdims=True) + 32 * of_x)
    error = np.abs(found - (x @ kernel + bias))
    assert np.all(error <= largest * 1.001) and np.max(error) > 1e-4


def test_int8_answers_like_the_model(model, converted) -> None:
    batch = tiny_batch(16)
    expected, found = model(batch), converted["int8"](batch)
    for name in ("image_embedding", "text_embedding"):
        assert np.all(cosines(expected[name], found[name]) > 0.995)
    assert np.max(np.abs(numbers(expected["match_logits"]) - numbers(found["match_logits"]))) < 0.1
    real = batch["token_mask"]
    first, second = (np.argmax(numbers(outputs["caption_logits"]), axis=-1)[real] for outputs in (expected, found))
    assert np.mean(first == second) > 0.9
    # Whoever stands beside a picture in a batch does not change its steps.
    alone = converted["int8"].encode_image(batch["image"][:1])
    np.testing.assert_allclose(numbers(alone)[0], numbers(found["image_embedding"])[0], atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_captions_compiled_and_not(converted, precision: str) -> None:
    """Three pictures, filled up to four in the graph; and the words are those that the whole text's scores say."""
    copy, images = converted[precision], tiny_batch()["image"][:3]
    graph = copy.caption(images)
    eager = copy.caption_patches(copy.encode_patches(ops.convert_to_tensor(images), training=False)[0])
    np.testing.assert_array_equal(numbers(graph.token_ids), numbers(eager.token_ids))
    np.testing.assert_allclose(numbers(graph.scores), numbers(eager.scores), atol=1e-5 if precision == "int8" else 5e-2)
    assert keras.backend.standardize_dtype(graph.scores.dtype) == "float32"
    if precision != "int8":
        return
    written = numbers(graph.token_ids).astype("int32")
    read = np.concatenate([np.full((3, 1), 2, "int32"), written], axis=1)[:, :-1]
    logits = numbers(copy.caption_logits(copy.encode_patches(images, training=False)[0], read))
    logits[:, :, 2] = -np.inf
    before_end = np.cumsum(np.cumsum(written == 3, axis=1), axis=1) <= 1
    np.testing.assert_array_equal(np.argmax(logits, axis=-1)[before_end], written[before_end])


def test_quantised_in_place_its_captions_are_compiled_anew() -> None:
    own, images = randomized(wide_model()), tiny_batch()["image"]
    first = numbers(own.caption(images).scores)
    own.quantize("int8", filters="transform")
    eager = own.caption_patches(own.encode_patches(ops.convert_to_tensor(images), training=False)[0])
    second = numbers(own.caption(images).scores)
    np.testing.assert_allclose(second, numbers(eager.scores), atol=1e-5)
    assert not np.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_every_style(style: str) -> None:
    """Each in bfloat16 and int8, tokens of the text and of the image."""
    random, mask = np.random.default_rng(0), np.arange(5) < np.array([[5], [3]])
    fusion = STYLES[style](dim=32, depth=1, num_heads=2, name="fusion")
    text, image = (random.normal(size=(2, count, 32)).astype("float32") for count in (5, 6))
    heads = {"matching_head": MatchingHead(name="matching_head"), "contrastive_head": None}
    model = randomized(wide_model(fusion=fusion, captioning_head=None, **heads))
    expected = fusion(text, image, text_mask=mask)
    for precision in ("bfloat16", "int8"):
        copy = in_number_format(model, precision)
        found = copy.fusion(text, image, text_mask=mask)
        assert any(layer in copy.fusion._flatten_layers() for layer in quantised_layers(copy)) == (precision == "int8")
        for stream in ("text", "image"):
            value = numbers(getattr(expected, stream))
            np.testing.assert_allclose(numbers(getattr(found, stream)), value, rtol=0, atol=0.05 * np.max(np.abs(value)))


def test_trained_in_bfloat16_and_back() -> None:
    """A mixed model has float32 weights: in float32 they are all there again, in bfloat16 its answers stay nearly so."""
    mixed, batch = randomized(tiny_model("mixed_bfloat16")), tiny_batch()
    whole, half = in_number_format(mixed, "float32"), in_number_format(mixed, "bfloat16")
    for weight, value in zip(whole.weights, mixed.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), ops.convert_to_numpy(value))
    assert whole.image_encoder.compute_dtype == "float32" and 2 * weight_bytes(half) < 1.1 * weight_bytes(mixed)
    found = half(batch)
    for name, value in mixed(batch).items():
        np.testing.assert_allclose(numbers(found[name]), numbers(value), atol=0.1)


def test_saved_and_loaded(converted, tmp_path) -> None:
    converted["bfloat16"].save(tmp_path / "half.keras")
    again, batch = keras.saving.load_model(tmp_path / "half.keras"), tiny_batch()
    assert weight_bytes(again) == weight_bytes(converted["bfloat16"])
    for name, value in converted["bfloat16"](batch).items():
        np.testing.assert_array_equal(numbers(again(batch)[name]), numbers(value))
    with pytest.raises(ConfigError, match="quantised: it cannot be built again, nor saved as a .keras file"):
        converted["int8"].save(tmp_path / "whole.keras")


def test_refusals(model, converted) -> None:
    with pytest.raises(ConfigError, match=r"unknown number format \[precision\]: expected float32 or bfloat16 .* found 'int4'"):
        in_number_format(model, "int4")
    with pytest.raises(ConfigError, match="use the model that it was made from"):
        in_number_format(converted["int8"], "bfloat16")
