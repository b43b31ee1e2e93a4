"""A learning rate's schedule that can be lowered while a training runs."""

from __future__ import annotations

from typing import Any

import keras
from keras import KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class AdjustableRate(keras.optimizers.schedules.LearningRateSchedule):
    """``share · schedule(step)``, where the share is a variable: changing it needs no new graph.

    Args:
        schedule: The schedule.

    Example:
        >>> import keras
        >>> from mmfusion.training import AdjustableRate
        >>> rate = AdjustableRate(keras.optimizers.schedules.CosineDecay(1.0, decay_steps=10))
        >>> _ = rate.share.assign(0.5)
        >>> round(float(rate(0)), 4), round(float(rate(5)), 4)
        (0.5, 0.25)
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.share = keras.Variable(1.0, trainable=False, dtype="float32", name="rate_share")

    def __call__(self, step: Any) -> KerasTensor:
        """The rate at a step."""
        return self.share * self.schedule(step)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"schedule": keras.optimizers.schedules.serialize(self.schedule)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AdjustableRate:
        """Rebuilds it from `get_config`."""
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]))
