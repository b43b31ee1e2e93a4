"""Drops whole residual branches in training."""

from __future__ import annotations

from typing import Any

import keras
from keras import KerasTensor, ops


@keras.saving.register_keras_serializable(package="mmfusion")
class StochasticDepth(keras.layers.Layer):
    """Sets a branch to zero for a random share of the examples and scales up the others, in training only.

    Args:
        rate: Share of the examples, 0 to 1 exclusive.
        seed: Seed of the drawing.

    Call arguments:
        branch: ``float[B, ...]``, what is to be added to the residual stream.
        training: Whether it is active.

    Returns:
        ``float[B, ...]``.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import StochasticDepth
        >>> float(StochasticDepth(rate=0.5)(np.ones((1, 2, 2), "float32"))[0, 0, 0])
        1.0

    Source: Huang et al. 2016 (arXiv:1603.09382).
    """

    def __init__(self, *, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(seed) if rate else None
        self.built = True

    def call(self, branch: KerasTensor, training: bool | None = None) -> KerasTensor:
        """Drops; see the class."""
        if not training or not self.rate:
            return branch
        shape = (ops.shape(branch)[0],) + (1,) * (len(branch.shape) - 1)
        kept = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return branch * ops.cast(kept, branch.dtype) / (1.0 - self.rate)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
