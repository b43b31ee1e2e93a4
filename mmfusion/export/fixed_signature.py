"""A signature of one batch size that answers any number of examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mmfusion.export.fixed_batch import FixedBatch


class FixedSignature:
    """Asks a signature of a fixed batch as often as there are examples for, see `FixedBatch`.

    Args:
        function: A loaded SavedModel's signature.
        size: Its batch size.

    Attributes:
        structured_input_signature: As the signature's, with the batch free.
        structured_outputs: As the signature's, with the batch free.
    """

    def __init__(self, function: Any, size: int) -> None:
        self._function = function
        self._batch = FixedBatch(self, size)
        positional, named = function.structured_input_signature
        self.structured_input_signature = positional, {name: _freed(spec) for name, spec in named.items()}
        self.structured_outputs = {name: _freed(spec) for name, spec in function.structured_outputs.items()}

    def __call__(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Named tensors of any number of examples to named tensors of as many."""
        arrays = {name: tf.convert_to_tensor(value).numpy() for name, value in inputs.items()}
        return {name: tf.constant(value) for name, value in self._batch.run("", arrays).items()}

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call, of the signature's own batch size."""
        answers = self._function(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in answers.items()}


def _freed(spec: tf.TensorSpec) -> tf.TensorSpec:
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, spec.name) if spec.shape.rank else spec
