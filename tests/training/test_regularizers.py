"""Every regulariser is reachable from a recipe and does what it is for, as the diagnostics see it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from factories import tiny_batch, tiny_model

from mmfusion.config import recipe_from_dict
from mmfusion.losses import attention_coverage, captioning_loss
from mmfusion.models import build_model
from mmfusion.training import Trainer
from mmfusion.training.diagnostics import AttentionProbe, attention_layers
from mmfusion.training.objectives import CaptioningObjective, ContrastiveObjective


def model_of(part: dict | None = None, **sections) -> keras.Model:
    keras.utils.set_random_seed(0)
    tower = {"dim": 8, "depth": 1, "num_heads": 2, **(part or {})}
    content = {
        "data": {"source": "builtin", "image_size": 16},
        "text": {"max_tokens": 6},
        "model": {"embedding_dim": 8, "image_encoder": {**tower, "patch_size": 8}, "text_encoder": tower},
        "fusion": {"depth": 1, "num_heads": 2, **sections.pop("fusion", {})},
        **sections,
    }
    return build_model(recipe_from_dict(content), vocabulary_size=30, start_id=2, end_id=3, pad_id=0)


def inputs() -> dict[str, np.ndarray]:
    batch = tiny_batch(4)
    image = np.random.default_rng(3).normal(size=(4, 16, 16, 3)).astype("float32")
    return {"image": image, "token_ids": batch["token_ids"][:, :6], "token_mask": batch["token_mask"][:, :6]}


@pytest.mark.parametrize(
    "options",
    [
        {"part": {"dropout": 0.5}},
        {"part": {"attention_dropout": 0.5}},
        {"part": {"depth": 2, "stochastic_depth": 0.9}},
        {"fusion": {"dropout": 0.5}},
        {"fusion": {"attention_dropout": 0.5}},
        {"fusion": {"depth": 2, "stochastic_depth": 0.9}},
        {"fusion": {"modality_dropout": 0.9}},
    ],
    ids=lambda options: str(options),
)
def test_dropouts_are_of_training_alone(options):
    model, batch = model_of(**options), inputs()
    quiet = [model(batch, training=False)["match_logits"] for _ in range(2)]
    noisy = [model(batch, training=True)["match_logits"] for _ in range(2)]
    np.testing.assert_array_equal(*quiet)
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-4


def test_layer_scale_starts_blocks_near_the_identity():
    batch = inputs()["image"]
    moved = []
    for gain in (None, 1e-5):
        encoder = model_of({"layer_scale": gain}).image_encoder
        tokens = encoder.patch_embedding(batch)
        moved.append(float(tf.norm(encoder.blocks[0](tokens) - tokens) / tf.norm(tokens)))
    assert moved[0] > 1e-2 and moved[1] < 1e-4


@pytest.mark.parametrize("cure", [{"query_key_norm": True}, {"logit_cap": 1.0}])
def test_normalised_and_capped_logits_do_not_collapse(cure):
    """Queries that have grown a hundredfold: every head of the plain encoder looks at one patch, the cured one at several."""
    entropy = []
    for options in ({}, cure):
        model, batch = model_of(options), inputs()
        for layer in attention_layers(model.image_encoder):
            layer.query_projection.kernel.assign(1000.0 * layer.query_projection.kernel)
        entropy.append(np.min(AttentionProbe(model, batch)()["image encoder"]["entropy"]))
    assert entropy[0] < 0.3 and entropy[1] > entropy[0] + 0.3


def test_z_loss_pulls_the_log_partition_to_zero():
    """Cross-entropy does not feel a number added to all logits, so it leaves them where they started: at ln Σ exp = 7."""
    partitions = []
    for z_loss in (0.0, 0.5):
        logits = tf.Variable(7.0 - np.log(5) + np.zeros((1, 3, 5)), dtype="float32")
        for _ in range(100):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(captioning_loss(logits, [[1, 2, 3]], np.ones((1, 3), bool), z_loss=z_loss).loss_sum)
            logits.assign_sub(0.5 * tape.gradient(loss, logits))
        partitions.append((float(tf.reduce_mean(tf.reduce_logsumexp(logits, axis=-1))), float(tf.reduce_mean(logits))))
    assert partitions[0][1] == pytest.approx(7.0 - np.log(5), abs=1e-3) and partitions[0][0] > 6.0
    assert abs(partitions[1][0]) < 0.5


def test_z_loss_is_part_of_the_contrastive_loss_in_training_alone():
    model, batch = tiny_model(heads=("contrastive",)), {name: tf.constant(value) for name, value in tiny_batch(4).items()}

    def loss(z_loss, training):
        return float(Trainer(model, [ContrastiveObjective(z_loss=z_loss)]).compute_losses(batch, training=training)[0])

    assert loss(0.1, False) == loss(0.0, False) and loss(0.1, True) > loss(0.0, True)


def test_attention_coverage_spreads_the_look():
    """A fusion whose heads look at few patches learns to look at all; the captioning term counts it in training alone."""
    keras.utils.set_random_seed(0)
    model, batch = tiny_model(heads=("captioning",)), {name: tf.constant(value) for name, value in tiny_batch(4).items()}
    queries = [block.cross.query_projection.kernel for block in model.fusion.blocks]
    for kernel in queries:
        kernel.assign(20.0 * kernel)
    ids, mask, real = batch["token_ids"][:, :-1], batch["token_mask"][:, :-1], batch["token_mask"][:, 1:]
    patches, text = model.image_encoder(batch["image"]), model.text_encoder(ids, token_mask=mask, causal=True)

    def unevenness():
        scores = model.fusion(text, patches, text_mask=mask, causal=True, return_scores=True).scores
        return attention_coverage(scores, real)

    plain, more = (
        float(Trainer(model, [CaptioningObjective(attention_coverage=weight)]).compute_losses(batch, training=True)[0])
        for weight in (0.0, 0.5)
    )
    counts = tf.reduce_sum(tf.cast(real, tf.float32), axis=-1)
    before = float(tf.reduce_sum(unevenness() * counts) / tf.reduce_sum(counts))
    assert more - plain == pytest.approx(0.5 * before, rel=1e-3)
    for _ in range(20):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(unevenness())
        for kernel, gradient in zip(queries, tape.gradient(loss, [kernel.value for kernel in queries]), strict=True):
            kernel.assign_sub(2.0 * gradient / tf.norm(gradient))
    assert float(tf.reduce_mean(unevenness())) < 0.6 * before
