"""Compares an export, run by another process, with the Keras model that it was made from."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mmfusion.errors import ExportError
from mmfusion.export.comparison import Comparison, compared, loosely_compared
from mmfusion.export.example_pictures import example_clip, example_image
from mmfusion.export.example_requests import REQUEST, option_values
from mmfusion.export.fingerprint import fingerprint
from mmfusion.export.folder import DESCRIPTION
from mmfusion.export.portable import SCRIPT
from mmfusion.export.portable_verify import verify_portable
from mmfusion.export.predictor import check_image, read_image
from mmfusion.export.serving_function import as_tf_function
from mmfusion.export.serving_functions import serving_functions, takes_several
from mmfusion.training import LoadedRun

# Two graphs of one model may join its operators in other ways, and so round elsewhere.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2.5e-3, "int8": 2e-2}


def verify_export(
    export: str | Path,
    run: LoadedRun,
    *,
    images: list[str | Path] | None = None,
    texts: list[str] | None = None,
    tolerance: float | None = None,
) -> list[Comparison]:
    """Runs an export in a fresh process and compares every output.

    A SavedModel's script imports TensorFlow and tensorflow-text alone; that process must not import mmfusion, and Keras may be
    there, since TensorFlow brings it along. LiteRT and ONNX run without TensorFlow; see
    `mmfusion.export.portable_verify.verify_portable`.

    A SavedModel in another number format than the run was trained in is compared twice: with the run's model brought to that
    format, closely and every caption, which shows that the export is right; and with the model as it was trained, which shows
    what the format costs: embeddings must have a cosine of at least 0.99, scores and attention differ by at most 0.1, and
    captions may differ, their share is said.

    Args:
        export: The export's folder.
        run: The run that it was made from.
        images: Pictures, or clips, to ask about; default the drawn example picture, in several sizes.
        texts: Sentences to ask about, as many as pictures; default a few.
        tolerance: Largest absolute difference of numbers to the model in the export's own format. Default 1e-4, or 2e-2 for a
            model in bfloat16 or int8, 2.5e-3 in float16; for LiteRT in int8 see
            `mmfusion.export.portable_verify.verify_portable`.

    Returns:
        One `Comparison` an output.

    Raises:
        ExportError: If the folder is no export, or one of other weights or in another number format than the run has; or the
            process fails or imports more than it should.
        DataError: If a picture cannot be read.
    """
    export = Path(export)
    description = _description_of(export)
    trained, run = run, _in_its_format(export, run, description)
    _check_weights(export, run, description)
    several = takes_several(run.model)
    contents: list[Any] = [read_image(image) for image in images] if images else _examples(run)
    for image, content in zip(images or (), contents, strict=bool(images)):
        check_image(image, content)
    if several and images:
        contents = [[content] for content in contents]
    texts = list(texts or [])
    defaults = ("a colourful square", "A man, a plan: café!", "")
    sentences = [texts[i] if i < len(texts) else defaults[i % len(defaults)] for i in range(len(contents))]
    if description.get("kind", "saved_model") != "saved_model":
        return verify_portable(export, run, description, contents, sentences, tolerance=tolerance)
    script = export / "examples" / REQUEST
    if tolerance is None:
        tolerance = _TOLERANCES[run.precision or run.model.image_encoder.compute_dtype]
    tokens = run.tokenizer(sentences)
    more = {"token_ids": tokens.token_ids.numpy(), "token_mask": tokens.token_mask.numpy()} | option_values(description)
    if "caption_options" in description:
        more["seed"] = np.arange(len(contents), dtype="int32")
    served = _in_fresh_process(export, script, contents, sentences, more)
    expected = _in_this_process(run, contents, sentences, more)
    if set(served) != set(expected):
        raise ExportError(
            "the export has other outputs than the model", where=export, expected=sorted(expected), found=sorted(served)
        )
    rows = [compared(name, expected[name], served[name], tolerance) for name in sorted(expected)]
    if trained is run:
        return rows
    finer = _in_this_process(trained, contents, sentences, more)
    # Words are the tokenizer's, and how probable a caption is says nothing where it may be another.
    left_out = (
        "attend/tokens",
        *(name for name in finer if name.startswith(("caption", "translate")) and name.endswith("/score")),
    )
    costs = [loosely_compared(name, finer[name], served[name]) for name in sorted(finer) if name not in left_out]
    return rows + [row._replace(output=f"{row.output}, beside the model as trained") for row in costs]


def _in_its_format(export: Path, run: LoadedRun, described: dict[str, Any]) -> LoadedRun:
    wanted: str | None = described.get("precision")
    if wanted == run.precision:
        return run
    if run.precision is not None or wanted is None:
        raise ExportError(
            "the export and the model compute in different number formats", where=export, expected=wanted or "as it was trained",
            found=run.precision, fix="load the run as it was trained: mmfusion.training.load_run(RUN)",
        )  # fmt: skip
    return run.in_number_format(wanted)


def _description_of(export: Path) -> dict[str, Any]:
    try:
        description = json.loads((export / DESCRIPTION).read_text(encoding="utf-8"))
        script = SCRIPT if description.get("kind", "saved_model") != "saved_model" else REQUEST
        if (export / "examples" / script).is_file():
            return description
    except (OSError, ValueError):
        script = REQUEST
    raise ExportError(
        "not an export of mmfusion", where=export, expected=f"{DESCRIPTION} and examples/{script}",
        found="no such folder" if not export.exists() else "a folder without them",
        fix="name a folder that `mmfusion export` made",
    )  # fmt: skip


def _check_weights(export: Path, run: LoadedRun, described: dict[str, Any]) -> None:
    expected, found = fingerprint(run.model), described.get("weights")
    if found not in (None, expected):  # exports of before say nothing: their answers are compared
        raise ExportError(
            f"the export was not made from the model that is in {run.folder.path} now",
            where=export, expected=f"weights {expected[:12]}", found=f"weights {found[:12]}",
            fix="name the run that it was made from, or export this one again",
        )  # fmt: skip


def _examples(run: LoadedRun) -> list[Any]:
    sizes = (96, 64, 200)
    if run.transform.frames == 1:
        return [example_image(size) for size in sizes]
    if not takes_several(run.model):
        # A long clip, a short one and a still picture.
        return [example_clip(96, 3 * run.transform.frames), example_clip(64, 2), example_image(200)]
    rows = [[example_image(size)] * count for size, count in zip(sizes, (run.transform.frames, 1, 2), strict=True)]
    return [row + [b""] * (run.transform.frames - len(row)) for row in rows]


def _in_fresh_process(
    export: Path, script: Path, contents: list[Any], texts: list[str], more: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.npz", Path(folder) / "answer.npz"
        arrays: dict[str, Any] = {
            "lengths": np.array([len(row) if isinstance(row, bytes) else list(map(len, row)) for row in contents]),
            "bytes": np.frombuffer(b"".join(row if isinstance(row, bytes) else b"".join(row) for row in contents), np.uint8),
            "text": np.array(texts),
            **more,
        }
        np.savez(request, **arrays)
        process = subprocess.run(
            [sys.executable, str(script.resolve()), "--batch", str(request), str(answer)],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        if process.returncode:
            raise ExportError(
                "the export fails in a fresh process", where=export, found=(process.stderr.strip().splitlines() or ["?"])[-1]
            )
        if "mmfusion" in process.stdout:
            raise ExportError("the export needs mmfusion to run", where=export, found=process.stdout.strip())
        with np.load(answer, allow_pickle=False) as answers:
            return {name: answers[name] for name in answers.files}


def _in_this_process(run: LoadedRun, contents: list[Any], texts: list[str], more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    functions = serving_functions(
        run.model,
        run.tokenizer,
        run.transform,
        with_options=run.recipe.decoding if "seed" in more else None,
        **run.recipe.decoding.options(),
    )
    values = {"image_bytes": tf.constant(contents), "text": tf.constant(texts)}
    values |= {name: tf.constant(value) for name, value in more.items()}
    answers: dict[str, np.ndarray] = {}
    for name, serving in functions.items():
        keys = [spec.name for spec in serving.inputs]
        if not set(keys) <= set(values):
            continue
        for output, value in as_tf_function(serving)(*(values[key] for key in keys)).items():
            array = value.numpy()
            if array.dtype == object:
                array = np.array([item.decode("utf-8", "replace") for item in array.ravel()]).reshape(array.shape)
            answers[f"{name}/{output}"] = array
    return answers
