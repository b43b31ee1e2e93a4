"""Norms of gradient, weights and update by depth, on a fixed batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mmfusion.training.diagnostics.depth_measures import depth_groups, depth_report


class GradientProbe:
    """Says how the gradient's norm changes from the last block of a stack to the first, and how far a step moves each block.

    A gradient that is over 100 times weaker in the first block than in the last is called vanishing, one over 100 times stronger
    exploding (answers: normalisation first, layer scale, warm-up, clipping). An update of about a thousandth of its weight a
    step is usual; far more is unstable, far less learns nothing.

    Args:
        model: The model, built; stacks are found by the numbers in the paths of its trainable weights (`depth_groups`).
        loss: Computes the loss of a fixed batch, ``float[]``, with TensorFlow.

    Returns:
        Calling it returns ``{stack: {"blocks", "gradient", "weight", "update" (‖update‖ / ‖weight‖), "flag"}}``. ``"update"`` is
        of the step between `before_step` and the call, None without one.

    Example:
        >>> import keras, numpy as np
        >>> from mmfusion.training.diagnostics import GradientProbe
        >>> model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, name=f"dense_{i}") for i in range(3))])
        >>> inputs = np.ones((2, 4), "float32")
        >>> report = GradientProbe(model, lambda: keras.ops.mean(model(inputs) ** 2))()
        >>> report["dense"]["blocks"], report["dense"]["flag"]
        (['0', '1', '2'], 'ok')

    Source: Glorot and Bengio, 2010, Understanding the difficulty of training deep feedforward neural networks.
    """

    name = "gradients"

    def __init__(self, model: keras.Model, loss: Callable[[], Any]) -> None:
        self.model = model
        self.loss = loss
        self._before: list[np.ndarray] | None = None

    def before_step(self) -> None:
        """Remembers the weights, so that the next call knows what a step did to them."""
        self._before = [weight.numpy() for weight in self.model.trainable_weights]

    def __call__(self) -> dict[str, dict[str, object]]:
        """Measures; see the class."""
        weights = self.model.trainable_weights
        with tf.GradientTape() as tape:
            loss = self.loss()
        gradients = tape.gradient(loss, [weight.value for weight in weights], unconnected_gradients=tf.UnconnectedGradients.ZERO)
        values = [weight.numpy() for weight in weights]
        updates = None
        if self._before is not None and len(self._before) == len(values):
            updates = [_norm(now - before) for now, before in zip(values, self._before, strict=True)]
        self._before = None
        return depth_report(
            depth_groups([weight.path.removeprefix(f"{self.model.name}/") for weight in weights]),
            [_norm(tf.convert_to_tensor(gradient)) for gradient in gradients],
            [_norm(value) for value in values],
            updates,
        )


def _norm(value: Any) -> float:
    return float(np.linalg.norm(np.asarray(value, "float64")))
