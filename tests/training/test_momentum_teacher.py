"""Momentum teacher: the copy follows by its formula, the queue holds the newest, replicas agree, saves are the student's."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from factories import IMAGE_SIZE, MAX_LENGTH, VOCABULARY_SIZE, randomized, tiny_batch

from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.losses import softmax_contrastive
from mmfusion.models import ContrastiveHead, ImageTextModel
from mmfusion.training import Checkpoints, MomentumTeacher, Trainer
from mmfusion.training.objectives import ContrastiveObjective


def small_model(dropout: float = 0.0) -> ImageTextModel:
    """One block a part: what is tested here is around the model."""
    shared = {"dim": 8, "depth": 1, "num_heads": 2, "dropout": dropout}
    return ImageTextModel(
        image_encoder=VisionTransformer(image_size=IMAGE_SIZE, patch_size=8, name="image_encoder", **shared),
        text_encoder=TextTransformer(
            vocabulary_size=VOCABULARY_SIZE, max_length=MAX_LENGTH, name="text_encoder", **shared
        ),
        contrastive_head=ContrastiveHead(embedding_dim=6, name="contrastive_head"),
        name="model",
    )  # fmt: skip


def trainer_of(strategy=None, *, objectives=None, eager=True, rate=0.5, dropout=0.0, **options) -> Trainer:
    keras.utils.set_random_seed(0)  # of dropout
    with (strategy or tf.distribute.get_strategy()).scope():
        model = randomized(small_model(dropout))
        teacher = MomentumTeacher(model, **{"decay": 0.9, "queue_size": 12, "alpha": 0.4, **options})
        trainer = Trainer(model, objectives or [ContrastiveObjective(label_smoothing=0.1)], teacher=teacher)
        trainer.compile(optimizer=keras.optimizers.SGD(rate), run_eagerly=eager)
    return trainer


def batches(count: int, size: int = 8) -> tf.data.Dataset:
    """Different batches; half of the images of one come again in the next."""
    made = [tiny_batch(size, seed) for seed in range(count)]
    stacked = {name: np.concatenate([batch[name] for batch in made]) for name in made[0]}
    stacked["image_id"] += np.repeat(np.arange(count, dtype="int32") * size // 2, size)
    return tf.data.Dataset.from_tensor_slices(stacked).batch(size, drop_remainder=True)


def state(trainer: Trainer) -> dict[str, np.ndarray]:
    # Keras numbers seed generators through the process: their places name them.
    return {
        re.sub(r"seed_generator_\d+", "seed_generator", f"{place} {v.path}"): v.numpy()
        for place, v in enumerate(trainer.variables)
    }


def test_the_copy_follows_by_its_formula():
    trainer = trainer_of(decay=0.75)
    start = [weight.numpy() for weight in trainer.model.weights]
    trainer.fit(batches(1), verbose=0)
    moved = 0.0
    for before, weight, copy in zip(start, trainer.model.weights, trainer.teacher.model.weights, strict=True):
        np.testing.assert_allclose(copy.numpy(), 0.75 * before + 0.25 * weight.numpy(), atol=1e-6)
        moved += np.abs(copy.numpy() - before).sum()
    assert moved > 0


def test_evaluation_neither_moves_the_copy_nor_is_taught():
    trainer = trainer_of()
    trainer.fit(batches(2), verbose=0)
    before = state(trainer)
    trainer.evaluate(batches(2), verbose=0)
    batch = {name: tf.constant(value) for name, value in tiny_batch(8).items()}
    plain = Trainer(trainer.model, [ContrastiveObjective(label_smoothing=0.1)])
    figures = [float(one.compute_losses(batch, training=False)[0]) for one in (trainer, plain)]
    assert figures[0] == figures[1]
    for name, value in state(trainer).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_the_queue_holds_the_newest_batches():
    trainer = trainer_of(decay=1.0, queue_size=12)
    teacher = trainer.teacher
    made = list(batches(3))
    features = [
        (teacher.model.encode_image(b["image"]), teacher.model.encode_text(b["token_ids"], b["token_mask"]), b["image_id"])
        for b in made
    ]
    for count, valid in ((1, 8), (2, 12), (3, 12)):
        trainer.fit(tf.data.Dataset.from_tensors(made[count - 1]), verbose=0)
        queue = teacher.queued()
        assert int(tf.reduce_sum(tf.cast(queue.valid, tf.int32))) == valid
        expected = [np.concatenate([np.asarray(part) for part in parts[:count]]) for parts in zip(*features, strict=True)]
        for found, rows in zip(queue[:3], expected, strict=True):
            for age in range(valid):
                place = (len(rows) - 1 - age) % 12
                np.testing.assert_allclose(found[place], rows[len(rows) - 1 - age], atol=1e-6)


def test_the_first_loss_is_that_of_the_batch_and_later_ones_know_the_queue():
    """At the start copy and model are equal and the queue is empty; alpha = 0 and decay = 1 leave the plain loss."""
    batch = {name: tf.constant(value) for name, value in tiny_batch(8).items()}
    trainer = trainer_of(alpha=0.0, decay=1.0)
    plain = Trainer(trainer.model, [ContrastiveObjective(label_smoothing=0.1)])
    expected = float(plain.compute_losses(batch, training=True)[0])
    assert float(trainer.compute_losses(batch, training=True)[0]) == pytest.approx(expected, rel=1e-5)
    trainer.teacher.enqueue(*(tf.ones((8, 6)) / 6**0.5,) * 2, tf.range(900, 908))
    assert float(trainer.compute_losses(batch, training=True)[0]) > expected + 0.1


def test_the_loss_is_that_of_the_pure_function_over_batch_and_queue():
    batch = {name: tf.constant(value) for name, value in tiny_batch(8).items()}
    trainer = trainer_of(alpha=0.3, objectives=[ContrastiveObjective()])
    copy, model = trainer.teacher.model, trainer.model
    randomized(copy, seed=9)
    random = tf.math.l2_normalize(tf.constant(np.random.default_rng(0).normal(size=(2, 5, 6)), tf.float32), axis=-1)
    ids = tf.constant([0, 3, 900, 5, 901])
    trainer.teacher.enqueue(random[0], random[1], ids)
    now = copy.encode_image(batch["image"]), copy.encode_text(batch["token_ids"], batch["token_mask"])
    expected = softmax_contrastive(
        model.encode_image(batch["image"]), model.encode_text(batch["token_ids"], batch["token_mask"]),
        model.contrastive_head.scale, image_id=batch["image_id"], all_image=tf.concat([now[0], random[0]], 0),
        all_text=tf.concat([now[1], random[1]], 0), all_image_id=tf.concat([batch["image_id"], ids], 0),
        teacher_image=now[0], teacher_text=now[1], alpha=0.3,
    )  # fmt: skip
    loss = float(trainer.compute_losses(batch, training=True)[0])
    assert loss == pytest.approx(float(tf.reduce_mean(expected)), rel=1e-5)


def test_two_replicas_equal_one(two_devices):
    trainers = [trainer_of(strategy, eager=False, rate=0.1, warmup_steps=2) for strategy in (None, two_devices)]
    # Three batches of eight: the queue of twelve is filled beyond its end.
    histories = [trainer.fit(batches(3), verbose=0).history for trainer in trainers]
    for name, value in histories[0].items():
        np.testing.assert_allclose(histories[1][name], value, rtol=2e-5, err_msg=name)
    one, two = (state(trainer) for trainer in trainers)
    assert set(one) == set(two)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=5e-6, err_msg=name)
    for variable in trainers[1].teacher.variables:
        first, second = (part.numpy() for part in two_devices.experimental_local_results(variable.value))
        np.testing.assert_array_equal(first, second, err_msg=variable.path)


def test_a_checkpoint_holds_copy_and_queue(tmp_path):
    whole, broken = trainer_of(dropout=0.1), trainer_of(dropout=0.1)
    whole.fit(batches(3), verbose=0)
    broken.fit(batches(2), verbose=0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, broken.variables, {})
    resumed = trainer_of(dropout=0.1)
    assert checkpoints.restore(resumed.variables) == {"step": 2}
    resumed.fit(batches(3).skip(2), verbose=0)
    for name, value in state(whole).items():
        np.testing.assert_array_equal(state(resumed)[name], value, err_msg=name)


def test_what_is_saved_is_the_student(tmp_path):
    trainer = trainer_of(decay=1.0)
    trainer.fit(batches(2), verbose=0)
    trainer.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(loaded.weights) == len(trainer.model.weights)
    for one, other in zip(loaded.weights, trainer.model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert not trainer.teacher.trainable_weights


def test_the_share_grows():
    teacher = trainer_of(warmup_steps=4, alpha=0.8).teacher
    shares = []
    for _ in range(6):
        shares.append(float(teacher.share()))
        teacher.update()
    np.testing.assert_allclose(shares, [0.0, 0.2, 0.4, 0.6, 0.8, 0.8], rtol=1e-6)


def test_what_cannot_be():
    for options in ({"decay": 1.5}, {"alpha": -0.1}, {"queue_size": -1}):
        with pytest.raises(ConfigError, match="impossible"):
            MomentumTeacher(small_model(), **options)
    with pytest.raises(ConfigError, match="does not fit the queue"):
        trainer_of(queue_size=4).fit(batches(1), verbose=0)
    with pytest.raises(ConfigError, match="needs the softmax loss"):
        trainer_of(objectives=[ContrastiveObjective(loss="sigmoid")]).fit(batches(1), verbose=0)
