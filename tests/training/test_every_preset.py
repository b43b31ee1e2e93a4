"""Every preset's terms of the loss: there, finite, and teaching every weight of the model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from factories import randomized
from untrained import WORDS

from mmfusion.config import PRESET_NAMES, load_recipe
from mmfusion.text import WordPieceTokenizer
from mmfusion.training import MomentumTeacher, Trainer
from mmfusion.training.experiment import prepare_model
from mmfusion.training.objectives import build_objectives

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
TINY = (
    "data.image_size=16", "text.max_tokens=6", "model.embedding_dim=8", "fusion.num_heads=2", "fusion.depth=2",
    "model.image_encoder.dim=8", "model.image_encoder.patch_size=8", "model.image_encoder.num_heads=2",
    "model.text_encoder.dim=8", "model.text_encoder.num_heads=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], max_length=6)


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_preset_learns_in_all_its_parts(name, tokenizer):
    recipe = load_recipe(QUICKSTART, [f"preset={name}"])
    shallow = [f"model.{part}.depth=1" for part in ("image_encoder", "text_encoder") if getattr(recipe.model, part).depth]
    recipe = load_recipe(QUICKSTART, [f"preset={name}", *TINY, *shallow])
    model = randomized(prepare_model(recipe, tokenizer))
    teacher = None if recipe.objective.momentum is None else MomentumTeacher(model, queue_size=6)
    trainer = Trainer(model, build_objectives(recipe, tokenizer), teacher=teacher)
    tokens = tokenizer(["a red heart", "the dog runs", "a smiling man", "cats"])
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")
    batch = {**tokens._asdict(), "image": tf.constant(images), "image_id": tf.range(4)}
    with tf.GradientTape() as tape:
        loss, figures = trainer.compute_losses(batch, training=True)
    assert set(figures) == {"loss", *(f"{term}_{what}" for term in recipe.terms for what in ("loss", "accuracy"))}
    assert all(np.isfinite(float(mean)) for mean, _ in figures.values())
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    untaught = {weight.path for weight, gradient in zip(model.trainable_weights, gradients, strict=True) if gradient is None}
    assert {path for path in untaught if not re.search(idle(recipe), path)} == set()


def idle(recipe) -> str:
    """What no term of the loss can reach."""
    parts = ["no part"]
    if recipe.objective.contrastive is not None and recipe.objective.contrastive.loss == "softmax":
        parts.append("contrastive_head/bias")  # the softmax does not feel it
    if not {"masked_language", "captioning"} & set(recipe.terms):
        parts.append("output_bias")
    if recipe.preset in ("lxmert", "bottleneck"):
        parts.append("fusion/image_(block_1|norm)")  # the text alone is read in the end
    if recipe.preset == "show_attend_tell":
        parts.append("(/|_)backward")  # reads right to left, which a caption never is
    return "|".join(parts)
