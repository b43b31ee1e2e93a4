"""Callbacks: what is not finite is neither saved nor chosen; checkpoints come by steps, by the clock and on request."""

from __future__ import annotations

import json
import math

import keras
import numpy as np
import pytest

from mmfusion.errors import ConfigError, DataError
from mmfusion.training import Checkpoints
from mmfusion.training.callbacks import Checkpointing, JsonLinesLog, Validation

_DIVERGED = r"training diverged: {} is not finite \[step 2\].*checkpoint is step 1"


def model():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    network.compile(optimizer="sgd", loss="mse")
    return network


def checkpointing(folder, **options):
    return Checkpointing(
        Checkpoints(folder, keep=9), lambda: [keras.Variable([1.0], name="w")], steps_per_epoch=10, progress=dict, **options
    )


def validation(tmp_path, figures, **options):
    answers = iter(figures)
    callback = Validation(lambda: next(answers), model(), tmp_path / "best.keras", epochs=9, **options)
    callback.set_model(model())
    return callback


def test_by_steps(tmp_path):
    callback = checkpointing(tmp_path, every=4, minutes=1e-9)
    for batch in range(10):
        callback.on_train_batch_end(batch, {"loss": 1.0})
    callback.on_epoch_end(0)
    assert callback.checkpoints.steps() == [4, 8, 10]


def test_by_the_clock(tmp_path):
    callback = checkpointing(tmp_path, minutes=1e-9)
    for batch in range(3):
        callback.on_train_batch_end(batch, {"loss": 1.0})
    assert callback.checkpoints.steps() == [1, 2, 3]
    late = checkpointing(tmp_path / "late", minutes=60.0)
    late.on_train_batch_end(0, {"loss": 1.0})
    assert late.checkpoints.steps() == []


def test_on_request(tmp_path):
    asked = []
    callback = checkpointing(tmp_path, stop_requested=lambda: bool(asked))
    callback.on_train_batch_end(0, {"loss": 1.0})
    assert callback.checkpoints.steps() == []
    asked.append(True)
    with pytest.raises(KeyboardInterrupt):
        callback.on_train_batch_end(1, {"loss": 1.0})
    assert callback.checkpoints.steps() == [2]


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_never_saved(name, value, tmp_path):
    callback = checkpointing(tmp_path, every=1)
    callback.on_train_batch_end(0, {"loss": 1.0, "gradient_norm": 1.0})
    with pytest.raises(DataError, match=_DIVERGED.format(name.replace("_", " "))):
        callback.on_train_batch_end(1, {"loss": 1.0, "gradient_norm": 1.0, name: value})
    assert callback.checkpoints.steps() == [1]


@pytest.mark.parametrize(("monitor", "figures", "best"), [("val_rsum", [1.0, 3.0, 2.0], 1), ("val_loss", [3.0, 1.0, 2.0], 1)])
def test_the_best_model_is_kept(monitor, figures, best, tmp_path):
    callback = validation(tmp_path, [{monitor: value} for value in figures], monitor=monitor)
    logs = [{} for _ in figures]
    for epoch, log in enumerate(logs):
        callback.best_model.weights[0].assign(np.full((2, 1), epoch))
        callback.on_epoch_end(epoch, log)
    assert callback.state["best_epoch"] == best and [log[monitor] for log in logs] == figures
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "best.keras").weights[0], np.full((2, 1), best))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_is_chosen_by_what_is_not_finite(value, tmp_path):
    callback = validation(tmp_path, [{"val_rsum": value}], monitor="val_rsum")
    with pytest.raises(DataError, match=r"not finite \[validation of epoch 1\].*a number for val_rsum"):
        callback.on_epoch_end(0, {})
    assert callback.state["best"] is None and not (tmp_path / "best.keras").exists()


def test_a_figure_that_is_not_there(tmp_path):
    callback = validation(tmp_path, [{"val_loss": 1.0}], monitor="val_rsum")
    with pytest.raises(ConfigError, match="expected val_loss"):
        callback.on_epoch_end(0, {})


def test_patience(tmp_path):
    callback = validation(tmp_path, [{"val_loss": value} for value in (1.0, 2.0, 3.0)], monitor="val_loss", patience=2)
    for epoch in range(3):
        assert not callback.model.stop_training
        callback.on_epoch_end(epoch, {})
    assert callback.model.stop_training


def test_the_log_is_json_whatever_the_figures(tmp_path):
    log = JsonLinesLog(tmp_path / "train.jsonl", every=1)
    log.set_model(model())
    log.on_train_batch_end(0, {"loss": 2.0, "gradient_norm": math.nan})
    (line,) = (tmp_path / "train.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["loss"] == 2.0 and row["gradient_norm"] is None


def test_a_resumed_log_drops_what_comes_again(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    JsonLinesLog(path, start_step=2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [item.name for item in tmp_path.iterdir()] == ["train.jsonl"]
