"""Warm-up requests of an export, parsed and asked again."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from mmfusion.export.prediction_log import prediction_log
from mmfusion.export.warmup import WARM_UP


def replayed(export: Path, signatures: dict) -> list[str]:
    """Names of the signatures that a request was for; each is answered with all of its outputs."""
    answered = []
    for record in tf.data.TFRecordDataset(str(export / WARM_UP)).as_numpy_iterator():
        log = prediction_log().FromString(record)
        assert log.WhichOneof("log_type") == "predict_log" and not log.FindInitializationErrors()
        request = log.predict_log.request
        assert request.model_spec.name == export.name
        asked = signatures[request.model_spec.signature_name]
        inputs = {
            key: tf.make_ndarray(tensor_pb2.TensorProto.FromString(value.SerializeToString()))
            for key, value in request.inputs.items()
        }
        assert set(asked(**{key: tf.constant(value) for key, value in inputs.items()})) == set(asked.structured_outputs)
        answered.append(request.model_spec.signature_name)
    return sorted(answered)
