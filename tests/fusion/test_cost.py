"""What a style says of its cost is what its matrix products do."""

from __future__ import annotations

import numpy as np
import pytest
from gradients import tensorflow_only

from mmfusion.fusion import STYLES

D, DI = 16, 24
# In a loop TensorFlow counts one step.
OPTIONS = {"recurrent": {"unroll": True}}


def matrix_product_flops(function, *shapes):
    """Operations of all matrix products of a function, counted by TensorFlow in its graph."""
    import tensorflow as tf
    from tensorflow.python.profiler import model_analyzer, option_builder  # the only counter that TensorFlow has

    specs = [tf.TensorSpec(shape) for shape in shapes]
    graph = tf.function(function).get_concrete_function(*specs).graph
    options = option_builder.ProfileOptionBuilder(option_builder.ProfileOptionBuilder.float_operation())
    options = options.with_empty_output().with_accounted_types([".*"]).build()
    root = model_analyzer.profile(graph, options=options)
    return root.total_float_ops


@tensorflow_only
@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize(("text", "image"), [(8, 16), (32, 49)])
def test_flops_are_those_that_tensorflow_counts(style, text, image):
    fusion = STYLES[style](dim=D, image_dim=DI, depth=2, num_heads=4, **OPTIONS.get(style, {}))
    fusion.build((None, None, D), (None, None, DI))
    counted = matrix_product_flops(lambda a, b: fusion(a, b).text, (1, text, D), (1, image, DI))
    said = fusion.cost(text, image).flops
    # TensorFlow counts some elementwise operations too.
    assert said <= counted * 1.02 and counted <= said * 1.35, (said, counted)
    assert np.isfinite(said)


@tensorflow_only
@pytest.mark.parametrize("style", ["bottleneck", "qformer", "cross"])
def test_flops_of_a_window_and_of_what_sees_all(style):
    """Over more tokens than a block has: windows go block by block, leading tokens (bottleneck, queries) beside them."""
    fusion = STYLES[style](dim=D, image_dim=DI, depth=2, num_heads=4, kernel="local")
    fusion.build((None, None, D), (None, None, DI))
    sizes = (300, 200)
    counted = matrix_product_flops(lambda a, b: fusion(a, b).text, (1, sizes[0], D), (1, sizes[1], DI))
    said = fusion.cost(*sizes).flops
    assert said <= counted * 1.02 and counted <= said * 1.35, (said, counted)


VIEWS = ("Reshape", "Identity", "Squeeze", "ExpandDims", "StopGradient")


def numbers_kept(fusion, text: int, image: int) -> int:
    """What a forward pass leaves for its gradient: all that operations of the gradient take of it, weights and scalars apart."""
    import tensorflow as tf

    kept = {}

    def function(a, b):
        graph = tf.compat.v1.get_default_graph()
        output = fusion(a, b)
        loss = tf.reduce_sum(output.text**2) + tf.reduce_sum(output.image**2)
        count = len(graph.get_operations())
        gradients = tf.gradients(loss, [a, b, *(weight.value for weight in fusion.trainable_variables)])
        forward = set(graph.get_operations()[:count])
        for operation in graph.get_operations()[count:]:
            for tensor in operation.inputs:
                if tensor.op not in forward:
                    continue
                while tensor.op.type in VIEWS:
                    tensor = tensor.op.inputs[0]
                if tensor.dtype.is_floating and tensor.shape.rank and tensor.op.type not in ("Const", "ReadVariableOp"):
                    kept[tensor.name] = tensor.shape.num_elements()
        return [x for x in gradients if x is not None]

    tf.function(function).get_concrete_function(tf.TensorSpec((1, text, D)), tf.TensorSpec((1, image, DI)))
    return sum(kept.values())


@tensorflow_only
@pytest.mark.parametrize("style", ["cross", "merged", "late"])
def test_memory_is_of_the_order_of_what_tensorflow_keeps(style):
    fusion = STYLES[style](dim=D, image_dim=DI, depth=2, num_heads=4)
    fusion.build((None, None, D), (None, None, DI))
    ratio = numbers_kept(fusion, 40, 60) / fusion.cost(40, 60).memory
    assert 1.0 <= ratio <= 5.0, ratio


@pytest.mark.parametrize("style", sorted(STYLES))
def test_cost_grows_with_every_size(style):
    fusion = STYLES[style](dim=D, image_dim=DI, depth=2, num_heads=4)
    deeper = STYLES[style](dim=D, image_dim=DI, depth=4, num_heads=4)
    small, longer, larger = fusion.cost(8, 16), fusion.cost(16, 16), fusion.cost(8, 64)
    assert small.flops < longer.flops and small.memory < longer.memory
    assert small.flops < larger.flops and small.memory < larger.memory
    assert deeper.cost(8, 16).flops > small.flops
