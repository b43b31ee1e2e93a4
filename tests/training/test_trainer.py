"""Trainer: two replicas equal one, clipping after the sum, fit learns."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from factories import randomized, tiny_batch, tiny_model

from mmfusion.errors import ConfigError
from mmfusion.training import Trainer, build_optimizer
from mmfusion.training.objectives import CaptioningObjective, ContrastiveObjective, MatchingObjective
from mmfusion.training.replicas import separate_seeds


def train_once(strategy, batch, objectives, *, clip_norm=None, steps=1, learning_rate=0.1, run_eagerly=False):
    with strategy.scope():
        model = randomized(tiny_model(name="model"))
        trainer = Trainer(model, objectives(), clip_norm=clip_norm)
        trainer.compile(optimizer=keras.optimizers.SGD(learning_rate), run_eagerly=run_eagerly)
    dataset = tf.data.Dataset.from_tensors(batch).repeat(steps)
    history = trainer.fit(dataset, steps_per_epoch=steps, verbose=0)
    return {w.path: w.numpy() for w in model.trainable_weights}, history.history


def all_objectives():
    return [
        ContrastiveObjective(weight=0.7, label_smoothing=0.05),
        MatchingObjective(weight=0.6, seed=3),
        CaptioningObjective(weight=0.5, label_smoothing=0.1),
    ]


def sigmoid_objective():
    return [ContrastiveObjective(loss="sigmoid")]


@pytest.mark.parametrize(("clip_norm", "objectives"), [(0.05, all_objectives), (None, sigmoid_objective)])
def test_two_replicas_equal_one_in_loss_and_update(clip_norm, objectives, two_devices):
    batch = tiny_batch(8)
    one, one_history = train_once(tf.distribute.get_strategy(), batch, objectives, clip_norm=clip_norm, steps=2)
    two, two_history = train_once(two_devices, batch, objectives, clip_norm=clip_norm, steps=2)
    assert set(one_history) == set(two_history)
    for name, value in one_history.items():
        np.testing.assert_allclose(value, two_history[name], rtol=2e-5, err_msg=name)
    for path, value in one.items():
        np.testing.assert_allclose(value, two[path], atol=2e-6, err_msg=path)


def test_clipping_bounds_the_summed_gradient(two_devices):
    batch = tiny_batch(8)
    start = {w.path: w.numpy() for w in randomized(tiny_model(name="model")).trainable_weights}
    end, history = train_once(two_devices, batch, all_objectives, clip_norm=0.1, learning_rate=1.0, run_eagerly=True)
    moved = np.sqrt(sum(np.sum((end[path] - start[path]) ** 2) for path in start))
    assert history["gradient_norm"][0] > 0.1
    np.testing.assert_allclose(moved, 0.1, rtol=1e-4)


def test_all_objectives_learn():
    model = tiny_model()
    trainer = Trainer(model, [ContrastiveObjective(), MatchingObjective(seed=1), CaptioningObjective()], clip_norm=1.0)
    trainer.compile(optimizer=build_optimizer(model.trainable_variables, steps=60, learning_rate=1e-2), jit_compile=True)
    batch = dict(tiny_batch(6), image_id=np.arange(6, dtype="int32"))
    history = trainer.fit(tf.data.Dataset.from_tensors(batch).repeat(), steps_per_epoch=30, epochs=2, verbose=0).history
    for name in ("loss", "contrastive_loss", "captioning_loss"):
        assert history[name][1] < history[name][0], name
    assert history["contrastive_accuracy"][1] > 0.5


def test_mixed_bfloat16_trains_on_two_replicas(two_devices):
    with two_devices.scope():
        model = tiny_model("mixed_bfloat16", dropout=0.1)
        trainer = Trainer(model, [ContrastiveObjective(), MatchingObjective(), CaptioningObjective()])
        trainer.compile(optimizer=build_optimizer(model.trainable_variables, steps=20, learning_rate=5e-3))
    history = trainer.fit(tf.data.Dataset.from_tensors(tiny_batch(8)).repeat(), steps_per_epoch=10, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all() and history["loss"][1] < history["loss"][0]


def test_loss_is_the_weighted_sum_of_its_terms():
    model = randomized(tiny_model(name="model"))
    trainer = Trainer(model, all_objectives())
    batch = {name: tf.constant(value) for name, value in tiny_batch(4).items()}
    local, figures = trainer.compute_losses(batch, training=False)
    expected = sum(term.weight * figures[f"{term.name}_loss"][0] for term in trainer.objectives)
    np.testing.assert_allclose(float(figures["loss"][0]), float(expected), rtol=1e-6)
    np.testing.assert_allclose(float(local), float(expected), rtol=1e-6)


def test_objectives_need_different_names():
    with pytest.raises(ConfigError, match="different names"):
        Trainer(tiny_model(), [ContrastiveObjective(), ContrastiveObjective()])


def test_each_replica_drops_its_own_places(two_devices):
    with two_devices.scope():
        model = tiny_model(dropout=0.5)
        trainer = Trainer(model, [CaptioningObjective()])
        trainer.compile(optimizer=keras.optimizers.SGD(0.0))
    trainer.fit(tf.data.Dataset.from_tensors(tiny_batch(4)), steps_per_epoch=1, verbose=0)
    states = [v for v in model.non_trainable_variables if v.path.endswith("seed_generator_state")]
    assert states
    for variable in states:
        first, second = (part.numpy() for part in two_devices.experimental_local_results(variable.value))
        assert first[0] != second[0] and first[1] == second[1]
    before = [[part.numpy() for part in two_devices.experimental_local_results(variable.value)] for variable in states]
    separate_seeds(two_devices, model)
    after = [[part.numpy() for part in two_devices.experimental_local_results(variable.value)] for variable in states]
    np.testing.assert_array_equal(before, after)


def test_a_validation_draws_the_same_negatives_each_time():
    model = randomized(tiny_model(name="model"))
    trainer = Trainer(model, [MatchingObjective(seed=3)])
    batch = {name: tf.constant(value) for name, value in tiny_batch(8).items()}
    state = trainer.seed_generators[0].state.numpy()
    losses = [float(trainer.compute_losses(batch, training=False)[0]) for _ in range(3)]
    assert len(set(losses)) == 1
    np.testing.assert_array_equal(trainer.seed_generators[0].state.numpy(), state)


def test_smoothing_has_no_place_in_a_validation():
    model = randomized(tiny_model(name="model"))
    batch = {name: tf.constant(value) for name, value in tiny_batch(4).items()}

    def loss(training, **options):
        return float(Trainer(model, [ContrastiveObjective(**options)]).compute_losses(batch, training=training)[0])

    assert loss(False, label_smoothing=0.2) == loss(False) and loss(True, label_smoothing=0.2) != loss(True)


def test_impossible_contrastive_losses():
    for options in ({"loss": "hinge"}, {"loss": "sigmoid", "label_smoothing": 0.1}):
        with pytest.raises(ConfigError, match="impossible contrastive loss"):
            ContrastiveObjective(**options)
