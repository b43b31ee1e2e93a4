"""Warm-up requests: TensorFlow Serving replays them before it says that it is ready."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from mmfusion.export.prediction_log import prediction_log

WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"


def write_warm_up(
    folder: Path, signatures: Mapping[str, Mapping[str, str]], values: Mapping[str, np.ndarray], *, name: str
) -> None:
    """Writes a request for each signature of batches: a TFRecord file of ``PredictionLog`` messages.

    TensorFlow Serving does not load a model whose warm-up fails, so what is asked here has to be answered. Signatures that take a
    number for a whole request are left out: a Serving that joins requests (``--enable_batching``) refuses these.

    Args:
        folder: The SavedModel's.
        signatures: What each takes, by its name.
        values: A value of each input.
        name: What the requests call the model; Serving does not read it here.

    Source: https://www.tensorflow.org/tfx/serving/saved_model_warmup.
    """
    path = folder / WARM_UP
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in signatures.items():
            if any(not np.ndim(values[key]) for key in inputs):
                continue
            writer.write(warm_up_request(name, signature, {key: values[key] for key in inputs}))


def warm_up_request(name: str, signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    """A ``PredictionLog`` with a request, as bytes.

    Args:
        name: The model's name.
        signature: The signature's.
        inputs: Arrays by input; of bytes for strings.

    Example:
        >>> import numpy as np
        >>> from mmfusion.export.warmup import warm_up_request
        >>> b"caption_beam" in warm_up_request("mine", "caption_beam", {"max_tokens": np.int32(9)})
        True
    """
    log = prediction_log()()
    request = log.predict_log.request
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        # A message of another pool is another class: it comes over as bytes.
        request.inputs[key].ParseFromString(tf.make_tensor_proto(value).SerializeToString())
    return log.SerializeToString(deterministic=True)
