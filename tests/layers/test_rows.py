"""Tokens as rows: what a layer makes of them stays the same, and TensorFlow makes one operator of it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import tensorflow_only, value_and_gradients
from keras import ops
from layer_reference import stream, to_numpy

from mmfusion.layers import FeedForward
from mmfusion.layers.kernels.tiling import traced_for_elsewhere
from mmfusion.layers.rows import by_rows


@pytest.mark.parametrize("examples", [0, 2])
def test_rows_are_tokens_in_their_places(examples):
    tokens, layer = stream(2, 3, 4)[:examples], keras.layers.Dense(5, activation="tanh")
    layer.build((None, 4))
    expected = np.tanh(tokens @ to_numpy(layer.kernel) + to_numpy(layer.bias))
    found = by_rows(layer, ops.convert_to_tensor(tokens))
    assert tuple(found.shape) == (examples, 3, 5)
    np.testing.assert_allclose(to_numpy(found), expected, atol=1e-6)
    _, (gradient,) = value_and_gradients(lambda x: ops.sum(by_rows(layer, x) ** 2), [tokens])
    np.testing.assert_allclose(gradient, 2 * expected * (1 - expected**2) @ to_numpy(layer.kernel).T, atol=1e-5)


def operators(function, *arguments) -> list[str]:
    """What TensorFlow runs of a function once it has rewritten its graph: fused products with what is in them."""
    from tensorflow.python.eager import context

    # It tells of what it rewrites, which it does at the first call.
    context.enable_run_metadata()
    function(*arguments)
    graphs = context.export_run_metadata().function_graphs
    context.disable_run_metadata()
    nodes = [node for graph in graphs for node in graph.post_optimization_graph.node]
    return [" ".join([node.op.lstrip("_"), *(part.decode() for part in node.attr["fused_ops"].list.s)]) for node in nodes]


@tensorflow_only
def test_product_bias_and_activation_are_one_operator():
    import tensorflow as tf

    layer = FeedForward(hidden_dim=256, activation="gelu")
    layer.build((None, None, 64))
    tokens = tf.constant(stream(2, 9, 64))

    def function():
        return tf.function(lambda x: layer(x, training=False), autograph=False, input_signature=[tf.TensorSpec([None, None, 64])])

    found = operators(function(), tokens)
    assert "FusedMatMul BiasAdd GeluExact" in found and "FusedMatMul BiasAdd" in found and "Erf" not in found
    with traced_for_elsewhere():
        apart = operators(function(), tokens)
    assert "FusedMatMul BiasAdd GeluExact" not in apart
