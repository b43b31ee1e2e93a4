"""A runtime's step of decoding as a function that a graph can call."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from mmfusion.export.runtime import Runtime

STEP = "caption_step"
LOGITS = "logits"


class PortableStep:
    """``(token_ids int32[N], state) -> (logits float[N, V], state)``, as decoders take it, eagerly and in `tf.function`.

    In a graph all but the step is TensorFlow's: a loop around the runtime costs no Python but the runtime's own call.

    Args:
        runtime: What computes.
        carried: Names of the state's tensors, each with the name of the output that follows it, or None for what stays as it is,
            which is handed back untouched, so that no decoder moves it.
        vocabulary_size: V.

    Attributes:
        error: What the runtime last failed with, which a graph does not hand on.
    """

    def __init__(self, runtime: Runtime, carried: Mapping[str, str | None], vocabulary_size: int) -> None:
        self._runtime = runtime
        self._carried = {name: after for name, after in carried.items() if after}
        self._vocabulary_size = vocabulary_size
        self.error: Exception | None = None

    def __call__(self, token_ids: tf.Tensor, state: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Scores the next tokens."""
        names = list(state)

        def run(tokens: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
            try:
                answer = self._runtime.run(STEP, {"token_ids": tokens, **dict(zip(names, arrays, strict=True))})
            except Exception as error:  # each runtime has its own
                self.error = error
                raise
            return [answer[LOGITS], *(answer[after] for after in self._carried.values())]

        kinds = [tf.float32, *(state[name].dtype for name in self._carried)]
        logits, *new = tf.numpy_function(run, [token_ids, *state.values()], kinds)
        logits = tf.ensure_shape(logits, (token_ids.shape[0], self._vocabulary_size))
        after = {name: tf.ensure_shape(x, state[name].shape) for name, x in zip(self._carried, new, strict=True)}
        return logits, {name: after.get(name, value) for name, value in state.items()}
