"""Functions of numbers as ``.onnx`` files."""

from __future__ import annotations

import logging
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from mmfusion.errors import ExportError
from mmfusion.export.numeric_functions import NumericFunction
from mmfusion.export.runtime import imported

OPSET = 18


def onnx_model(name: str, function: NumericFunction, variables: Sequence[keras.Variable]) -> Any:
    """Converts with `tf2onnx`, and with the operators that it lacks or mistakes.

    It is shown the function with its weights as inputs, and gets their values afterwards: with the values in its graph tf2onnx
    1.17 takes 20 GB and minutes for what is 400 MB.

    Args:
        name: Name of the function.
        function: The function.
        variables: The model's.

    Returns:
        The `onnx.ModelProto`, checked; axes of free size have names.

    Raises:
        ExportError: If tf2onnx or onnx is not installed, or the function needs an operator that ONNX does not have.
    """
    onnx = imported("onnx", "onnx")
    convert = imported("tf2onnx.convert", "onnx")
    weights = {f"weight_{number:04}": variable for number, variable in enumerate(variables)}
    asked = types.SimpleNamespace(get_concrete_function=lambda: function.of_weights(weights))
    handlers: dict[str, Any] = {
        "Erfc": (_erfc, []), "SelectV2": (_where, []), "XlaDynamicUpdateSlice": (_dynamic_update_slice, []),
    }  # fmt: skip
    try:
        with _quiet():
            model, _ = convert.from_function(asked, input_signature=(), opset=OPSET, custom_op_handlers=handlers)
    except Exception as error:  # tf2onnx has no error class of its own
        raise ExportError("tf2onnx cannot convert the model", where=name, found=_last_line(error)) from error
    lacking = sorted({node.op_type for node in _nodes(model.graph) if not onnx.defs.has(node.op_type, node.domain)})
    if lacking:
        raise ExportError(
            "the model needs operators that ONNX does not have", where=name, expected=f"opset {OPSET}", found=", ".join(lacking),
            fix="export it as litert or saved_model, or choose another fusion style or kernel",
        )  # fmt: skip
    _fill_in(model.graph, weights)
    _name_axes(model.graph, function)
    onnx.checker.check_model(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a line for each operator that is missing, which are told in one, and TensorFlow's on tables that are not here."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _fill_in(graph: Any, weights: Mapping[str, keras.Variable]) -> None:
    """Weights that are inputs become what they are."""
    from onnx import numpy_helper

    used = {name for node in _nodes(graph) for name in node.input} | {output.name for output in graph.output}
    kept = [put for put in graph.input if put.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)
    for name, variable in weights.items():
        if name in used:
            graph.initializer.append(numpy_helper.from_array(np.asarray(variable.value), name))


def _name_axes(graph: Any, function: NumericFunction) -> None:
    """The first axis that is free is the batch; tf2onnx names it after a counter."""
    for value in (*graph.input, *graph.output):
        spec = function.inputs.get(value.name, function.outputs.get(value.name))
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if spec is not None and spec.shape.rank and spec.shape[axis] is None:
                size.ClearField("dim_value")
                size.dim_param = "batch" if axis == 0 else f"{value.name}_{axis}"


def _erfc(graph: Any, node: Any, name: str, _: list[Any]) -> None:
    """``1 - erf(x)``."""
    output = node.output[0]
    form = {"dtypes": [graph.get_dtype(output)], "shapes": [graph.get_shape(output)]}
    graph.remove_node(name)
    error = graph.make_node("Erf", [node.input[0]], **form)
    graph.make_node("Sub", [_constant(graph, np.float32(1)), error.output[0]], outputs=[output], name=name, **form)


def _where(graph: Any, node: Any, name: str, _: list[Any]) -> None:
    """tf2onnx multiplies by 0 and by 1, and what is not chosen comes through if it is not a number."""
    output = node.output[0]
    form = {"dtypes": [graph.get_dtype(output)], "shapes": [graph.get_shape(output)]}
    graph.remove_node(name)
    graph.make_node("Where", list(node.input), outputs=[output], name=name, **form)


def _dynamic_update_slice(graph: Any, node: Any, name: str, _: list[Any]) -> None:
    """Writes a block into a tensor, from a place that is moved inside where it is not: the block padded to the tensor's size."""
    from onnx import TensorProto, helper

    whole, block, start = node.input
    output = node.output[0]
    form = {"dtypes": [graph.get_dtype(output)], "shapes": [graph.get_shape(output)]}
    graph.remove_node(name)

    def make(kind: str, *inputs: str, **attributes: Any) -> str:
        return graph.make_node(kind, list(inputs), attr=attributes).output[0]

    size = make("Shape", block)
    room = make("Sub", make("Shape", whole), size)
    start = make("Max", make("Cast", start, to=TensorProto.INT64), _constant(graph, np.int64(0)))
    start = make("Min", start, room)
    margins = make("Concat", start, make("Sub", room, start), axis=0)
    true = helper.make_tensor("value", TensorProto.BOOL, [1], [True])
    inside = make("Pad", make("ConstantOfShape", size, value=true), margins)
    graph.make_node("Where", [inside, make("Pad", block, margins), whole], outputs=[output], name=name, **form)


def _constant(graph: Any, value: Any) -> str:
    from tf2onnx import utils

    return graph.make_const(utils.make_name("constant"), np.array(value)).output[0]
