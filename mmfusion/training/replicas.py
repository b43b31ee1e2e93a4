"""What one replica needs from the others; each is the identity where there is only one."""

from __future__ import annotations

import keras
import tensorflow as tf


def replica_count() -> int:
    """How many replicas take part in the current step.

    Example:
        >>> from mmfusion.training.replicas import replica_count
        >>> replica_count()
        1
    """
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def gather(value: tf.Tensor) -> tf.Tensor:
    """Concatenates ``[b, ...]`` of all replicas into ``[B, ...]``, with gradient.

    Args:
        value: This replica's rows.

    Returns:
        The rows of all replicas, in the order of their ids.
    """
    if replica_count() == 1:
        return value
    # What replicas exchange is a sum underneath, which knows neither bool nor, on CPUs, bfloat16.
    carried = {tf.bool: tf.int32, tf.bfloat16: tf.float32}.get(value.dtype, value.dtype)
    everyone = _context().all_gather(tf.cast(value, carried), axis=0)
    # The gradient of all_gather takes no sparse gradient (as tf.gather gives); that of reshape makes it dense.
    return tf.cast(tf.reshape(everyone, tf.shape(everyone)), value.dtype)


def row_offset(value: tf.Tensor) -> tf.Tensor:
    """``int32[]``, where this replica's rows begin in `gather`'s result (replicas have batches of one size)."""
    if replica_count() == 1:
        return tf.constant(0, tf.int32)
    return tf.cast(_context().replica_id_in_sync_group, tf.int32) * tf.shape(value)[0]


def sum_across(values: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums each tensor over all replicas, with gradient."""
    if replica_count() == 1:
        return values
    return list(_context().all_reduce(tf.distribute.ReduceOp.SUM, values))


def separate_seeds(strategy: tf.distribute.Strategy, model: keras.Model) -> None:
    """Gives each replica random numbers of its own for the layers of a model (dropout, stochastic depth).

    Keras mirrors the states of its seed generators, so that all replicas would drop the same places. Replica 0 keeps its
    state, which is also what a checkpoint saves; the others' follow from it, so calling this again changes nothing.

    Args:
        strategy: The strategy.
        model: The model, made in its scope.
    """
    for variable in model.non_trainable_variables:
        if not variable.path.endswith("seed_generator_state"):
            continue
        first, *others = strategy.experimental_local_results(variable.value)
        seed, count = (int(number) for number in first.numpy())
        for replica, state in enumerate(others, start=1):
            state.assign([(seed + replica * _SEED_STEP) % 2**31, count])


# Far from what people choose as seeds, so that runs of neighbouring seeds do not share streams.
_SEED_STEP = 0x61C88647


def _context() -> tf.distribute.ReplicaContext:
    context = tf.distribute.get_replica_context()
    if context is None:
        raise RuntimeError("needs a replica context: call it inside strategy.run")
    return context
