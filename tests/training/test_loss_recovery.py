"""Recovery: what is a spike, what is restored, and a poisoned training that ends where a clean one ends."""

from __future__ import annotations

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from factories import IMAGE_SIZE, MAX_LENGTH, VOCABULARY_SIZE, tiny_batch

from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError, DataError
from mmfusion.models import ContrastiveHead, ImageTextModel
from mmfusion.training import Trainer, build_optimizer
from mmfusion.training.callbacks import JsonLinesLog, LossRecovery
from mmfusion.training.callbacks.loss_recovery import is_spike
from mmfusion.training.objectives import ContrastiveObjective

# The squared error of single examples has a long tail: what is a spike in a batch's mean is none there.
CALM = 300.0


def test_what_is_a_spike():
    random = np.random.default_rng(0)
    losses = list(2.0 + 0.1 * random.normal(size=50))
    # A robust standard deviation: five of them are chance, twenty are not, and one earlier spike changes little.
    assert not is_spike(2.5, losses, 8.0) and is_spike(4.0, losses, 8.0)
    assert is_spike(4.0, [*losses, 1e6], 8.0) and not is_spike(0.0, losses, 8.0)
    assert not is_spike(1.1, [1.0] * 20, 8.0) and is_spike(1.2, [1.0] * 20, 8.0)


class Losses(keras.callbacks.Callback):
    """Says what each step's loss is, before recovery looks at it, as a trainer that knows its own figures does."""

    def __init__(self, losses):
        super().__init__()
        self.losses = losses

    def on_train_batch_begin(self, batch, logs=None):
        self.model.step_figures = {"loss": self.losses[batch]}


@pytest.mark.parametrize(("last", "recoveries"), [(0.013, 0), (0.25, 0), (0.7, 1)])
def test_a_converged_loss_may_rise_by_chance_but_not_to_guessing(last, recoveries):
    model, recovery = linear(), LossRecovery(snapshot_every=4)
    inputs, targets = examples(count=21)
    callbacks = [Losses([0.01] * 20 + [last]), recovery]
    model.fit(inputs, targets, batch_size=1, shuffle=False, verbose=0, callbacks=callbacks)
    assert recovery.recoveries == recoveries


def linear(rate=0.05, optimizer=None) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(optimizer=optimizer or keras.optimizers.Adam(rate), loss="mse")
    return model


def examples(poison: dict[int, float] | None = None, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    inputs = random.normal(size=(count, 3)).astype("float32")
    targets = inputs @ np.array([[1.0], [-2.0], [0.5]], "float32") + 1.0
    for place, value in (poison or {}).items():  # a step each
        targets[place] = value
    return inputs, targets


def fit(model, recovery, **options):
    inputs, targets = examples(**options)
    return model.fit(inputs, targets, batch_size=1, shuffle=False, verbose=0, callbacks=[recovery]).history["loss"]


@pytest.mark.parametrize("value", [math.nan, 1e4])
def test_a_plain_keras_model_goes_back(value):
    events = []
    recovery = LossRecovery(snapshot_every=4, threshold=CALM, log=lambda kind, event: events.append((kind, event)))
    model = linear()
    losses = fit(model, recovery, poison={41: value})
    assert recovery.recoveries == 1 and math.isfinite(losses[0])
    kind, event = events[0]
    assert kind == "recovery" and 4 <= event["restored_steps_back"] <= 8
    # Only the batch and the steps undone are missing: it is where a training is that never saw them.
    clean = linear()
    inputs, targets = examples()
    undone = event["restored_steps_back"]
    kept = np.r_[0 : 42 - undone, 42:60]
    clean.fit(inputs[kept], targets[kept], batch_size=1, shuffle=False, verbose=0)
    # Adam's bias correction goes by the step, which went on.
    np.testing.assert_allclose(model.get_weights()[0], clean.get_weights()[0], atol=0.05)
    assert int(model.optimizer.iterations) == 60


def test_weights_and_optimizer_are_those_of_the_snapshot():
    model, taken = linear(), {}
    recovery = LossRecovery(snapshot_every=10, threshold=CALM)
    inputs, targets = examples({29: math.nan})

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            taken[batch + 1] = [v.numpy() for v in recovery._variables()]

    model.fit(inputs[:30], targets[:30], batch_size=1, shuffle=False, verbose=0, callbacks=[recovery, Watch()])
    for restored, earlier in zip(taken[30], taken[10], strict=True):
        np.testing.assert_array_equal(restored, earlier)


def test_too_often_is_too_often():
    recovery = LossRecovery(snapshot_every=2, threshold=CALM, max_recoveries=2)
    with pytest.raises(DataError, match=r"training diverged: loss is not finite \[step 36\].*after 2 recoveries"):
        fit(linear(), recovery, poison={20: math.nan, 25: math.inf, 35: math.nan})


@pytest.mark.parametrize("adjustable", [False, True])
def test_the_rate_is_lowered(adjustable):
    optimizer = None
    if adjustable:
        optimizer = build_optimizer([keras.Variable([[1.0]])], steps=120, learning_rate=0.05, warmup=0.0, adjustable=True)
        optimizer = type(optimizer).from_config(optimizer.get_config())
    model = linear(optimizer=optimizer)
    recovery = LossRecovery(snapshot_every=2, threshold=CALM, rate_factor=0.5)
    fit(model, recovery, poison={20: math.nan, 30: math.nan})
    full = 0.05 * (1 + math.cos(math.pi * 60 / 120)) / 2 if adjustable else 0.05
    assert float(model.optimizer.learning_rate) == pytest.approx(0.25 * full, rel=1e-4)
    # Another run goes on from there.
    again = LossRecovery(rate_factor=0.5, state=json.loads(json.dumps(recovery.state)))
    assert again.recoveries == 2 and again.losses == recovery.losses and again.rate == 0.25
    scheduled = linear(optimizer=keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)))
    with pytest.raises(ConfigError, match="learning rate cannot be lowered"):
        fit(scheduled, LossRecovery(rate_factor=0.5))


def test_what_cannot_be():
    for options in ({"threshold": 0.0}, {"minimum_rise": -1.0}, {"window": 0}, {"rate_factor": 1.5}, {"max_recoveries": -1}):
        with pytest.raises(ConfigError, match="impossible recovery"):
            LossRecovery(**options)


def test_a_poisoned_training_learns_as_if_nothing_had_been(tmp_path):
    """The trainer's own figures: its means, its log and its state are without the poisoned steps."""
    batch = {**tiny_batch(6), "image_id": np.arange(6, dtype="int32")}
    steps, poisoned = 50, (24, 44)

    def batches():
        for step in range(steps):
            yield {**batch, "image": batch["image"] * np.float32(np.nan if step in poisoned else 1.0)}

    keras.utils.set_random_seed(0)
    shared = {"dim": 8, "depth": 1, "num_heads": 2}
    model = ImageTextModel(
        image_encoder=VisionTransformer(image_size=IMAGE_SIZE, patch_size=8, **shared),
        text_encoder=TextTransformer(vocabulary_size=VOCABULARY_SIZE, max_length=MAX_LENGTH, **shared),
        contrastive_head=ContrastiveHead(embedding_dim=6),
    )
    trainer = Trainer(model, [ContrastiveObjective()], clip_norm=1.0)
    trainer.compile(optimizer=build_optimizer(model.trainable_variables, steps=steps, learning_rate=0.02, warmup=0.0))
    signature = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in batch.items()}
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    log = JsonLinesLog(tmp_path / "log.jsonl", every=5)
    recovery = LossRecovery(snapshot_every=4, log=log.write)
    history = trainer.fit(data, steps_per_epoch=25, epochs=2, verbose=0, callbacks=[recovery, log]).history
    assert np.isfinite(history["loss"]).all() and recovery.recoveries == 2
    end = float(trainer.compute_losses({k: tf.constant(v) for k, v in batch.items()}, training=False)[0])
    # What a training without poison comes to on these six pairs; by chance it would be ln 6 = 1.79.
    assert end < 0.5
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "recovery"] == [25, 45]
    assert all(row["loss"] is not None for row in rows if row["kind"] in ("step", "epoch"))
    # The poisoned step was the last of its epoch: the epoch's mean is that of the others.
    epoch = next(row for row in rows if row["kind"] == "epoch")
    before = next(row for row in rows if row["kind"] == "step" and row["step"] == 20)
    assert epoch["loss"] == pytest.approx(before["loss"], rel=0.5)
