"""The few messages of TensorFlow Serving that a warm-up request is made of.

``tensorflow-serving-api`` has them all, and pins a TensorFlow of its own, so they are declared here: names, numbers and types as
in ``tensorflow_serving/apis/prediction_log.proto``, ``predict.proto`` and ``model.proto`` of https://github.com/tensorflow/serving
(Apache 2.0), without the fields that a warm-up does not set. Fields that are not set are not written, so the bytes are the same.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "tensorflow.serving"
_TENSOR = "tensorflow/core/framework/tensor.proto"
_Field = descriptor_pb2.FieldDescriptorProto


@functools.cache
def prediction_log() -> Any:
    r"""The class of ``tensorflow.serving.PredictionLog``, with ``predict_log.request`` alone.

    Example:
        >>> from mmfusion.export.prediction_log import prediction_log
        >>> log = prediction_log()()
        >>> log.predict_log.request.model_spec.signature_name = "caption"
        >>> log.SerializeToString()
        b'2\r\n\x0b\n\t\x1a\x07caption'
    """
    from tensorflow.core.framework import tensor_pb2

    # A pool of its own: in the default one it would clash with the whole files, where somebody has them.
    pool = descriptor_pool.DescriptorPool()
    _add(pool, tensor_pb2.DESCRIPTOR)
    file = descriptor_pb2.FileDescriptorProto(
        name="mmfusion/warmup.proto", package=_PACKAGE, syntax="proto3", dependency=[_TENSOR]
    )
    spec = file.message_type.add(name="ModelSpec")
    spec.field.add(name="name", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
    spec.field.add(name="signature_name", number=3, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
    request = file.message_type.add(name="PredictRequest")
    _message(request, "model_spec", 1, f".{_PACKAGE}.ModelSpec")
    # What protobuf makes of map<string, TensorProto>.
    entry = request.nested_type.add(name="InputsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
    _message(entry, "value", 2, ".tensorflow.TensorProto")
    _message(request, "inputs", 2, f".{_PACKAGE}.PredictRequest.InputsEntry", label=_Field.LABEL_REPEATED)
    _message(file.message_type.add(name="PredictLog"), "request", 1, f".{_PACKAGE}.PredictRequest")
    log = file.message_type.add(name="PredictionLog")
    log.oneof_decl.add(name="log_type")
    _message(log, "predict_log", 6, f".{_PACKAGE}.PredictLog").oneof_index = 0
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.PredictionLog"))


def _message(owner: Any, name: str, number: int, kind: str, label: int = _Field.LABEL_OPTIONAL) -> Any:
    return owner.field.add(name=name, number=number, type=_Field.TYPE_MESSAGE, type_name=kind, label=label)


def _add(pool: descriptor_pool.DescriptorPool, file: Any) -> None:
    """Adds a file after those that it imports."""
    for dependency in file.dependencies:
        _add(pool, dependency)
    copied = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copied)
    pool.Add(copied)
