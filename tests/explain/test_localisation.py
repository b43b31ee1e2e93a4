"""Localisation: the right maps by every method, known answers, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from factories import randomized
from matplotlib import image as pictures

from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError, DataError
from mmfusion.explain import draw_heat, localise, phrase_heat, phrase_places
from mmfusion.explain.localisation import METHODS
from mmfusion.explain.text_to_patches import _looking, gradient_of_match_by_attention, gradient_of_match_by_patches
from mmfusion.fusion import STYLES
from mmfusion.layers import AttentionPooling
from mmfusion.layers.kernels import exact
from mmfusion.models import CaptioningHead, ContrastiveHead, ImageTextModel, MatchingHead
from mmfusion.text import WordPieceTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "heart", "square", "left", "of"]
SENTENCE = "red heart left of blue square"
ONE_STEP = ("cross", "co", "gated", "merged")


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary=WORDS, max_length=9)


def model_of(style: str | None = "cross", heads: tuple[str, ...] = ("contrastive", "matching"), **options) -> ImageTextModel:
    made = {
        "contrastive_head": ContrastiveHead(embedding_dim=8),
        "matching_head": MatchingHead(),
        "captioning_head": CaptioningHead(start_id=2, end_id=3),
    }
    return randomized(
        ImageTextModel(
            image_encoder=VisionTransformer(image_size=(16, 24), patch_size=8, dim=16, depth=1, num_heads=2),
            text_encoder=TextTransformer(vocabulary_size=len(WORDS), max_length=9, dim=12, depth=1, num_heads=2),
            fusion=style and STYLES[style](dim=12, image_dim=16, depth=2, num_heads=2, **options),
            **{name: head for name, head in made.items() if name.removesuffix("_head") in heads},
        )
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype("float32")


@pytest.mark.parametrize("style", sorted(STYLES))
def test_every_method_and_style(style, images, tokenizer):
    model = model_of(style)
    for method in METHODS:
        if method == "gradient" and style not in ONE_STEP:
            with pytest.raises(ConfigError, match=r'attends to no patch in one step.*use method="attention" or "input"'):
                localise(model, tokenizer, images, ["red heart"] * 2, method=method)
            continue
        found = localise(model, tokenizer, images, ["red heart", "blue square"], method=method, sentences=[SENTENCE] * 2)
        assert found.heat.shape == (2, 2, 3) and found.heat.dtype == np.float32
        assert (found.heat >= 0).all()
        np.testing.assert_allclose(found.heat.sum((1, 2)), 1.0, atol=1e-5)
        # One picture alone answers the same.
        alone = localise(model, tokenizer, images[1:], ["blue square"], method=method, sentences=[SENTENCE])
        np.testing.assert_allclose(alone.heat[0], found.heat[1], atol=1e-5)
        ids, mask = tokenizer([SENTENCE] * 2)
        np.testing.assert_allclose(found.score, tf.sigmoid(model.match(images, ids, mask)), rtol=1e-5)


def test_attention_is_that_of_the_words_less_that_of_the_special_tokens(images, tokenizer):
    model = model_of()
    ids, mask = tokenizer([SENTENCE] * 2)
    maps = np.asarray(model.attend(images, ids, mask))[:, 1:, :1]
    found = localise(model, tokenizer, images, ["blue square"] * 2, sentences=[SENTENCE] * 2, layers=[-1], heads=[0])
    expected = np.maximum(maps[:, 0, 0, [5, 6]].mean(1) - maps[:, 0, 0, [0, 7]].mean(1), 0.0)
    np.testing.assert_allclose(found.heat, expected / expected.sum((1, 2), keepdims=True), atol=1e-5)


def test_similarity_is_the_cosine_of_each_patch(images, tokenizer):
    model = model_of(heads=("contrastive",))
    found = localise(model, tokenizer, images, ["red heart"] * 2, method="similarity")
    ids, mask = tokenizer(["red heart"] * 2)
    text, patches = np.asarray(model.encode_text(ids, mask)), np.asarray(model.image_encoder(images))
    cosine = np.stack(
        [
            [np.asarray(model.contrastive_head.embed_image(patch[None, None]))[0] @ text[row] for patch in patches[row]]
            for row in (0, 1)
        ]
    )
    kept = cosine - cosine.min(1, keepdims=True)
    np.testing.assert_allclose(found.heat.reshape(2, -1), kept / kept.sum(1, keepdims=True), atol=1e-5)
    whole = np.sum(np.asarray(model.encode_image(images)) * text, axis=-1)
    np.testing.assert_allclose(found.score, (1 + whole) / 2, rtol=1e-5)


@pytest.mark.parametrize("style", ["cross", "merged"])
def test_the_gradient_by_attention_equals_what_more_attention_does(style, images, tokenizer):
    """Adds a little to one weight of the attention and looks at the match logit: finite differences."""
    model = model_of(style)
    ids, mask = tokenizer([SENTENCE])
    found = gradient_of_match_by_attention(model, images[:1], ids, mask)
    assert found.shape == (1, 2, 2, 9, 6) and (found >= 0).all()
    weights_of = exact.attention_weights
    patches, text = model.image_encoder(images[:1]), model.text_encoder(ids, token_mask=mask)
    offset = 0 if style == "cross" else 6

    def logit(head: int, token: int, patch: int, step: float) -> float:
        calls = []

        def shifted(*arguments, **options):
            weights = weights_of(*arguments, **options)
            calls.append(weights)
            if len(calls) == (4 if style == "cross" else 2):  # the last attention that the second block makes
                bump = np.zeros(weights.shape, "float32")
                bump[0, head, offset + token, patch] = step
                weights = weights + bump
            return weights

        exact.attention_weights = shifted
        try:
            return float(model.match_tokens(patches, text, mask)[0])
        finally:
            exact.attention_weights = weights_of

    scores = np.asarray(model.attend(images[:1], ids, mask)).reshape(1, 2, 2, 9, 6)
    for head, token, patch in ((0, 0, 1), (1, 2, 3), (0, 5, 0), (1, 6, 5)):
        slope = (logit(head, token, patch, 1e-2) - logit(head, token, patch, -1e-2)) / 2e-2
        weight = scores[0, 1, head, token, patch]
        if style == "merged":  # there the scores are scaled to the image; the weight itself is less
            assert (found[0, 1, head, token, patch] > 0) == (slope > 0)
        else:
            np.testing.assert_allclose(found[0, 1, head, token, patch], weight * max(slope, 0.0), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("style", ["cross", "resampler", "recurrent"])
def test_the_gradient_by_patches_is_what_the_mean_patch_would_change(style, images, tokenizer):
    model = model_of(style)
    ids, mask = tokenizer([SENTENCE])
    found = gradient_of_match_by_patches(model, images[:1], ids, mask)[0]
    patches, text = np.asarray(model.image_encoder(images[:1])), model.text_encoder(ids, token_mask=mask)
    mean, step = patches.mean(1), 1e-2
    for patch in range(6):
        ends = []
        for sign in (1, -1):
            moved = patches.copy()
            moved[:, patch] -= sign * step * (patches[:, patch] - mean)
            ends.append(float(model.match_tokens(moved, text, mask)[0]))
        np.testing.assert_allclose(found[patch], (ends[1] - ends[0]) / (2 * step), rtol=5e-2, atol=2e-4)


def test_models_that_only_caption_or_embed(images, tokenizer):
    captions = model_of(heads=("captioning",))
    found = localise(captions, tokenizer, images, ["red heart"] * 2)
    assert np.isnan(found.score).all() and found.heat.shape == (2, 2, 3)
    for method, head in (("similarity", "contrastive"), ("gradient", "matching"), ("input", "matching")):
        with pytest.raises(ConfigError, match=f"no {head} head"):
            localise(captions, tokenizer, images, ["red heart"] * 2, method=method)
    dual = model_of(None, heads=("contrastive",))
    assert localise(dual, tokenizer, images, ["red heart"] * 2, method="similarity").heat.shape == (2, 2, 3)
    for method in ("attention", "gradient"):
        with pytest.raises(ConfigError, match="expected a model with a fusion, or method similarity, found " + method):
            localise(dual, tokenizer, images, ["red heart"] * 2, method=method)


def test_a_phrase_is_found_in_its_sentence():
    tokens = ["[CLS]", "blue", "blue", "square", "of", "blue", "square", "[SEP]", "[PAD]"]
    np.testing.assert_array_equal(np.flatnonzero(phrase_places(tokens, ["blue", "square"])), [2, 3])
    np.testing.assert_array_equal(np.flatnonzero(phrase_places(tokens, ["[CLS]", "of", "[SEP]"])), [4])
    for phrase in (["square", "blue"], ["red"], ["[CLS]", "[SEP]"], []):
        with pytest.raises(DataError, match="the phrase is not there .blue blue square of blue square"):
            phrase_places(tokens, phrase)


def test_nothing_left_is_an_even_map():
    maps = np.full((1, 1, 2, 2, 2), 0.25)
    np.testing.assert_array_equal(phrase_heat(maps, [False, True], [True, False]), 0.25)


def test_what_cannot_be_asked_is_refused(images, tokenizer):
    model = model_of()
    with pytest.raises(ConfigError, match="expected attention or similarity or gradient or input, found 'magic'"):
        localise(model, tokenizer, images, ["red"] * 2, method="magic")
    with pytest.raises(DataError, match="found 2 pictures, 1 phrases, 1 sentences"):
        localise(model, tokenizer, images, ["red"])
    with pytest.raises(DataError, match="the phrase is not there"):
        localise(model, tokenizer, images, ["red"] * 2, sentences=["blue square"] * 2)
    with pytest.raises(ConfigError, match="no such layers"):
        localise(model, tokenizer, images, ["red"] * 2, layers=[5])


# Text and image of one length, and as many bottlenecks, queries and latents: shapes tell nothing.
ALIKE = {
    "cross": (STYLES["cross"], {}),
    "cross both": (STYLES["cross"], {"direction": "both"}),
    "co": (STYLES["co"], {}),
    "co shared": (STYLES["co"], {"shared_cross": True}),
    "gated": (STYLES["gated"], {}),
    "merged": (STYLES["merged"], {}),
    "cross image": (STYLES["cross"], {"direction": "image"}),
    "bottleneck": (STYLES["bottleneck"], {"num_bottlenecks": 9}),
    "qformer": (STYLES["qformer"], {"num_queries": 9, "cross_every": 1}),
    "resampler": (STYLES["resampler"], {"num_latents": 9}),
    "resampler merged": (STYLES["resampler"], {"num_latents": 9, "inner": "merged"}),
    "late": (STYLES["late"], {}),
    "recurrent": (STYLES["recurrent"], {}),
}


@pytest.mark.parametrize("name", ALIKE)
def test_who_attends_decides_which_gradients_count(name, tokenizer):
    style, options = ALIKE[name]
    fusion = style(**{"dim": 12, "image_dim": 12 if name == "co shared" else 16, "depth": 2, "num_heads": 2, **options})
    encoder = VisionTransformer(image_size=24, patch_size=8, dim=fusion.image_dim, depth=1, num_heads=2)
    model = randomized(
        ImageTextModel(
            image_encoder=encoder,
            text_encoder=TextTransformer(vocabulary_size=len(WORDS), max_length=9, dim=12, depth=1, num_heads=2),
            fusion=fusion,
            matching_head=MatchingHead(),
        )
    )
    images = np.random.default_rng(0).normal(size=(1, 24, 24, 3)).astype("float32")
    ids, mask = tokenizer(["red heart left of blue square of"])
    assert ids.shape == (1, 9)
    if name.split()[0] not in ONE_STEP or name == "cross image":
        with pytest.raises(ConfigError, match="attends to no patch in one step"):
            gradient_of_match_by_attention(model, images, ids, mask)
        return
    found = gradient_of_match_by_attention(model, images, ids, mask)
    assert found.shape == (1, 2, 2, 9, 9) and found.max(axis=(3, 4)).min() > 0
    # The looks that are taken are those that the fusion calls its scores.
    streams = model.text_encoder(ids, token_mask=mask), model.image_encoder(images)
    with _looking(fusion) as looks:
        scores = fusion(*streams, text_mask=mask, return_scores=True).scores
    taken = np.stack([look.scores for look in looks if look.asked and look.itself == (name == "merged")], axis=1)
    taken = taken[..., 9:, :9] if name == "merged" else taken
    np.testing.assert_allclose(taken / np.maximum(taken.sum(-1, keepdims=True), 1e-30), scores, atol=1e-6)


def test_what_is_pooled_of_the_patches_is_no_patch(images, tokenizer):
    model = model_of(heads=("matching",))
    pooled = ImageTextModel(
        image_encoder=model.image_encoder,
        text_encoder=model.text_encoder,
        fusion=model.fusion,
        matching_head=model.matching_head,
        image_pooling=AttentionPooling(num_heads=2, num_queries=6),
    )
    with pytest.raises(ConfigError, match="attends to no patch in one step"):
        gradient_of_match_by_attention(pooled, images, *tokenizer([SENTENCE] * 2))


def test_the_gradient_by_attention_needs_no_kernel_that_keeps_weights(images, tokenizer):
    ids, mask = tokenizer([SENTENCE])
    exactly, chunked = (
        gradient_of_match_by_attention(model_of(kernel=kernel), images[:1], ids, mask) for kernel in ("exact", "chunked")
    )
    assert exactly.max() > 0
    np.testing.assert_allclose(chunked, exactly, atol=1e-6)


def test_a_heat_map_is_drawn_over_its_picture(tmp_path):
    image, heat = np.zeros((32, 48, 3), "uint8"), np.zeros((2, 3))
    heat[1, 2] = 1.0
    figure = draw_heat(image, heat, tmp_path / "heat.png", title="red heart", box=(16, 32, 32, 48))
    drawn = figure.axes[1].images[1]
    assert drawn.get_array().shape == image.shape[:2] and drawn.get_extent() == figure.axes[1].images[0].get_extent()
    assert [axes.get_label() for axes in figure.axes] == ["image", "heat"]
    pixels = pictures.imread(tmp_path / "heat.png")[..., :3]
    height, width = pixels.shape[:2]
    assert pixels[int(0.8 * height), int(0.92 * width)].sum() > 1.0 > pixels[int(0.5 * height), int(0.6 * width)].sum() + 0.6
    with pytest.raises(DataError, match="not a heat map"):
        draw_heat(image, np.full((2, 3), np.nan))


def test_leading_tokens_have_no_place(images, tokenizer):
    sizes = {"image_size": (16, 24), "patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2}
    parts = model_of("cross")
    model = randomized(
        ImageTextModel(
            image_encoder=VisionTransformer(**sizes, num_leading_tokens=2),
            text_encoder=parts.text_encoder,
            fusion=parts.fusion,
            contrastive_head=parts.contrastive_head,
            matching_head=parts.matching_head,
        )
    )
    for method in METHODS:
        found = localise(model, tokenizer, images, ["red heart"] * 2, method=method)
        assert found.heat.shape == (2, 2, 3)
        np.testing.assert_allclose(found.heat.sum((1, 2)), 1.0, atol=1e-5)
    # As the method says, over patches alone.
    ids, mask = tokenizer([SENTENCE] * 2)
    tokens, leading = model.image_encoder(images), 2
    text = model.text_encoder(ids, token_mask=mask)
    with tf.GradientTape() as tape:
        tape.watch(tokens)
        match = tf.reduce_sum(model.match_tokens(tokens, text, mask))
    apart = tokens - tf.reduce_mean(tokens[:, leading:], axis=1, keepdims=True)
    expected = tf.reduce_sum(apart * tape.gradient(match, tokens), axis=-1).numpy()
    np.testing.assert_allclose(gradient_of_match_by_patches(model, images, ids, mask), expected, atol=1e-6)
