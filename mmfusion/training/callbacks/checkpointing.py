"""Saves checkpoints while training goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import keras

from mmfusion.errors import DataError
from mmfusion.training.checkpoints import Checkpoints


class Checkpointing(keras.callbacks.Callback):
    """Saves every `every` steps or `minutes`, at each epoch's end, and when the training is asked to stop.

    What is no longer finite is never saved: the training ends there, and its last good checkpoint stays the newest.
    Place it after the callbacks whose state `progress` reads, so that an epoch's checkpoint knows its validation.

    Args:
        checkpoints: Where to.
        variables: What to save.
        steps_per_epoch: Steps of an epoch.
        start_step: Steps done before. Default 0.
        every: Steps between checkpoints inside an epoch; None goes by the clock. Default None.
        minutes: Minutes between checkpoints inside an epoch where `every` is None. Default 10.
        progress: Says what else to remember.
        stop_requested: Whether to save and stop after the step that has just ended. Default: never.

    Raises:
        DataError: If loss or gradient are not finite.
        KeyboardInterrupt: After saving, when a stop was requested.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        variables: Callable[[], list[keras.Variable]],
        *,
        steps_per_epoch: int,
        start_step: int = 0,
        every: int | None = None,
        minutes: float = 10.0,
        progress: Callable[[], dict[str, Any]],
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.variables = variables
        self.steps_per_epoch = steps_per_epoch
        self.step = start_step
        self.every = every
        self.minutes = minutes
        self.progress = progress
        self.stop_requested = stop_requested
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves inside an epoch when due."""
        self.step += 1
        self._check_finite(logs or {})
        if self.step % self.steps_per_epoch == 0:
            return  # the epoch's last step is saved after validation, by on_epoch_end
        stop = self.stop_requested()
        by_clock = self.every is None and time.monotonic() - self._saved_at >= 60.0 * self.minutes
        if stop or by_clock or (self.every and self.step % self.every == 0):
            self._save()
        if stop:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves at the end of an epoch."""
        self._save()
        if self.stop_requested():
            raise KeyboardInterrupt

    def _save(self) -> None:
        self.checkpoints.save(self.step, self.variables(), self.progress())
        self._saved_at = time.monotonic()

    def _check_finite(self, logs: dict[str, Any]) -> None:
        for name in ("loss", "gradient_norm"):
            value = float(logs.get(name, 0.0))
            if not math.isfinite(value):
                steps = self.checkpoints.steps()
                raise DataError(
                    f"training diverged: {name.replace('_', ' ')} is not finite",
                    where=f"step {self.step}",
                    found=value,
                    fix="lower train.learning_rate or set train.clip_norm, in another --run folder; "
                    + (f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"),
                )
