"""Models of clips and of several images: masks from the batch to every head, in training and in decoding."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import MAX_LENGTH, randomized, tiny_batch, tiny_model
from gradients import tensorflow_only, to_numpy

from mmfusion.config import recipe_from_dict
from mmfusion.encoders import MultiImageEncoder, VideoTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import QFormerFusion
from mmfusion.layers import AttentionPooling
from mmfusion.models import build_model

F, SIDE, HEADS = 3, 16, ("contrastive", "matching", "masked_language", "captioning")
MASK = np.array([[True] * F, [True, False, False], [True, True, False], [False, True, True]])


def clip_model(kind: str = "video", **options):
    sizes = {"patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2}
    encoder: keras.layers.Layer
    if kind == "video":
        encoder = VideoTransformer(image_size=SIDE, num_frames=F, attention="factorised", **sizes)
    else:
        encoder = MultiImageEncoder(encoder=VisionTransformer(image_size=SIDE, **sizes), max_images=F, num_heads=2)
    return randomized(tiny_model(heads=HEADS, image_encoder=encoder, **options))


def clip_batch() -> dict[str, np.ndarray]:
    images = np.random.default_rng(1).normal(size=(len(MASK), F, SIDE, SIDE, 3)).astype("float32")
    return {**tiny_batch(len(MASK)), "image": images, "image_mask": MASK}


def filled(batch: dict[str, np.ndarray], filler: float = np.nan) -> dict[str, np.ndarray]:
    images = np.where(MASK[..., None, None, None], batch["image"], filler).astype("float32")
    return {**batch, "image": images}


MODELS = {
    "video": lambda: clip_model(),
    "several": lambda: clip_model("multi"),
    "pooled": lambda: clip_model(image_pooling=AttentionPooling(num_heads=2, num_queries=2)),
    "queries": lambda: clip_model(
        fusion=QFormerFusion(dim=12, image_dim=16, depth=2, num_heads=2, num_queries=3), contrastive_tokens="fusion"
    ),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_what_stands_in_masked_pictures_never_matters(name):
    model, batch = MODELS[name](), clip_batch()
    expected, found = model(batch), model(filled(batch))
    assert set(expected) == {
        "image_embedding", "text_embedding", "match_logits", "masked_language_logits", "caption_logits"
    }  # fmt: skip
    for output, value in expected.items():
        real = batch["token_mask"] if output.endswith("language_logits") or output == "caption_logits" else ...
        np.testing.assert_array_equal(to_numpy(value)[real], to_numpy(found[output])[real], err_msg=output)
    # Which pictures are real does matter.
    other = model({**batch, "image_mask": np.ones_like(MASK)})
    assert all(
        np.abs(to_numpy(other[key]) - to_numpy(expected[key]))[1:].max() > 1e-4 for key in ("image_embedding", "match_logits")
    )
    np.testing.assert_allclose(to_numpy(other["image_embedding"])[0], to_numpy(expected["image_embedding"])[0], atol=1e-5)


@pytest.mark.parametrize("name", ["video", "several"])
def test_captions_and_maps_of_clips(name):
    model, batch = MODELS[name](), clip_batch()
    images, ids, mask = filled(batch)["image"], batch["token_ids"], batch["token_mask"]
    maps = to_numpy(model.attend(images, ids, mask, image_mask=MASK))
    assert maps.shape == (4, 2, 2, MAX_LENGTH, F, 2, 2)
    np.testing.assert_allclose(maps.sum((-3, -2, -1))[:, :, :, 0], 1.0, atol=1e-5)
    assert not maps.sum((-2, -1))[np.broadcast_to(~MASK[:, None, None, None], maps.shape[:5])].any()
    written = to_numpy(model.caption(images, MASK, max_tokens=3).token_ids)
    patches, patch_mask = model.encode_patches(images, MASK)
    logits = to_numpy(model.caption_logits(patches, np.full((4, 1), 2, "int32"), patch_mask=patch_mask))[:, 0]
    logits[:, 2] = -np.inf  # the start token is never written
    np.testing.assert_array_equal(written[:, 0], logits.argmax(-1))
    np.testing.assert_array_equal(written, to_numpy(model.caption(batch["image"], MASK, max_tokens=3).token_ids))
    beams = to_numpy(model.caption(images, MASK, beam_size=2, max_tokens=3).scores)
    assert np.isfinite(beams).all()
    match = to_numpy(model.match(images, ids, mask, image_mask=MASK))
    np.testing.assert_allclose(match, to_numpy(model(batch)["match_logits"]), atol=1e-5)
    embedding = to_numpy(model.encode_image(images, image_mask=MASK))
    np.testing.assert_allclose(embedding, to_numpy(model(batch)["image_embedding"]), atol=1e-5)


def test_a_file_holds_the_encoder(tmp_path):
    model, batch = clip_model("multi"), clip_batch()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name, value in model(batch).items():
        np.testing.assert_array_equal(to_numpy(value), to_numpy(loaded(batch)[name]))


@tensorflow_only
def test_every_objective_reads_the_mask():
    from mmfusion.training import Trainer
    from mmfusion.training.objectives import (
        CaptioningObjective,
        ContrastiveObjective,
        MaskedLanguageObjective,
        MatchingObjective,
    )

    model, batch = clip_model(), clip_batch()
    terms = [
        ContrastiveObjective(),
        MatchingObjective(),
        MaskedLanguageObjective(mask_id=4, special_ids=(0, 1, 2, 3)),
        CaptioningObjective(attention_coverage=0.5),
    ]
    trainer = Trainer(model, terms)

    def losses(batch, training):
        return {name: float(mean) for name, (mean, _) in trainer.compute_losses(batch, training=training)[1].items()}

    for training in (False, True):
        for term in terms:
            if hasattr(term, "seed_generator"):
                term.seed_generator.state.assign([1, 0])
        first = losses(batch, training)
        for term in terms:
            if hasattr(term, "seed_generator"):
                term.seed_generator.state.assign([1, 0])
        assert losses(filled(batch), training) == first
        assert all(np.isfinite(value) for value in first.values())


def test_recipes_name_the_encoder():
    sizes = {"patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2}

    def model(frames=4, **encoder):
        recipe = recipe_from_dict({
            "data": {"image_size": 16, "frames": frames},
            "model": {"image_encoder": {**sizes, **encoder}, "text_encoder": {"dim": 16, "depth": 1, "num_heads": 2}},
            "fusion": {"num_heads": 2, "depth": 1},
        })  # fmt: skip
        return build_model(recipe, vocabulary_size=9, start_id=2, end_id=3, pad_id=0).image_encoder

    video = model(kind="video", tubelet_size=2, attention="factorised", query_key_norm=True)
    assert (video.grid, video.attention, video.block_options) == ((2, 2, 2), "factorised", {"query_key_norm": True})
    several = model(kind="multi", joint_depth=2)
    assert (several.grid, len(several.blocks), several.encoder.grid) == ((4, 2, 2), 2, (2, 2))
    assert model(frames=1).images_shape == (None, 16, 16, 3)
    for options, message in (
        ({"frames": 2}, r"data.frames\]: expected 1, since model.image_encoder.kind is vit, found 2"),
        ({"frames": 1, "kind": "video"}, r"data.frames\]: expected at least 2 for video, found 1"),
        ({"kind": "video", "tubelet_size": 3}, r"tubelet_size\]: expected a divisor of data.frames 4, found 3"),
        (
            {"kind": "multi", "attention": "tiled"},
            r"attention\]: expected none, since kind multi does not know it \(kind video does\)",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            model(**options)
