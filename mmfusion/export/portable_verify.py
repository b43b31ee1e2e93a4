"""Compares a LiteRT or ONNX export, run by another process without TensorFlow, with the Keras model."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mmfusion.errors import ExportError
from mmfusion.export.comparison import Comparison, compared, loosely_compared
from mmfusion.export.portable import SCRIPT
from mmfusion.export.portable_functions import pictures_read
from mmfusion.export.portable_model import portable_model
from mmfusion.training import LoadedRun


def verify_portable(
    export: Path,
    run: LoadedRun,
    description: dict[str, Any],
    contents: list[Any],
    texts: list[str],
    *,
    tolerance: float | None = None,
) -> list[Comparison]:
    """Runs the export's own example script in a fresh process, and compares what it says with the model.

    That process must import neither TensorFlow nor Keras nor mmfusion. Both are given the same pixels and token ids. Captions are
    written greedily; beside them the scores of each next token of the given sentences are compared, step by step with the cache
    there, all at once and without one here.

    - float32: the largest difference, of logits over the largest logit if that is above 1, is at most 1e-4, and the captions are
      the same tokens.
    - A model in bfloat16, which the export computes in float32, is compared as if it had been built in float32.
    - int8: embeddings must have a cosine of at least 0.99; scores, and probabilities of the next token, differ by at most 0.1;
      captions may differ, their share is said.

    Args:
        export: The export's folder.
        run: The run that it was made from.
        description: What is in its ``mmfusion.json``.
        contents: The bytes of each picture's file; of several images an example, a list of each.
        texts: As many sentences.
        tolerance: Instead of 1e-4; of int8, instead of both of its own.

    Returns:
        One `Comparison` an output.

    Raises:
        ExportError: If the process fails or imports more than it should, or its outputs are not the model's.
    """
    tokens = run.tokenizer(texts)
    inputs = pictures_read(run.transform, contents)
    inputs |= {"token_ids": tokens.token_ids.numpy(), "token_mask": tokens.token_mask.numpy()}
    if description["batch_size"] is not None:
        examples = np.arange(description["batch_size"]) % len(texts)
        inputs = {name: value[examples] for name, value in inputs.items()}
    found = _in_fresh_process(export, inputs)
    expected = _in_this_process(run, description, inputs)
    if set(found) != set(expected):
        raise ExportError(
            "the export has other outputs than the model", where=export, expected=sorted(expected), found=sorted(found)
        )
    captions = [name for name in sorted(expected) if name.startswith("caption/")]
    numbers = [name for name in sorted(expected) if name not in captions]
    if description["kind"] == "litert-int8":
        # Nor how probable a caption is, where it may be another.
        names = numbers + [name for name in captions if name.endswith("/token_ids")]
        return [loosely_compared(name, expected[name], found[name], tolerance) for name in names]
    tolerance = tolerance or 1e-4
    rows = [_by_difference(name, expected[name], found[name], tolerance) for name in numbers]
    return rows + [compared(name, expected[name], found[name], tolerance) for name in captions]


def _by_difference(name: str, expected: np.ndarray, found: np.ndarray, tolerance: float) -> Comparison:
    if not name.endswith("/logits"):
        return compared(name, expected, found, tolerance)
    scale = max(1.0, float(np.max(np.abs(expected))))
    return compared(name if scale == 1.0 else f"{name} (of {scale:.0f})", expected / scale, found / scale, tolerance)


def _in_fresh_process(export: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.npz", Path(folder) / "answer.npz"
        arrays: dict[str, Any] = inputs
        np.savez(request, **arrays)
        script = (export / "examples" / SCRIPT).resolve()
        command = [sys.executable, str(script), "--batch", str(request), str(answer)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["?"])[-1]
            raise ExportError("the export fails in a fresh process", where=export, found=reason)
        if process.stdout.strip() != "[]":
            raise ExportError("the export needs more than its runtime", where=export, found=process.stdout.strip())
        with np.load(answer, allow_pickle=False) as answers:
            return {name: answers[name] for name in answers.files}


def _in_this_process(run: LoadedRun, description: dict[str, Any], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    float32 = run.model.image_encoder.compute_dtype == "float32"
    model: Any = run.model if float32 else portable_model(run.model)
    pixels, image_mask = tf.constant(inputs["pixels"]), inputs.get("image_mask")
    image_mask = None if image_mask is None else tf.constant(image_mask)
    ids, mask = tf.constant(inputs["token_ids"]), tf.constant(inputs["token_mask"])
    answers: dict[str, Any] = {}
    if model.contrastive_head is not None:
        image = model.encode_image(pixels, training=False, image_mask=image_mask)
        text = model.encode_text(ids, mask, training=False)
        answers |= {"encode_image/embedding": image, "encode_text/embedding": text}
    if model.matching_head is not None:
        answers["match/score"] = tf.sigmoid(model.match(pixels, ids, mask, training=False, image_mask=image_mask))
        if model.contrastive_head is not None:
            answers["match/similarity"] = (1.0 + tf.reduce_sum(image * text, axis=-1)) / 2.0
    if model.captioning_head is not None:
        options = {name: description["decoding"][name] for name in ("max_tokens", "min_tokens")}
        written = model.caption(pixels, image_mask, beam_size=1, **options)
        answers |= {"caption/token_ids": written.token_ids, "caption/score": written.scores}
        patches, patch_mask = model.encode_patches(pixels, image_mask, training=False)
        steps = min(options["max_tokens"], ids.shape[1] - 1)
        logits = model.caption_logits(patches, ids[:, :steps], training=False, patch_mask=patch_mask)
        answers["caption_step/logits"] = tf.cast(logits, tf.float32)
    return {name: keras.ops.convert_to_numpy(value) for name, value in answers.items()}
