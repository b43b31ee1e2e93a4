"""A function as a graph, on the backend that Keras runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor


def compiled(function: Callable[..., Any], variables: Sequence[keras.Variable] = ()) -> Callable[..., Any]:
    """A function of positional tensors (or None, or nested ones) as a graph: `tf.function`, or `jax.jit`; on others as it is.

    It is traced anew for each size and dtype, so whoever calls it keeps sizes few.

    Args:
        function: What to run. It may read `variables`, whose newest values always count, and change none.
        variables: Weights that it reads: on JAX those left out would stay what they were when it was traced.

    Returns:
        The graph.

    Example:
        >>> import keras
        >>> from mmfusion.decoding import compiled
        >>> weight = keras.Variable(2.0)
        >>> double = compiled(lambda x: x * weight, [weight])
        >>> float(double(keras.ops.ones(()))), weight.assign(3.0) is None, float(double(keras.ops.ones(())))
        (2.0, False, 3.0)
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _traced(function)
    if backend != "jax":
        return function
    import jax

    variables = list(variables)

    def with_values(values: list[Any], arguments: tuple[Any, ...]) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*arguments)

    traced = jax.jit(with_values)
    return lambda *arguments: traced([variable.value for variable in variables], arguments)


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    graphs: dict[Any, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        flat = keras.tree.flatten(arguments)
        given = [None if leaf is None else tf.convert_to_tensor(leaf) for leaf in flat]
        specs = tuple(None if leaf is None else tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in given)
        if specs not in graphs:

            def packed(*tensors: Any) -> Any:
                remaining = iter(tensors)
                leaves = [None if spec is None else next(remaining) for spec in specs]
                return function(*keras.tree.pack_sequence_as(arguments, leaves))

            # Traced here and not at a call, since TensorFlow warns of many graphs that come of one line, as these do.
            wanted = [spec for spec in specs if spec is not None]
            graphs[specs] = tf.function(packed, autograph=False).get_concrete_function(*wanted)
        return graphs[specs](*[leaf for leaf in given if leaf is not None])

    return call


def is_eager(tensor: KerasTensor) -> bool:
    """Whether a tensor has values now: it is not one of a graph that is being traced, nor a symbolic one of Keras."""
    backend = keras.backend.backend()
    if keras.backend.is_keras_tensor(tensor):
        return False
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly()
    if backend == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return True
