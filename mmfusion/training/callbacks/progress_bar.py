"""A progress bar over the whole training, with an estimate of the time left."""

from __future__ import annotations

import sys
import time
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar(keras.callbacks.Callback):
    """Shows all steps of the training as one bar; a line an epoch stays on the screen.

    Where there is no terminal (a log file, CI), it prints a plain line every `plain_every` seconds instead.

    Args:
        total_steps: Steps of the whole training.
        start_step: Steps done before. Default 0.
        epochs: Epochs of the whole training.
        plain_every: Seconds between plain lines. Default 30.
    """

    def __init__(self, *, total_steps: int, epochs: int, start_step: int = 0, plain_every: float = 30.0) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.epochs = epochs
        self.start_step = start_step
        self.plain_every = plain_every
        self.step = start_step
        self.console = Console(file=sys.stderr)
        self._progress: Progress | None = None
        self._last_plain = time.monotonic()
        self._after_first: float | None = None
        self._epoch = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Shows the bar."""
        if self._progress is not None or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
        )
        self._task = self._progress.add_task("training", total=self.total_steps, completed=self.start_step, figures="")
        self._progress.start()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the bar."""
        self.step += 1
        if self._progress is not None:
            figures = f"loss {float((logs or {}).get('loss', float('nan'))):.3f}"
            self._progress.update(self._task, completed=self.step, figures=figures)
            return
        now = time.monotonic()
        if self._after_first is None:
            # The first step also builds the graph: it says nothing of the others.
            self._after_first = now
        elif now - self._last_plain >= self.plain_every:
            self._last_plain = now
            done = self.step - self.start_step - 1
            left = (now - self._after_first) / done * (self.total_steps - self.step)
            self.console.print(
                f"step {self.step}/{self.total_steps}, epoch {self._epoch + 1}/{self.epochs}, "
                f"loss {float((logs or {}).get('loss', float('nan'))):.3f}, about {_duration(left)} left"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Leaves a line with the epoch's figures."""
        figures = "  ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items() if _worth(name))
        self.console.print(f"epoch {epoch + 1}/{self.epochs}  {figures}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar off the screen, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _worth(name: str) -> bool:
    return name == "loss" or (name.endswith(("_loss", "rsum", "r10", "cider_d")) and name.startswith("val_"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
