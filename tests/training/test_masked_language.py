"""The masked language objective: replicas agree, validations repeat themselves, a model learns, every composition works."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from factories import IMAGE_SIZE, MAX_LENGTH, VOCABULARY_SIZE, randomized, tiny_batch

from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import CrossFusion
from mmfusion.models import ImageTextModel, MaskedLanguageHead, MatchingHead
from mmfusion.training import MomentumTeacher, Trainer
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.objectives import MaskedLanguageObjective, MatchingObjective

SPECIAL = (0, 1, 2, 3)


def model_of(*heads: str) -> ImageTextModel:
    shared = {"dim": 8, "depth": 1, "num_heads": 2}
    parts = {
        "masked_language_head": MaskedLanguageHead(mask_id=4, special_ids=SPECIAL, name="masked_language_head"),
        "matching_head": MatchingHead(name="matching_head"),
    }
    return randomized(
        ImageTextModel(
            image_encoder=VisionTransformer(image_size=IMAGE_SIZE, patch_size=8, name="image_encoder", **shared),
            text_encoder=TextTransformer(vocabulary_size=VOCABULARY_SIZE, max_length=MAX_LENGTH, name="text_encoder", **shared),
            fusion=CrossFusion(name="fusion", **shared),
            name="model",
            **{f"{head}_head": parts[f"{head}_head"] for head in heads},
        )
    )


def objective(**options) -> MaskedLanguageObjective:
    return MaskedLanguageObjective(**{"mask_id": 4, "special_ids": SPECIAL, "rate": 0.3, "seed": 2, **options})


def tensors(size: int = 8) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in tiny_batch(size).items()}


def test_two_replicas_equal_one_with_a_teacher_and_without_contrast(two_devices):
    """No contrastive head: the matching term draws evenly, the teacher teaches the hidden words alone."""
    ends = []
    for strategy in (tf.distribute.get_strategy(), two_devices):
        with strategy.scope():
            model = model_of("masked_language", "matching")
            teacher = MomentumTeacher(model, decay=0.5, alpha=0.5)
            trainer = Trainer(model, [objective(z_loss=0.01), MatchingObjective(weight=0.5, seed=1)], teacher=teacher)
            trainer.compile(optimizer=keras.optimizers.SGD(0.1))
        history = trainer.fit(tf.data.Dataset.from_tensors(tiny_batch(8)).repeat(2), steps_per_epoch=2, verbose=0).history
        ends.append((history, {f"{i} {w.path}": w.numpy() for i, w in enumerate(trainer.weights)}))
    (one_history, one), (two_history, two) = ends
    assert set(one_history) >= {"masked_language_loss", "masked_language_accuracy", "matching_loss"}
    for name, value in one_history.items():
        np.testing.assert_allclose(two_history[name], value, rtol=2e-5, err_msg=name)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=2e-6, err_msg=name)


def test_a_validation_hides_the_same_places_and_knows_no_regulariser():
    model, batch = model_of("masked_language"), tensors()
    plain, regular = (Trainer(model, [objective(z_loss=z)], teacher=t) for z, t in ((0.0, None), (0.5, MomentumTeacher(model))))
    losses = [float(trainer.compute_losses(batch, training=False)[0]) for trainer in (plain, regular, plain)]
    assert len(set(losses)) == 1
    trained = [float(plain.compute_losses(batch, training=True)[0]) for _ in range(2)]
    assert trained[0] != trained[1]


def test_the_figures_are_of_the_hidden_places_alone():
    model, batch, term = model_of("masked_language"), tensors(), objective()
    forward = ForwardPass(model, batch, training=False)
    masked = term._masked(forward)
    logits = np.asarray(model.masked_language_logits(forward.patches, masked.token_ids, batch["token_mask"], training=False))
    chosen, ids = np.asarray(masked.chosen), np.asarray(batch["token_ids"])
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    output = term(forward)
    expected = -np.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0][chosen]
    assert float(output.loss.count) == chosen.sum() >= len(ids)
    assert float(output.loss.total) == pytest.approx(expected.sum(), rel=1e-4)
    right = output.metrics["masked_language_accuracy"]
    assert float(right.total) == (logits.argmax(axis=-1) == ids)[chosen].sum()


def test_hidden_words_are_learned_from_the_image():
    """Nothing but the image tells the word."""
    random = np.random.default_rng(0)
    word = random.integers(4, size=32)
    images = np.zeros((32, *IMAGE_SIZE, 3), "float32") + np.eye(4, 3)[word][:, None, None, :]
    ids = np.zeros((32, MAX_LENGTH), "int32")
    ids[:, :3] = np.stack([np.full(32, 2), word + 10, np.full(32, 3)], axis=1)
    model = model_of("masked_language")
    trainer = Trainer(model, [objective(rate=1.0)], clip_norm=1.0)
    trainer.compile(optimizer=keras.optimizers.Adam(0.02))
    batch = {"image": images.astype("float32"), "token_ids": ids, "token_mask": ids > 0, "image_id": np.arange(32, dtype="int32")}
    trainer.fit(tf.data.Dataset.from_tensors(batch).repeat(), steps_per_epoch=40, verbose=0)
    # What stays in its place by chance tells itself, so all is hidden here.
    hidden = np.where(ids >= 10, 4, ids)
    logits = model.masked_language_logits(model.image_encoder(images), tf.constant(hidden), tf.constant(ids > 0))[:, 1]
    assert (np.asarray(logits).argmax(axis=-1) == ids[:, 1]).mean() > 0.9


def test_a_vocabulary_without_a_mask():
    with pytest.raises(ConfigError, match=r"objective\.masked_language.*vocabulary with \[MASK\]"):
        MaskedLanguageObjective(mask_id=None, special_ids=())
