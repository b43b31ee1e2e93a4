"""Gradients and graphs on whichever backend Keras runs, so that tests of layers and losses know no framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
# For graphs to look into, replicas, files of TensorFlow's own.
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow alone")


def to_numpy(value: Any) -> np.ndarray:
    """Float32 of any tensor, bfloat16 too."""
    return keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))


def graph(
    function: Callable[..., Any], *signature: tuple[tuple[int | None, ...], str], jit_compile: bool = False
) -> Callable[..., Any]:
    """The function of tensors as a graph: `tf.function`, or `jax.jit`, which always compiles and traces each size anew.

    Args:
        function: Of positional tensors.
        *signature: Shape, `None` where unknown, and dtype of each; without any, those of the first call.
        jit_compile: TensorFlow too compiles, by XLA.
    """
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    specs = [tf.TensorSpec(shape, dtype) for shape, dtype in signature]
    return tf.function(function, input_signature=specs or None, jit_compile=jit_compile)


def value_and_gradients(
    function: Callable[..., Any], arrays: Sequence[Any], weights: Sequence[keras.Variable] = (), *, jit_compile: bool = False
) -> tuple[float, list[np.ndarray]]:
    """A scalar function of tensors, and its gradient by each of them and by each weight.

    Args:
        function: Of as many tensors as there are arrays; returns one number.
        arrays: Of a float dtype each, NumPy's or the backend's own (bfloat16, say).
        weights: A layer's `trainable_weights`, which `function` uses.
        jit_compile: By XLA; otherwise eagerly.

    Returns:
        The value, and `float32` gradients: of the arrays, then of the weights; zeros where the value does not depend on it.
    """
    tensors = [keras.ops.convert_to_tensor(x) for x in arrays]
    if BACKEND == "jax":
        value, gradients = _on_jax(function, tensors, list(weights), jit_compile)
    else:
        value, gradients = _on_tensorflow(function, tensors, list(weights), jit_compile)
    return float(value), [to_numpy(x) for x in gradients]


def _on_jax(function: Callable[..., Any], tensors: list, weights: list, jit_compile: bool) -> tuple[Any, list]:
    import jax

    def call(tensors: list, values: list) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
            return function(*tensors)

    differentiate = jax.value_and_grad(call, argnums=(0, 1))
    if jit_compile:
        differentiate = jax.jit(differentiate)
    value, (of_tensors, of_weights) = differentiate(tensors, [weight.value for weight in weights])
    return value, [*of_tensors, *of_weights]


def _on_tensorflow(function: Callable[..., Any], tensors: list, weights: list, jit_compile: bool) -> tuple[Any, list]:
    import tensorflow as tf

    def differentiate(*tensors: Any) -> tuple[Any, list]:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        # Zeros for what is not connected are made of TensorFlow variables alone.
        sources = [*tensors, *(weight.value for weight in weights)]
        gradients = tape.gradient(value, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return value, [tf.convert_to_tensor(x) for x in gradients]  # of an embedding they are slices

    return (tf.function(differentiate, jit_compile=True) if jit_compile else differentiate)(*tensors)
