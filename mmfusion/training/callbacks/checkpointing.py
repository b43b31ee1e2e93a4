"""Saves checkpoints while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from mmfusion.training.checkpoints import Checkpoints


class Checkpointing(keras.callbacks.Callback):
    """Saves every `every` steps and at each epoch's end.

    Place it after the callbacks whose state `progress` reads, so that an epoch's checkpoint knows its validation.

    Args:
        checkpoints: Where to.
        variables: What to save.
        steps_per_epoch: Steps of an epoch.
        start_step: Steps done before. Default 0.
        every: Steps between checkpoints inside an epoch; None saves at the epochs' ends alone.
        progress: Says what else to remember.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        variables: Callable[[], list[keras.Variable]],
        *,
        steps_per_epoch: int,
        start_step: int = 0,
        every: int | None = None,
        progress: Callable[[], dict[str, Any]],
    ) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.variables = variables
        self.steps_per_epoch = steps_per_epoch
        self.step = start_step
        self.every = every
        self.progress = progress

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves inside an epoch when due."""
        self.step += 1
        # The epoch's last step is saved after validation, by on_epoch_end.
        if self.every and self.step % self.every == 0 and self.step % self.steps_per_epoch:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves at the end of an epoch."""
        self._save()

    def _save(self) -> None:
        self.checkpoints.save(self.step, self.variables(), self.progress())
