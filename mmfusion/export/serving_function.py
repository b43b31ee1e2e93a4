"""One signature of an export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class ServingFunction(NamedTuple):
    """One signature of an export.

    Attributes:
        function: From tensors, in the order of `inputs`, to a dictionary of tensors.
        inputs: Specs of the inputs; their names are the names that a request uses.
    """

    function: Callable[..., dict[str, tf.Tensor]]
    inputs: list[tf.TensorSpec]


def as_tf_function(serving: ServingFunction) -> Any:
    """A signature as a traced function, so that running a model in Python runs what an export runs."""
    return tf.function(serving.function, input_signature=serving.inputs, autograph=False)
