"""A log that any program can read: one JSON object a line."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import keras


class JsonLinesLog(keras.callbacks.Callback):
    """Appends a line every `every` steps and at each epoch's end.

    Lines have ``kind`` (``"step"``, ``"epoch"``, or what `write` was told), ``step``, ``epoch``, ``time`` (seconds since 1970),
    ``learning_rate`` and the figures (running means since the epoch began; null for what is not finite). A resumed training
    drops lines past its starting step, so that no step stands there twice.

    Args:
        path: The file; it is appended to.
        start_step: Steps done before.
        every: Steps between lines. Default 20.
    """

    def __init__(self, path: str | Path, *, start_step: int = 0, every: int = 20) -> None:
        super().__init__()
        self.path = Path(path)
        self.step = start_step
        self.every = every
        self._epoch = 0
        self._keep_until(start_step)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a step's line when one is due."""
        self.step += 1
        if self.step % self.every == 0:
            self._write("step", logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch's line."""
        self._write("epoch", logs)

    def _write(self, kind: str, logs: dict[str, Any] | None) -> None:
        rate = float(self.model.optimizer.learning_rate)
        self.write(kind, {"learning_rate": rate, **{name: float(value) for name, value in (logs or {}).items()}})

    def write(self, kind: str, content: dict[str, Any]) -> None:
        """Appends a line.

        Args:
            kind: What the line is about.
            content: Numbers, texts, and lists and dictionaries of them; what is not finite becomes null.
        """
        line = {"kind": kind, "step": self.step, "epoch": self._epoch, "time": round(time.time(), 3), **content}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_as_json(line)) + "\n")

    def _keep_until(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # a kill can leave half a line at the end
            if line.get("step", 0) <= step:
                lines.append(text)
        partial = self.path.with_name(f".partial-{self.path.name}")
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(self.path)


def _as_json(value: Any) -> Any:
    # JSON knows no NaN.
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
