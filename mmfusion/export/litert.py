"""Functions of numbers as one ``.tflite`` file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mmfusion.errors import ExportError
from mmfusion.export.numeric_functions import NumericFunction


def litert_model(functions: dict[str, NumericFunction], variables: Sequence[Any], *, int8: bool = False) -> bytes:
    """Converts with LiteRT's built-in operators alone: `ai_edge_litert` has no others.

    The functions are signatures of one file and share their weights in it.

    Args:
        functions: The functions by name.
        variables: Keras variables of their model.
        int8: Whether large weights are stored as int8, a scale a channel, and products computed from activations that are
            quantised as they come ("dynamic range"). Default False.

    Returns:
        The file's content.

    Raises:
        ExportError: If a function needs an operator that LiteRT does not have.
    """
    contents = tf.Module()
    contents.all_variables = [variable.value for variable in variables]
    signatures = {name: function.function for name, function in functions.items()}
    for name, function in signatures.items():
        setattr(contents, name, function)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(contents, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if int8:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        try:
            return converter.convert()
        except Exception as error:  # the converter's error class is none of TensorFlow's public ones
            lacking = sorted(set(re.findall(r"'(tf\.\w+)' op|failed to legalize operation '(tf\.\w+)'", str(error))))
            names = sorted({name for pair in lacking for name in pair if name})
            raise ExportError(
                "the model needs operators that LiteRT does not have built in",
                expected="TFLITE_BUILTINS",
                found=", ".join(names) or str(error).strip().splitlines()[-1][:200],
                fix="export it as onnx or saved_model, or choose another fusion style or kernel",
            ) from error
