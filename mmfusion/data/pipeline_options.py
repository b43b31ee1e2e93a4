"""What the training and evaluation pipelines share."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

Tokenizer = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""From ``string[B]`` to token ids ``int32[B, T]`` and their mask ``bool[B, T]``."""


def pipeline_options() -> tf.data.Options:
    """Options of every dataset."""
    options = tf.data.Options()
    options.deterministic = True
    # Shards are ours: each worker's dataset holds its own part already.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
