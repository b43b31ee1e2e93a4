"""Freezing: what a pattern finds stays bit for bit as it is and has no slots; what finds nothing is told."""

from __future__ import annotations

import pytest
import tensorflow as tf
from factories import randomized, tiny_batch, tiny_model

from mmfusion.config import FROZEN, recipe_from_dict
from mmfusion.errors import ConfigError
from mmfusion.models import ImageTextModel
from mmfusion.training import Trainer, build_optimizer, freeze
from mmfusion.training.objectives import ContrastiveObjective


def test_frozen_weights_stay_bit_for_bit():
    model = randomized(tiny_model(name="model", heads=("contrastive",)))
    frozen = freeze(model, [r"^image_encoder/(?!block_1)", r"text_encoder/.*norm", "log_scale$"])
    assert "image_encoder/patch_embedding/projection/kernel" in frozen and "contrastive_head/log_scale" in frozen
    assert not any("block_1" in path for path in frozen if path.startswith("image"))
    assert {path for path in frozen if path.startswith("text")} == {
        f"text_encoder/{part}/{name}"
        for part in ("norm", *(f"block_{i}/{norm}_norm" for i in (0, 1) for norm in ("attention", "feed_forward")))
        for name in ("gamma", "beta")
    }
    before = {weight.path: weight.numpy() for weight in model.weights}
    trainer = Trainer(model, [ContrastiveObjective()])
    optimizer = build_optimizer(model.trainable_variables, steps=2, learning_rate=0.1, warmup=0.0, weight_decay=0.5)
    trainer.compile(optimizer=optimizer, run_eagerly=True)
    assert not any("image_encoder_block_0" in variable.path for variable in optimizer.variables)
    assert any("image_encoder_block_1" in variable.path for variable in optimizer.variables)
    trainer.fit(tf.data.Dataset.from_tensors(tiny_batch(4)).repeat(2), verbose=0)
    moved = {weight.path.removeprefix("model/") for weight in model.weights if (weight.numpy() != before[weight.path]).any()}
    assert moved and not moved & set(frozen)
    still = {weight.path.removeprefix("model/") for weight in model.weights} - moved
    # What is not part of the contrastive loss has no gradient, but decays; vectors without gradient stay.
    assert set(frozen) <= still and all("fusion" in path or "bias" in path for path in still - set(frozen))


@pytest.mark.parametrize(
    ("name", "changes", "trained"),
    [
        ("flamingo", {}, ("captioning_head/", "fusion/fusion/gated_", "fusion/resampler/")),
        (
            "flamingo",
            {"fusion": {"style": "gated", "inner": None}, "model": {"heads": ["captioning", "masked_language"]}},
            ("captioning_head/", "masked_language_head/", "fusion/gated_"),
        ),
        ("blip2", {}, ("captioning_head/", "contrastive_head/", "matching_head/", "fusion/", "text_encoder/")),
    ],
)
def test_what_the_papers_freeze(name, changes, trained):
    """All but what their image side adds: its gates and resampler, its queries; and heads."""
    model = ImageTextModel.from_preset(name, vocabulary_size=12, image_size=32, size="tiny", **changes)
    frozen = freeze(model, FROZEN[name])
    kept = {"flamingo": {"image_encoder", "text_encoder", "fusion"}, "blip2": {"image_encoder"}}
    assert {path.partition("/")[0] for path in frozen} == kept[name]
    left = {weight.path.removeprefix(f"{model.name}/") for weight in model.trainable_weights}
    assert all(path.startswith(trained) for path in left)
    assert all(any(path.startswith(start) for path in left) for start in trained)


def test_a_pattern_that_finds_nothing():
    with pytest.raises(ConfigError, match=r"nothing to freeze.*found 'image_encodr/block_0'.*nearest.*image_encoder/block_0"):
        freeze(tiny_model(name="model"), ["text_encoder", "image_encodr/block_0"])


def test_nothing_left_to_train():
    with pytest.raises(ConfigError, match="nothing to train"):
        freeze(tiny_model(name="model"), [""])


def test_no_regular_expression():
    with pytest.raises(ConfigError, match=r"train\.freeze\]: expected regular expressions, found '\(a'"):
        recipe_from_dict({"train": {"freeze": ["(a"]}})
