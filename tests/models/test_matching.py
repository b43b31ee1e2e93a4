"""Many texts against each image: the same scores as pair by pair, and each image read once."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized, tiny_batch, tiny_model
from gradients import to_numpy

from mmfusion.errors import ConfigError
from mmfusion.fusion import CoFusion, CrossFusion
from mmfusion.models import match_groups

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
        block.cross.key_projection.call = lambda x, original=original: seen.append(x.shape[0]) or original(x)
    model.match_matrix(batch["image"], batch["token_ids"], batch["token_mask"])
    assert seen == [4, 4]


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
    with pytest.raises(ConfigError, match=r"come in groups.*float\[B, C, T, D\]"):
        match_groups(model, model.image_encoder(batch["image"]), model.text_encoder(batch["token_ids"]))
