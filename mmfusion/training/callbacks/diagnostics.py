"""Looks at a model's health at the ends of epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras


class Probe(Protocol):
    """Something that measures a model; see `mmfusion.training.diagnostics`.

    Attributes:
        name: Its name in the log.
    """

    name: str

    def __call__(self) -> dict[str, Any]:
        """What it measures: numbers, texts, and lists and dictionaries of them."""
        ...


class Diagnostics(keras.callbacks.Callback):
    """Asks probes every `every` epochs, and hands on what they say.

    Works with any Keras model. A probe with a method ``before_step`` has it called before the epoch's last step.

    Args:
        probes: What to ask, `AttentionProbe`, `GradientProbe`, `ModalityProbe` or anything with a name that can be called.
        every: Epochs between looks. Default 1.
        log: Called with ``"diagnostics"`` and ``{probe: report}``. Default: nobody.
        draw: Called after that. Default: nobody.

    Example:
        >>> import keras, numpy as np
        >>> from mmfusion.training.callbacks import Diagnostics
        >>> from mmfusion.training.diagnostics import GradientProbe
        >>> model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, name=f"dense_{i}") for i in range(3))])
        >>> model.compile("sgd", "mse")
        >>> x = y = np.ones((8, 4), "float32")
        >>> diagnostics = Diagnostics([GradientProbe(model, lambda: model.compute_loss(x, y, model(x)))])
        >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[diagnostics])
        >>> len(diagnostics.reports), diagnostics.reports[-1]["gradients"]["dense"]["flag"]
        (2, 'ok')
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        every: int = 1,
        log: Callable[[str, dict[str, Any]], None] | None = None,
        draw: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__()
        self.probes = list(probes)
        self.every = every
        self.log = log
        self.draw = draw
        self.reports: list[dict[str, Any]] = []
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Lets probes remember what was before the epoch's last step."""
        if (self._epoch + 1) % self.every == 0 and batch + 1 == self.params.get("steps"):
            for probe in self.probes:
                if hasattr(probe, "before_step"):
                    probe.before_step()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Asks the probes when due."""
        if (epoch + 1) % self.every:
            return
        report = {probe.name: probe() for probe in self.probes}
        self.reports.append(report)
        if self.log is not None:
            self.log("diagnostics", report)
        if self.draw is not None:
            self.draw()
