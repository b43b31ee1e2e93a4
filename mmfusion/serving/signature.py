"""The signatures of a model, with what each takes and gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from mmfusion.errors import ExportError
from mmfusion.export import Predictor
from mmfusion.export.saved_model import DESCRIPTION

_TYPES = (tf.string, tf.int32, tf.float32, tf.bool)


@dataclass(frozen=True)
class Signature:
    """One signature.

    Args:
        name: Its name.
        function: From named tensors to a dictionary of tensors.
        inputs: Specs of the inputs, in the order of their names: ``string``, ``int32``, ``float32`` or ``bool``, ``[B]`` or
            ``[B, N]``; or numbers for a whole call, ``[]``.
        outputs: Specs of the outputs by name, in the order of their names.
    """

    name: str
    function: Callable[..., dict[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]
    outputs: Mapping[str, tf.TensorSpec]

    @property
    def options(self) -> tuple[str, ...]:
        """Inputs that are one number for a whole call."""
        return tuple(key for key, spec in self.inputs.items() if not spec.shape.rank)


def signatures_of(predictor: Predictor) -> dict[str, Signature]:
    """A predictor's signatures, with their specs.

    Args:
        predictor: What `mmfusion.load` gave, over a run or a SavedModel.

    Returns:
        The signatures by name; the first is the one that an export calls ``serving_default``.

    Raises:
        ExportError: If the specs cannot be known, or a signature takes what no request can hold.
    """
    found = {name: _signature(name, function, predictor.name) for name, function in predictor.functions.items()}
    description = Path(predictor.name) / DESCRIPTION
    if description.is_file():
        order = list(json.loads(description.read_text(encoding="utf-8")).get("signatures", ()))
        found = {name: found[name] for name in sorted(found, key=lambda name: order.index(name) if name in order else len(order))}
    return found


def _signature(name: str, function: Any, where: str) -> Signature:
    concrete = function.get_concrete_function() if hasattr(function, "get_concrete_function") else function
    if not hasattr(concrete, "structured_input_signature"):
        raise ExportError("cannot be served", where=where, expected="a run, or a SavedModel that `mmfusion export` wrote")
    positional, named = concrete.structured_input_signature
    inputs = dict(sorted({**{spec.name: spec for spec in positional}, **named}.items()))
    for key, spec in inputs.items():
        if spec.dtype not in _TYPES or spec.shape.rank not in (0, 1, 2) or (spec.dtype == tf.string and not spec.shape.rank):
            raise ExportError(
                "a signature takes what cannot be served", where=f"{name}: {key}",
                expected="string, int32, float32 or bool, [B] or [B, N], or a number", found=f"{spec.dtype.name}{spec.shape}",
            )  # fmt: skip
    outputs = concrete.structured_outputs
    return Signature(name, function, inputs, {key: outputs[key] for key in sorted(outputs)})


def metadata(name: str, path: Path, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """What ``GET /v1/models/NAME/metadata`` of TensorFlow Serving answers: names, types and shapes of all signatures.

    Args:
        name: The model's name.
        path: The export or the run.
        signatures: See `signatures_of`.

    Returns:
        The JSON of a ``GetModelMetadataResponse``.

    Source: https://www.tensorflow.org/tfx/serving/api_rest, "Model Metadata API".
    """
    definitions = _written_definitions(path) or {key: _definition(signature) for key, signature in signatures.items()}
    return {
        "model_spec": {"name": name, "signature_name": "", "version": "1"},
        "metadata": {"signature_def": {"signature_def": definitions}},
    }


def _written_definitions(path: Path) -> dict[str, Any]:
    """Those of a SavedModel's own file, with the names of its tensors."""
    file = path / "saved_model.pb"
    if not file.is_file():
        return {}
    from google.protobuf.json_format import MessageToDict
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    return {
        key: {
            "inputs": {
                name: _completed(MessageToDict(info, preserving_proto_field_name=True)) for name, info in value.inputs.items()
            },
            "outputs": {
                name: _completed(MessageToDict(info, preserving_proto_field_name=True)) for name, info in value.outputs.items()
            },
            "method_name": value.method_name,
        }
        for key, value in definitions.items()
        if value.method_name == _METHOD
    }


def _completed(info: dict[str, Any]) -> dict[str, Any]:
    # TensorFlow Serving also writes fields that are at their defaults, which protobuf leaves out.
    shape = info.get("tensor_shape", {})
    dimensions = [{"size": dimension.get("size", "0"), "name": dimension.get("name", "")} for dimension in shape.get("dim", ())]
    unknown = shape.get("unknown_rank", False)
    return {"dtype": info["dtype"], "tensor_shape": {"dim": dimensions, "unknown_rank": unknown}, "name": info["name"]}


_METHOD = "tensorflow/serving/predict"


def _definition(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": {key: _info(f"{signature.name}_{key}:0", spec) for key, spec in signature.inputs.items()},
        "outputs": {key: _info(f"{signature.name}_{key}:0", spec) for key, spec in signature.outputs.items()},
        "method_name": _METHOD,
    }


def _info(name: str, spec: tf.TensorSpec) -> dict[str, Any]:
    sizes = [] if spec.shape.rank is None else [-1 if size is None else size for size in spec.shape]
    dimensions = [{"size": str(size), "name": ""} for size in sizes]
    dtype = f"DT_{ {'float32': 'FLOAT'}.get(spec.dtype.name, spec.dtype.name.upper()) }"
    return {"dtype": dtype, "tensor_shape": {"dim": dimensions, "unknown_rank": spec.shape.rank is None}, "name": name}
