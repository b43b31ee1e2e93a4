"""Validates with the measures that people choose models by, and keeps the best model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from mmfusion.config import lower_is_better
from mmfusion.errors import CheckpointError, ConfigError, DataError


class Validation(keras.callbacks.Callback):
    """Runs `validate` at the ends of epochs, adds its figures to the logs, keeps the best model and stops when it is time.

    Place it before the callbacks that log.

    Args:
        validate: Returns figures, named ``val_…``.
        model: The model to save.
        path: Where the best model goes, ``….keras``.
        monitor: The figure to choose by, ``"val_rsum"`` say.
        epochs: Epochs of the whole training; the last one is always validated.
        every: Epochs between validations. Default 1.
        patience: Validations without improvement before training stops; None never stops. Default None.
        state: The state of an earlier run of this callback, to go on from.

    Raises:
        ConfigError: If the monitored figure is not among the validation's.
        DataError: If it is not finite.
    """

    def __init__(
        self,
        validate: Callable[[], dict[str, float]],
        model: keras.Model,
        path: str | Path,
        *,
        monitor: str,
        epochs: int,
        every: int = 1,
        patience: int | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.validate = validate
        self.best_model = model
        self.path = Path(path)
        self.monitor = monitor
        self.epochs = epochs
        self.every = every
        self.patience = patience
        self.state: dict[str, Any] = {"best": None, "best_epoch": None, "waited": 0, **(state or {})}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Validates when due; see the class."""
        if (epoch + 1) % self.every and epoch + 1 != self.epochs:
            return
        figures = self.validate()
        if logs is not None:
            logs.update(figures)
        if self.monitor not in figures:
            raise ConfigError(
                "the figure to choose by is not among the validation's",
                where=f"train.monitor={self.monitor}",
                expected=", ".join(sorted(figures)),
                fix="set train.monitor to one of them",
            )
        value, best = figures[self.monitor], self.state["best"]
        if not math.isfinite(value):
            raise DataError(
                "the figure to choose the best model by is not finite",
                where=f"validation of epoch {epoch + 1}",
                expected=f"a number for {self.monitor}",
                found=value,
                fix="lower train.learning_rate, in another --run folder",
            )
        improved = best is None or (value < best if lower_is_better(self.monitor) else value > best)
        if improved:
            self.state.update(best=value, best_epoch=epoch, waited=0)
            save_model(self.best_model, self.path)
            return
        self.state["waited"] += 1
        if self.patience is not None and self.state["waited"] >= self.patience:
            self.model.stop_training = True


def save_model(model: keras.Model, path: Path) -> None:
    """Saves a model as one ``.keras`` file, complete or not at all.

    Args:
        model: The model.
        path: The file; an older one is replaced only when the new one is whole.

    Raises:
        CheckpointError: If it cannot be written; an older file is untouched.

    Example:
        >>> import keras, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.keras"
        >>> save_model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), path)
        >>> path.is_file()
        True
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        model.save(partial)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            "cannot write the model", where=path, found=error.strerror or error, fix="make room and start again: it continues"
        ) from error
