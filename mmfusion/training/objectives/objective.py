"""What every objective returns, and what it must be able to do."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import tensorflow as tf

from mmfusion.training.forward_pass import ForwardPass


class Share(NamedTuple):
    """This replica's share of a mean over all replicas: ``sum of totals / sum of counts``.

    Attributes:
        total: ``float32[]``.
        count: ``float32[]``.
    """

    total: tf.Tensor
    count: tf.Tensor


class ObjectiveOutput(NamedTuple):
    """What an objective says of one batch.

    Attributes:
        loss: The share of its loss.
        metrics: Shares of further figures to report, by name.
    """

    loss: Share
    metrics: dict[str, Share]


class Objective(Protocol):
    """A term of the loss: reads a `ForwardPass`, says a loss and figures.

    Attributes:
        name: Short name in logs, as in ``contrastive_loss``.
        weight: Factor in the total loss.
        figures: Names of all figures that it reports, its loss first.
    """

    name: str
    weight: float
    figures: tuple[str, ...]

    def __call__(self, forward: ForwardPass) -> ObjectiveOutput:
        """Computes the term for one batch."""
        ...


def mean_share(values: tf.Tensor) -> Share:
    """The share of a plain mean over examples ``float[b]``."""
    values = tf.cast(values, tf.float32)
    return Share(tf.reduce_sum(values), tf.cast(tf.size(values), tf.float32))
