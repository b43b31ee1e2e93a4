"""Goes back to the last good weights when the loss blows up."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from mmfusion.errors import ConfigError, DataError
from mmfusion.training.adjustable_rate import AdjustableRate


class _Snapshot(NamedTuple):
    """Values of all variables, on the host, and the step after which they were taken."""

    step: int
    values: list[np.ndarray]


class LossRecovery(keras.callbacks.Callback):
    """Restores weights and optimizer when a step's loss blows up, leaves the batch out, and goes on with the next.

    A loss has blown up when it (or the gradient's norm) is not finite, or when it exceeds ``median + max(threshold · spread,
    minimum_rise)`` of the last `window` good losses, where ``spread = max(1.4826 · MAD, 2 % of |median|)`` and MAD is the
    median absolute deviation. A loss that has converged hardly spreads, so a rise that is far in spreads may be nothing in
    itself. The default of `minimum_rise` is for cross-entropies in nats: one hard pair of 16, from certain to below a
    hundredth, raises their mean by ``ln(100) / 16 = 0.29``, which is chance; a model that has forgotten what it knew is above
    ``ln 2 = 0.69``, which is guessing yes or no. What is restored was taken at least `snapshot_every` good steps earlier, so
    that steps that led there are undone too; the batches since are left out. The step count and the rate's schedule go on.
    Random states are not restored.

    Works with any Keras model. Place it before other callbacks: they then see the figures without the step that was undone.

    Args:
        threshold: How many spreads above the median a loss may be. Default 8.
        minimum_rise: How far above the median a loss must be in any case, in its own unit, 0 or more; a loss of another scale
            than a cross-entropy's needs another. Default 0.3.
        window: Good losses that are remembered. Default 50.
        history: Good losses that are needed before a finite one can be too high. Default 10.
        snapshot_every: Good steps between snapshots; each is a copy of weights and optimizer in host memory. Default 20.
        max_recoveries: After so many the next blow-up ends the training. Default 3.
        rate_factor: The learning rate is multiplied by this at each recovery, above 0 to 1. Default 1.
        start_step: Steps done before. Default 0.
        log: Called with ``"recovery"`` and what happened. Default: nobody.
        state: The `state` of an earlier run of this callback, to go on from.

    Raises:
        ConfigError: If an option is out of range, or the rate is to change and the optimizer's is a schedule other than
            `AdjustableRate`.
        DataError: When the loss blows up once more than `max_recoveries`.

    Example:
        >>> import keras, numpy as np
        >>> from mmfusion.training.callbacks import LossRecovery
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse")
        >>> inputs, targets = np.ones((40, 2), "float32"), np.ones((40, 1), "float32")
        >>> targets[30] = np.inf
        >>> recovery = LossRecovery(snapshot_every=5)
        >>> _ = model.fit(inputs, targets, batch_size=1, shuffle=False, verbose=0, callbacks=[recovery])
        >>> recovery.state["recoveries"], bool(np.isfinite(model.get_weights()[0]).all())
        (1, True)

    Source: restarting before a spike and leaving out its batches: Chowdhery et al., PaLM, 2022 (arXiv:2204.02311), section 5.1.
    """

    def __init__(
        self,
        *,
        threshold: float = 8.0,
        minimum_rise: float = 0.3,
        window: int = 50,
        history: int = 10,
        snapshot_every: int = 20,
        max_recoveries: int = 3,
        rate_factor: float = 1.0,
        start_step: int = 0,
        log: Callable[[str, dict[str, Any]], None] | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        whole = min(window, history, snapshot_every) >= 1 and max_recoveries >= 0
        if threshold <= 0 or minimum_rise < 0 or not whole or not 0.0 < rate_factor <= 1.0:
            raise ConfigError(
                "impossible recovery",
                expected="a positive threshold, a minimum_rise from 0 on, whole steps, and a rate_factor above 0, at most 1",
                found=f"threshold={threshold}, minimum_rise={minimum_rise}, window={window}, history={history}, "
                f"snapshot_every={snapshot_every}, max_recoveries={max_recoveries}, rate_factor={rate_factor}",
            )
        self.threshold = threshold
        self.minimum_rise = minimum_rise
        self.history = history
        self.snapshot_every = snapshot_every
        self.max_recoveries = max_recoveries
        self.rate_factor = rate_factor
        self.log = log
        state = state or {}
        self.losses: deque[float] = deque(state.get("losses", ()), maxlen=window)
        self.recoveries = int(state.get("recoveries", 0))
        self.rate = float(state.get("rate", 1.0))
        self.step = start_step
        self._good: _Snapshot | None = None
        self._candidate: _Snapshot | None = None
        self._since = 0
        self._mean, self._seen = 0.0, 0
        self._undone: dict[str, float] | None = None
        self._full_rate: float | None = None

    @property
    def state(self) -> dict[str, Any]:
        """What another run goes on from, as JSON knows it; the snapshots are taken anew."""
        return {"losses": list(self.losses), "recoveries": self.recoveries, "rate": self.rate}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes the first snapshot."""
        if self.rate_factor < 1.0:
            self._set_rate(self.rate)
        if self._good is None:
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self._good = self._candidate = self._snapshot()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keras's running means begin anew."""
        self._mean, self._seen = 0.0, 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the step's loss; see the class."""
        logs = {} if logs is None else logs
        self.step += 1
        self._undone = None
        figures = self._step_figures(logs)
        reason = self._blown_up(figures)
        if reason is not None:
            self._recover(figures, reason, logs)
            return
        self.losses.append(figures["loss"])
        self._since += 1
        if self._since >= self.snapshot_every:
            # What came after the candidate was good, so it is good too.
            self._good, self._candidate, self._since = self._candidate, self._snapshot(), 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes the undone step out of the epoch's figures, where it was the last."""
        if self._undone is not None and logs is not None:
            logs.update(self._undone)

    def _step_figures(self, logs: dict[str, Any]) -> dict[str, float]:
        figures = getattr(self.model, "step_figures", None)
        if figures is not None:
            return {name: float(figures[name]) for name in ("loss", "gradient_norm") if name in figures}
        # Keras says the mean since the epoch began: what this step added to it is the step's own.
        mean, self._seen = float(logs["loss"]), self._seen + 1
        loss = mean * self._seen - self._mean * (self._seen - 1)
        self._mean = mean
        return {"loss": loss}

    def _blown_up(self, figures: dict[str, float]) -> str | None:
        for name, value in figures.items():
            if not math.isfinite(value):
                return f"{name.replace('_', ' ')} is not finite"
        if len(self.losses) >= self.history and is_spike(figures["loss"], self.losses, self.threshold, self.minimum_rise):
            return "loss far above its median"
        return None

    def _recover(self, figures: dict[str, float], reason: str, logs: dict[str, Any]) -> None:
        if self.recoveries >= self.max_recoveries or self._good is None:
            raise DataError(
                f"training diverged: {reason}",
                where=f"step {self.step}",
                found=f"loss {figures['loss']:.6g}, after {self.recoveries} recoveries",
                fix="lower train.learning_rate or set train.clip_norm, in another --run folder",
            )
        self.recoveries += 1
        for variable, value in zip(self._variables(), self._good.values, strict=True):
            variable.assign(value)
        # Until it is confirmed by good steps, a snapshot from here on may not be good either.
        self._candidate, self._since = self._good, 0
        if self.rate_factor < 1.0:
            self.rate *= self.rate_factor
            self._set_rate(self.rate)
        self._forget_step(logs)
        if self.log is not None:
            loss = figures["loss"] if math.isfinite(figures["loss"]) else None
            event = {"step": self.step, "reason": reason, "loss": loss, "restored_steps_back": self.step - self._good.step}
            self.log("recovery", {**event, "recoveries": self.recoveries, "rate_factor": self.rate})

    def _forget_step(self, logs: dict[str, Any]) -> None:
        logs.clear()
        forget = getattr(self.model, "forget_step", None)
        if forget is None:
            self.model.reset_metrics()
            self._mean, self._seen = 0.0, 0
        else:
            logs.update(forget())
        self._undone = dict(logs)

    def _snapshot(self) -> _Snapshot:
        return _Snapshot(self.step, [np.array(variable.numpy()) for variable in self._variables()])

    def _variables(self) -> Sequence[keras.Variable]:
        optimizer = self.model.optimizer
        own = [v for v in optimizer.variables if v is not optimizer.iterations and not v.path.endswith("learning_rate")]
        return [*self.model.weights, *own]

    def _set_rate(self, share: float) -> None:
        optimizer = self.model.optimizer
        schedule = getattr(optimizer, "_learning_rate", None)
        if isinstance(schedule, AdjustableRate):
            schedule.share.assign(share)
        elif isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            raise ConfigError(
                "the learning rate cannot be lowered",
                where="rate_factor",
                expected="a number, or a schedule in an AdjustableRate",
                found=type(schedule).__name__,
                fix="wrap the schedule, or set rate_factor=1",
            )
        else:
            if self._full_rate is None:
                self._full_rate = float(optimizer.learning_rate)
            optimizer.learning_rate = share * self._full_rate


def is_spike(loss: float, losses: Sequence[float], threshold: float, minimum_rise: float = 0.0) -> bool:
    """Whether a loss is far above those before it, ``loss > median + max(threshold · spread, minimum_rise)``.

    ``spread = max(1.4826 · MAD, 0.02 · |median|)``, where MAD is the median absolute deviation.

    Args:
        loss: The loss in question.
        losses: Earlier good losses.
        threshold: How many spreads are far.
        minimum_rise: How far it must be in any case. Default 0.

    Returns:
        Whether it is.

    Example:
        >>> is_spike(2.0, [1.0, 1.1, 0.9], 8.0), is_spike(1.5, [1.0, 1.1, 0.9], 8.0)
        (False, False)
        >>> is_spike(3.0, [1.0, 1.1, 0.9], 8.0), is_spike(1.1, [1.0, 1.0, 1.0], 8.0)
        (True, False)
        >>> is_spike(0.013, [0.01, 0.01, 0.01], 8.0), is_spike(0.013, [0.01, 0.01, 0.01], 8.0, minimum_rise=0.3)
        (True, False)
    """
    values = np.asarray(losses, "float64")
    median = float(np.median(values))
    # For a normal distribution 1.4826 · MAD is its standard deviation; losses that hardly differ leave a floor.
    spread = max(1.4826 * float(np.median(np.abs(values - median))), 0.02 * abs(median))
    return loss > median + max(threshold * spread, minimum_rise)
