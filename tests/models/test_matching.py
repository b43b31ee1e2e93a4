"""Many texts against each image: the same scores as pair by pair, and each image read once."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from factories import randomized, tiny_batch, tiny_model
from gradients import graph, to_numpy

from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import CoFusion, CrossFusion
from mmfusion.models import ImageTextModel, MatchingHead, match_groups

FUSIONS = {
    "cross": lambda: CrossFusion(dim=12, image_dim=16, depth=2, num_heads=2, name="fusion"),
    "after": lambda: CrossFusion(dim=12, image_dim=16, depth=2, num_heads=2, norm_first=False, name="fusion"),
    "chunked": lambda: CrossFusion(dim=12, image_dim=16, depth=2, num_heads=2, kernel="chunked", name="fusion"),
    "both": lambda: CrossFusion(dim=12, image_dim=16, depth=2, num_heads=2, direction="both", name="fusion"),
    "co": lambda: CoFusion(dim=12, image_dim=16, depth=2, num_heads=2, name="fusion"),
}


@pytest.fixture(scope="module", params=FUSIONS)
def model(request):
    return randomized(tiny_model(fusion=FUSIONS[request.param]()))


def by_pairs(model, batch) -> np.ndarray:
    """All images with all texts, each pair by itself."""
    count = len(batch["image"])
    image, text = np.repeat(np.arange(count), count), np.tile(np.arange(count), count)
    logits = model.match(batch["image"][image], batch["token_ids"][text], batch["token_mask"][text])
    return to_numpy(logits).reshape(count, count)


def test_the_matrix_equals_the_pairs(model):
    batch = tiny_batch(4)
    expected = by_pairs(model, batch)
    np.testing.assert_allclose(
        to_numpy(model.match_matrix(batch["image"], batch["token_ids"], batch["token_mask"])), expected, atol=2e-6
    )
    assert np.ptp(expected, axis=0).min() > 1e-3 and np.ptp(expected, axis=1).min() > 1e-3


def test_only_the_likeliest_are_scored(model):
    batch = tiny_batch(4)
    expected = by_pairs(model, batch)
    images, texts = (
        to_numpy(model.encode_image(batch["image"])),
        to_numpy(model.encode_text(batch["token_ids"], batch["token_mask"])),
    )
    likeliest = np.argsort(-(images @ texts.T), axis=1)[:, :2]
    found = to_numpy(model.match_matrix(batch["image"], batch["token_ids"], batch["token_mask"], top_k=2))
    scored = np.zeros((4, 4), bool)
    np.put_along_axis(scored, likeliest, True, axis=1)
    assert np.isneginf(found[~scored]).all()
    np.testing.assert_allclose(found[scored], expected[scored], atol=2e-6)
    everything = to_numpy(model.match_matrix(batch["image"], batch["token_ids"], batch["token_mask"], top_k=9))
    np.testing.assert_allclose(everything, expected, atol=2e-6)


def test_given_candidates_are_scored_in_any_order(model):
    batch, chosen = tiny_batch(4), np.array([[3, 1, 0, 2], [2, 2, 0, 1], [0, 1, 2, 3], [1, 3, 2, 2]])
    inputs = batch["image"], batch["token_ids"], batch["token_mask"]
    found, expected = to_numpy(model.match_matrix(*inputs, candidates=chosen)), by_pairs(model, batch)
    scored = np.zeros((4, 4), bool)
    np.put_along_axis(scored, chosen, True, axis=1)
    assert np.isneginf(found[~scored]).all()
    np.testing.assert_allclose(found[scored], expected[scored], atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"candidates": [[4, 0], [1, 3], [2, 1]]}])
def test_the_same_in_a_graph(options):
    model, batch = randomized(tiny_model(fusion=FUSIONS["cross"]())), tiny_batch(5)
    inputs = batch["image"][:3], batch["token_ids"], batch["token_mask"]
    inside = graph(lambda images, ids, mask: model.match_matrix(images, ids, mask, **options))(*inputs)
    np.testing.assert_allclose(to_numpy(model.match_matrix(*inputs, **options)), to_numpy(inside), atol=2e-6)


def test_texts_of_one_length_are_scored_together_without_the_padding_of_longer_ones():
    """Of 37 texts the 33 shortest have 5 tokens, so that the first 32 are cut to 8; of the rest the longest has 18."""
    text = TextTransformer(vocabulary_size=30, max_length=40, dim=12, depth=1, num_heads=2, name="text_encoder")
    fusion = FUSIONS["cross"]()
    model = randomized(
        ImageTextModel(
            image_encoder=VisionTransformer(image_size=16, patch_size=8, dim=16, depth=1, num_heads=2),
            text_encoder=text,
            fusion=fusion,
            matching_head=MatchingHead(),
        )
    )
    random = np.random.default_rng(0)
    lengths = np.full(37, 5)
    lengths[[3, 8, 20, 36]] = (17, 9, 15, 18)
    mask = np.arange(40) < lengths[:, None]
    ids, images = random.integers(4, 30, mask.shape), random.normal(size=(2, 16, 16, 3)).astype("float32")
    expected = np.stack([to_numpy(model.match(np.repeat(image[None], 37, axis=0), ids, mask)) for image in images])
    sizes, original = [], fusion.blocks[0].call
    fusion.blocks[0].call = lambda tokens, *rest, **options: sizes.append(tokens.shape[:2]) or original(tokens, *rest, **options)
    np.testing.assert_allclose(to_numpy(model.match_matrix(images, ids, mask)), expected, atol=2e-6)
    assert [tuple(size) for size in sizes] == [(32, 8), (8, 24)]


def test_new_weights_count():
    model, batch = randomized(tiny_model(fusion=FUSIONS["cross"]())), tiny_batch(2)
    inputs = batch["image"], batch["token_ids"], batch["token_mask"]
    before = to_numpy(model.match_matrix(*inputs))
    randomized(model, seed=1)
    after = to_numpy(model.match_matrix(*inputs))
    np.testing.assert_allclose(after, by_pairs(model, batch), atol=2e-6)
    assert np.abs(after - before).max() > 1e-3


def test_groups_with_masks_of_patches(model):
    batch = tiny_batch(4)
    patches = model.image_encoder(batch["image"])
    real = np.arange(patches.shape[1]) < np.array([3, 6, 1, 5])[:, None]
    text = model.text_encoder(batch["token_ids"], token_mask=batch["token_mask"])
    chosen = np.array([[0, 2, 1], [3, 3, 0], [1, 2, 3], [2, 0, 1]])
    found = match_groups(model, patches, keras.ops.take(text, chosen, axis=0), batch["token_mask"][chosen], real)
    for image in range(4):
        for place, number in enumerate(chosen[image]):
            alone = model.match_tokens(
                patches[image : image + 1], text[number : number + 1], batch["token_mask"][[number]], patch_mask=real[[image]]
            )
            np.testing.assert_allclose(to_numpy(found)[image, place], to_numpy(alone)[0], atol=2e-6)


def test_an_image_is_projected_once():
    model, seen = randomized(tiny_model(fusion=FUSIONS["cross"]())), []
    batch = tiny_batch(4)
    for block in model.fusion.blocks:
        original = block.cross.key_projection.call
        block.cross.key_projection.call = lambda x, original=original: seen.append(math.prod(x.shape[:-1])) or original(x)
    model.match_matrix(batch["image"], batch["token_ids"], batch["token_mask"])
    patches = math.prod(model.image_encoder.grid)
    assert seen == [4 * patches, 4 * patches]


def test_says_what_is_wrong():
    batch = tiny_batch(2)
    inputs = batch["image"], batch["token_ids"], batch["token_mask"]
    with pytest.raises(ConfigError, match="no matching head"):
        tiny_model(heads=("captioning",)).match_matrix(*inputs)
    with pytest.raises(ConfigError, match="no contrastive head"):
        tiny_model(heads=("matching",)).match_matrix(*inputs, top_k=1)
    model = tiny_model()
    with pytest.raises(ConfigError, match="top_k.*at least 1"):
        model.match_matrix(*inputs, top_k=0)
    with pytest.raises(ConfigError, match="candidates are given and looked for"):
        model.match_matrix(*inputs, top_k=1, candidates=[[0], [1]])
    with pytest.raises(ConfigError, match=r"come in groups.*float\[B, C, T, D\]"):
        match_groups(model, model.image_encoder(batch["image"]), model.text_encoder(batch["token_ids"]))
