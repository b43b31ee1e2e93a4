"""VisionTransformer and TextTransformer."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import graph, to_numpy

from mmfusion.encoders import MultiImageEncoder, TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError


def layer_norm(layer, x):
    gain, shift = (to_numpy(weight) for weight in layer.weights)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.epsilon) * gain + shift


def text_encoder(**options):
    encoder = TextTransformer(**{"vocabulary_size": 20, "max_length": 9, "dim": 12, "depth": 2, "num_heads": 3, **options})
    encoder.build()
    return randomized(encoder)


def test_patches_are_row_major():
    encoder = VisionTransformer(image_size=(16, 24), patch_size=8, dim=8, depth=0, num_heads=1)
    base = np.zeros((1, 16, 24, 3), "float32")
    plain = to_numpy(encoder(base))
    marked = base.copy()
    marked[:, 8:, 8:16] = 1.0  # second row, second column
    changed = np.abs(to_numpy(encoder(marked)) - plain).max(-1)[0] > 1e-6
    assert encoder.grid == (2, 3)
    assert np.flatnonzero(changed).tolist() == [4]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "float16"])
def test_dtypes(dtype):
    image = VisionTransformer(image_size=16, patch_size=8, dim=8, depth=1, num_heads=2, dtype=dtype)
    tokens = image(np.ones((2, 16, 16, 3), "float32"))
    assert keras.backend.standardize_dtype(tokens.dtype) == image.compute_dtype
    assert np.isfinite(to_numpy(tokens)).all()
    text = text_encoder(dtype=dtype)
    assert np.isfinite(to_numpy(text(np.ones((2, 5), "int32")))).all()


@pytest.mark.parametrize("make", [
    lambda: VisionTransformer(image_size=16, patch_size=8, dim=8, depth=2, num_heads=2, stochastic_depth=0.1),
    lambda: TextTransformer(vocabulary_size=9, max_length=5, dim=8, depth=1, num_heads=2, dropout=0.2),
    lambda: VisionTransformer(
        image_size=16, patch_size=8, dim=8, depth=1, num_heads=2, num_leading_tokens=2, patch_bias=False, pre_norm=True,
        final_norm=False, norm_epsilon=1e-5,
    ),
    lambda: TextTransformer(
        vocabulary_size=9, max_length=5, dim=8, depth=1, num_heads=2, final_norm=False, norm_epsilon=1e-12, class_token="next",
        pad_id=1,
    ),
])  # fmt: skip
def test_config_round_trip(make):
    layer = make()
    copy = type(layer).from_config(layer.get_config())
    layer.build(), copy.build()
    assert copy.get_config() == layer.get_config()
    assert [tuple(w.shape) for w in copy.weights] == [tuple(w.shape) for w in layer.weights]


def test_positions_in_the_attention_alone():
    # Without any position, the same tokens in another order come out in that order; rotary positions alone tell them apart.
    images = np.random.default_rng(0).normal(size=(1, 16, 24, 3)).astype("float32")
    turned = images.reshape(1, 2, 8, 24, 3)[:, ::-1].reshape(1, 16, 24, 3)
    for rotary in (False, "2d"):
        encoder = VisionTransformer(
            image_size=(16, 24), patch_size=8, dim=16, depth=1, num_heads=2, positions="none", block_options={"rotary": rotary}
        )
        encoder.build()
        randomized(encoder)
        first, second = (to_numpy(encoder(x)).reshape(2, 3, 16) for x in (images, turned))
        assert (np.abs(first - second[::-1]).max() > 1e-3) == bool(rotary)
        assert "position_embedding" not in [weight.name for weight in encoder.weights]


@pytest.mark.parametrize("options", [{}, {"positions": "sinusoidal"}, {"positions": "none", "block_options": {"rotary": True}}])
def test_cached_reading_equals_reading_at_once(options):
    encoder = text_encoder(**options)
    ids = np.random.default_rng(0).integers(1, 20, (3, 8)).astype("int32")
    whole = to_numpy(encoder(ids, causal=True))
    cache = encoder.init_cache(3, 8)
    steps = []
    for chunk in (ids[:, :3], ids[:, 3:4], ids[:, 4:8]):
        tokens, cache = encoder(chunk, cache=cache)
        steps.append(to_numpy(tokens))
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, atol=1e-5)


def test_reading_both_ways_differs_from_left_to_right():
    encoder = text_encoder()
    ids = np.random.default_rng(0).integers(1, 20, (1, 6)).astype("int32")
    assert np.abs(to_numpy(encoder(ids)) - to_numpy(encoder(ids, causal=True))).max() > 1e-2


def test_padding_is_never_seen():
    encoder = text_encoder()
    mask = np.array([[True] * 4 + [False] * 3])
    ids = np.array([[1, 2, 3, 4, 0, 0, 0]], "int32")
    other = np.array([[1, 2, 3, 4, 9, 8, 7]], "int32")
    np.testing.assert_array_equal(to_numpy(encoder(ids, mask))[:, :4], to_numpy(encoder(other, mask))[:, :4])


def test_kernels_agree():
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    outputs = []
    for kernel in ("exact", "chunked"):
        encoder = VisionTransformer(image_size=32, patch_size=8, dim=16, depth=2, num_heads=2, kernel=kernel)
        encoder.build()
        random = np.random.default_rng(0)
        for weight in encoder.weights:
            weight.assign(0.2 * random.normal(size=weight.shape))
        outputs.append(to_numpy(encoder(images)))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=2e-5)


def test_output_layer_is_the_embedding():
    encoder = text_encoder()
    tokens = np.random.default_rng(1).normal(size=(1, 2, 12)).astype("float32")
    before = to_numpy(encoder.logits(tokens))
    assert before.shape == (1, 2, 20)
    table = next(w for w in encoder.trainable_weights if tuple(w.shape) == (20, 12))
    table.assign(table.numpy() * 2.0)
    bias = to_numpy(encoder.logits(np.zeros_like(tokens)))
    np.testing.assert_allclose(to_numpy(encoder.logits(tokens)) - bias, 2.0 * (before - bias), atol=1e-4)


def test_an_image_size_that_patches_do_not_fill_is_refused():
    with pytest.raises(ConfigError, match=r"multiple of 16, found 100 x 96"):
        VisionTransformer(image_size=(100, 96), patch_size=16)


def test_a_mask_over_the_cache_hides_what_it_should():
    encoder = TextTransformer(vocabulary_size=20, max_length=8, dim=8, depth=2, num_heads=2)
    encoder.build((None, 8))
    ids = np.random.default_rng(0).integers(0, 20, (2, 4)).astype("int32")
    mask = np.array([[True, True, True, True], [True, False, True, True]])
    whole = encoder(ids, token_mask=mask, causal=True)
    places = np.concatenate([mask, np.ones((2, 4), bool)], axis=1)
    cache = encoder.init_cache(2, 8)
    for step in range(4):
        tokens, cache = encoder(ids[:, step : step + 1], token_mask=places, cache=cache)
        real = mask[:, step]
        np.testing.assert_allclose(to_numpy(tokens)[real, 0], to_numpy(whole)[real, step], atol=1e-5)


def test_cached_reading_of_an_unknown_number_of_tokens():
    encoder = TextTransformer(vocabulary_size=20, max_length=8, dim=8, depth=1, num_heads=2)
    encoder.build((None, 8))

    def read(ids):
        tokens, cache = encoder(ids, cache=encoder.init_cache(2, 8))
        return tokens, cache.position

    read = graph(read, ((2, None), "int32"))
    for length in (1, 3):
        ids = np.full((2, length), 5, "int32")
        tokens, position = read(ids)
        assert int(position) == length
        np.testing.assert_allclose(tokens, encoder(ids, causal=True), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "none", "block_options": {"rotary": True, "num_key_value_heads": 1}},
        {"positions": "sinusoidal", "block_options": {"query_key_norm": True, "attention_options": {"logit_cap": 5.0}}},
        {"kernel": "local", "block_options": {"attention_options": {"window": 1}}},
        {"attention_dropout": 0.1, "stochastic_depth": 0.2, "layer_scale": 0.1},
    ],
)
def test_further_options_reach_every_block(options):
    image = VisionTransformer(image_size=(16, 24), patch_size=8, dim=16, depth=2, num_heads=2, **options)
    text = TextTransformer(vocabulary_size=9, max_length=5, dim=16, depth=2, num_heads=2, **options)
    assert np.isfinite(to_numpy(image(np.ones((1, 16, 24, 3), "float32"), training=True))).all()
    assert np.isfinite(to_numpy(text(np.ones((1, 5), "int32")))).all()
    for layer in (image, text):
        block = layer.blocks[1].get_config()
        assert all(block[name] == value for name, value in options.get("block_options", {}).items())
        assert block["stochastic_depth"] == options.get("stochastic_depth", 0.0)
        copy = type(layer).from_config(layer.get_config())
        copy.build()
        assert [weight.path for weight in copy.weights] == [weight.path for weight in layer.weights]


def test_two_axes_of_rotary_positions_are_those_of_the_grid():
    options = {"patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2, "positions": "none", "block_options": {"rotary": "2d"}}
    wide = VisionTransformer(image_size=(16, 24), **options)
    assert wide.blocks[0].attention_options["grid"] == (2, 3) and "grid" not in str(wide.get_config()["block_options"])
    picture = np.random.default_rng(0).normal(size=(1, 16, 24, 3)).astype("float32")
    moved = np.roll(picture, 8, axis=2)
    randomized(wide, scale=0.5)
    plain, other = to_numpy(wide(picture)), to_numpy(wide(moved))
    assert np.abs(np.roll(plain.reshape(1, 2, 3, 16), 1, axis=2).reshape(1, 6, 16) - other).max() > 1e-3


def image_encoder(**options):
    sizes = {"image_size": (16, 24), "patch_size": 8, "dim": 16, "depth": 2, "num_heads": 2}
    encoder = VisionTransformer(**{**sizes, **options})
    encoder.build()
    return randomized(encoder)


def test_leading_tokens_stand_before_the_patches():
    encoder = image_encoder(num_leading_tokens=2, depth=0, final_norm=False, patch_bias=False)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype("float32")
    tokens = to_numpy(encoder(images))
    assert tokens.shape == (2, 8, 16) and encoder.grid == (2, 3) and encoder.compute_output_shape(images.shape) == (2, 8, 16)
    np.testing.assert_array_equal(tokens[:, :2], np.broadcast_to(to_numpy(encoder.leading_tokens), (2, 2, 16)))
    np.testing.assert_array_equal(tokens[:, 2:], to_numpy(encoder.patch_embedding(images)))
    assert not encoder.patch_embedding.projection.use_bias
    with pytest.raises(ConfigError, match="impossible num_leading_tokens"):
        image_encoder(num_leading_tokens=-1)


def test_norms_of_the_image_encoder_stand_where_they_are_asked_for():
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype("float32")
    encoder = image_encoder(pre_norm=True, norm_epsilon=1e-3, num_leading_tokens=1, block_options={"activation": "quick_gelu"})
    tokens = np.concatenate(
        [np.broadcast_to(to_numpy(encoder.leading_tokens), (2, 1, 16)), to_numpy(encoder.patch_embedding(images))], axis=1
    )
    tokens = layer_norm(encoder.first_norm, tokens).astype("float32")
    for block in encoder.blocks:
        assert block.norm_epsilon == 1e-3 and block.activation == "quick_gelu"
        tokens = to_numpy(block(tokens))
    np.testing.assert_allclose(to_numpy(encoder(images)), layer_norm(encoder.norm, tokens), atol=1e-4)
    assert image_encoder(norm_epsilon=1e-3, block_options={"norm_epsilon": 1e-5}).blocks[0].norm_epsilon == 1e-5


@pytest.mark.parametrize("rotary", [True, "2d"])
def test_rotary_positions_leave_leading_tokens_out(rotary):
    encoder = image_encoder(num_leading_tokens=1, dim=16, block_options={"rotary": rotary})
    attention = encoder.blocks[0].attention
    assert attention.num_unrotated_tokens == 1 and attention.grid == ((2, 3) if rotary == "2d" else None)
    assert to_numpy(encoder(np.zeros((1, 16, 24, 3), "float32"))).shape == (1, 7, 16)


def test_an_encoder_inside_another_gives_patches_alone():
    with pytest.raises(ConfigError, match="an encoder inside another gives patches alone.*num_leading_tokens=0, found 1"):
        MultiImageEncoder(encoder=image_encoder(num_leading_tokens=1), max_images=2, num_heads=2)


def with_one_word_more(encoder):
    """The same weights, where the class token is a word of the vocabulary, its position a part of it, and read as such."""
    plain = TextTransformer(vocabulary_size=21, max_length=10, dim=12, depth=2, num_heads=3, norm_epsilon=encoder.norm_epsilon)
    plain.build()
    embedding, position = to_numpy(encoder.token_embedding.embedding), to_numpy(encoder.token_embedding.position)
    plain.token_embedding.embedding.assign(np.concatenate([embedding, to_numpy(encoder.class_embedding)[None]]))
    plain.token_embedding.position.assign(np.concatenate([position, np.zeros((1, 12), "float32")]))
    for mine, its in zip((*plain.blocks, plain.norm), (*encoder.blocks, encoder.norm), strict=True):
        mine.set_weights(its.get_weights())
    return plain


@pytest.mark.parametrize(("class_token", "causal"), [("text", False), ("text", True), ("next", True)])
def test_a_class_token_reads_as_a_last_word_would(class_token, causal):
    encoder = text_encoder(class_token=class_token, norm_epsilon=1e-5, pad_id=4)
    plain = with_one_word_more(encoder)
    lengths = np.array([9, 8, 3, 1])
    mask = np.arange(9) < lengths[:, None]
    ids = np.where(mask, np.random.default_rng(0).integers(5, 20, (4, 9)), 4)
    seen = np.zeros((4, 10, 10), bool)
    for row, query, key in np.ndindex(seen.shape):
        real = mask[row, key] if key < 9 else True
        if class_token == "next":  # open_clip's mask, shifted by one
            real = key == 0 or mask[row, key - 1]
        earlier = key <= query if causal else key < 9 or query == 9
        seen[row, query, key] = real and earlier
    tokens = plain.token_embedding(np.concatenate([ids, np.full((4, 1), 20)], axis=1))
    for block in plain.blocks:
        tokens = block(tokens, mask=seen)
    expected = to_numpy(plain.norm(tokens))[:, -1]
    found = to_numpy(encoder.class_token_of(ids, mask, causal=causal))
    assert found.shape == (4, 1, 12)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    # Neither what is behind the mask nor how long the padding is matters.
    other = np.where(mask, ids, 17)
    np.testing.assert_array_equal(to_numpy(encoder.class_token_of(other, mask, causal=causal)), found)
    for stop in (3, 4):
        short = to_numpy(encoder.class_token_of(ids[2:, :stop], mask[2:, :stop], causal=causal))
        np.testing.assert_allclose(short, found[2:], atol=1e-5)
    cut = graph(
        lambda ids, mask: encoder.class_token_of(ids, mask, causal=causal), ((None, None), "int32"), ((None, None), "bool")
    )
    np.testing.assert_allclose(to_numpy(cut(ids[1:, :8].astype("int32"), mask[1:, :8])), found[1:], atol=1e-5)


def test_a_class_token_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="this encoder has no class token"):
        text_encoder().class_token_of(np.ones((1, 3), "int32"))
    with pytest.raises(ConfigError, match="unknown class_token"):
        text_encoder(class_token="first")
    with pytest.raises(ConfigError, match="no place to turn by"):
        text_encoder(class_token="text", block_options={"rotary": True})
    with pytest.raises(ConfigError, match="read left to right"):
        text_encoder(class_token="next").class_token_of(np.ones((1, 3), "int32"))


def test_text_without_a_last_norm():
    encoder, ids = text_encoder(final_norm=False), np.array([[3, 4, 5]])
    normed = text_encoder()
    for mine, its in zip((normed.token_embedding, *normed.blocks), (encoder.token_embedding, *encoder.blocks), strict=True):
        mine.set_weights(its.get_weights())
    np.testing.assert_allclose(layer_norm(normed.norm, to_numpy(encoder(ids))), to_numpy(normed(ids)), atol=1e-5)
    cache, steps = encoder.init_cache(1, 3), []
    for place in range(3):
        tokens, cache = encoder(ids[:, place : place + 1], cache=cache)
        steps.append(to_numpy(tokens))
    np.testing.assert_allclose(np.concatenate(steps, axis=1), to_numpy(encoder(ids, causal=True)), atol=1e-5)
