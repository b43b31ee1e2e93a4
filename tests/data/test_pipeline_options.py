"""What all pipelines share."""

from __future__ import annotations

import tensorflow as tf

from mmfusion.data.pipeline_options import pipeline_options


def test_datasets_are_deterministic_and_never_sharded_again():
    options = tf.data.Dataset.range(3).with_options(pipeline_options()).options()
    assert options.deterministic is True
    assert options.experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.OFF
