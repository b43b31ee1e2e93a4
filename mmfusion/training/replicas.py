"""What one replica needs from the others; each is the identity where there is only one."""

from __future__ import annotations

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
    return _context().all_gather(value, axis=0)


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


def _context() -> tf.distribute.ReplicaContext:
    context = tf.distribute.get_replica_context()
    if context is None:
        raise RuntimeError("needs a replica context: call it inside strategy.run")
    return context
