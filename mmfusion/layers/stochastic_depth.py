"""Drops whole residual branches in training."""

from __future__ import annotations

from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.layers.checks import check_rate


@keras.saving.register_keras_serializable(package="mmfusion")
class StochasticDepth(keras.layers.Layer):
    """Sets a branch to zero for a random share of the examples and scales up the others, in training only.

    ``kept · branch / (1 - rate)`` with ``kept ~ Bernoulli(1 - rate)``, drawn once an example.

    Args:
        rate: Share of the examples, 0 to 1 exclusive.
        seed: Seed of the drawing. Default: a random one.

    Call arguments:
        branch: ``float[B, ...]``, what is to be added to the residual stream.
        training: Whether it is active. Default: what Keras's `fit` and `predict` say.

    Returns:
        ``float[B, ...]``.

    Raises:
        ConfigError: If the rate is not in ``[0, 1)``.

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
        check_rate(rate, "rate", self.name)
        self.seed_generator = keras.random.SeedGenerator(seed) if rate else None
        self.built = True

    def call(self, branch: KerasTensor, training: bool | None = None) -> KerasTensor:
        """Drops; see the class."""
        if not training or not self.rate:
            return branch
        # Selected, not multiplied: a dropped branch that overflowed stays dropped.
        shape = (ops.shape(branch)[0],) + (1,) * (len(branch.shape) - 1)
        kept = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return ops.where(kept, branch / (1.0 - self.rate), ops.zeros_like(branch))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
