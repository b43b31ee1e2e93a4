"""Writes a run as LiteRT or ONNX functions of numbers, which need no TensorFlow to run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mmfusion.config import dump_recipe
from mmfusion.errors import ExportError
from mmfusion.export.example_pictures import example_image
from mmfusion.export.folder import DESCRIPTION, check_output, written_at_once
from mmfusion.export.litert import litert_model
from mmfusion.export.litert_runtime import MODEL
from mmfusion.export.numeric_functions import NumericFunction, carried_state, numeric_functions
from mmfusion.export.onnx_models import onnx_model
from mmfusion.export.portable_model import portable_model
from mmfusion.export.saved_model import described, model_card
from mmfusion.models.captioning import special_tokens
from mmfusion.training import LoadedRun

FORMATS = ("litert", "litert-int8", "onnx")
VOCABULARY = "vocabulary.txt"
SCRIPT = "run.py"
_PACKAGES = {"litert": "ai-edge-litert", "litert-int8": "ai-edge-litert", "onnx": "onnxruntime"}


def export_portable(
    run: LoadedRun, output: str | Path, *, kind: str, overwrite: bool = False, batch_size: int | None = None
) -> Path:
    """Writes the functions of `mmfusion.export.numeric_functions`, their recipe, vocabulary, card and an example.

    Everything is converted before anything is written; the folder appears when it is complete.

    Args:
        run: What to export.
        output: The folder to write.
        kind: ``"litert"``, ``"litert-int8"`` (large weights as int8, activations quantised as they come) or ``"onnx"``.
        overwrite: Whether an earlier export there is replaced. Default False.
        batch_size: The one batch size of all functions, for accelerators that want fixed shapes. Default: free.

    Returns:
        The folder.

    Raises:
        ExportError: If the folder exists and is not to be replaced, or cannot be written; the format is unknown, or has no
            operator for something in the model; the model translates, or writes by contrastive search; or a converter's package
            is missing.
    """
    output = Path(output)
    if kind not in FORMATS:
        raise ExportError("unknown format of export", expected=", ".join(("saved_model", *FORMATS)), found=repr(kind))
    if batch_size is not None and batch_size < 1:
        raise ExportError("impossible batch size", expected="at least 1", found=batch_size)
    check_output(output, overwrite)
    model = portable_model(run.model)
    decoding = run.recipe.decoding
    if model.captioning_head is not None and decoding.method == "contrastive":
        raise ExportError(
            "contrastive search needs vectors that the functions do not give", where="decoding.method",
            expected="greedy, beam or sample", found=decoding.method, fix="change decoding.method in the run's recipe.yaml",
        )  # fmt: skip
    functions = numeric_functions(model, run.transform.shape, max_tokens=decoding.max_tokens, batch_size=batch_size)
    description = _description(run, kind, functions, batch_size)
    if kind == "onnx":
        # One at a time: each holds the weights it needs.
        files = {
            f"{name}.onnx": onnx_model(name, function, model.variables).SerializeToString()
            for name, function in functions.items()
        }
    else:
        files = {MODEL: litert_model(functions, model.variables, int8=kind == "litert-int8")}
    with written_at_once(output) as partial:
        (partial / "examples").mkdir(parents=True)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        (partial / "recipe.yaml").write_text(dump_recipe(run.recipe), encoding="utf-8")
        run.tokenizer.save(partial / VOCABULARY)
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(model_card(run, _usage(description)), encoding="utf-8")
        (partial / "examples" / "picture.jpg").write_bytes(example_image())
        shutil.copyfile(Path(__file__).with_name("portable_example.py"), partial / "examples" / SCRIPT)
    return output


def _description(run: LoadedRun, kind: str, functions: dict[str, NumericFunction], batch_size: int | None) -> dict[str, Any]:
    description = described(run, kind) | {
        "batch_size": batch_size,
        "transform": run.transform.get_config(),
        "functions": {
            name: {"inputs": _told(function.inputs), "outputs": _told(function.outputs)} for name, function in functions.items()
        },
    }
    if "caption_step" not in functions:
        return description
    head = run.model.head("captioning")
    decoding = run.recipe.decoding
    return description | {
        "decoding": {
            "options": {name: value for name, value in decoding.options().items() if name not in ("max_tokens", "min_tokens")},
            "max_tokens": decoding.max_tokens or run.model.text_encoder.max_length - 1,
            "min_tokens": decoding.min_tokens,
            **special_tokens(run.model),
            "forbidden_ids": [head.start_id, *head.forbidden_ids],
        },
        # What the next step is given: this step's output of that name, or, where there is none, what this step was given.
        "state": carried_state(functions),
    }


def _told(specs: dict[str, Any]) -> dict[str, str]:
    return {name: f"{spec.dtype.name}{list(spec.shape)}" for name, spec in specs.items()}


def _usage(description: dict[str, Any]) -> list[str]:
    kind, functions = description["kind"], description["functions"]
    place = f"`{MODEL}` (a signature each)" if kind != "onnx" else "a `.onnx` file each"
    lines = ["## Functions", "", f"Numbers in, numbers out, in {place}; `None` is the batch, free:", ""]
    for name, function in functions.items():
        inputs, outputs = ({key: form for key, form in function[side].items() if "state_" not in key} for side in function)
        told = [", ".join(f"`{key}` {form}" for key, form in side.items()) for side in (inputs, outputs)]
        lines.append(f"- `{name}`: {told[0]} to {told[1] or 'the state'}")
    if "caption_step" in functions:
        lines += [
            "",
            "`caption_start` reads a picture into the decoding state; `caption_step` takes the last token and the state, "
            f"beginning with token {description['decoding']['start_id']}, and gives the scores of the next token and what "
            "changed of the state. The names of its tensors and what each becomes are in `mmfusion.json` under `state`.",
        ]
    lines += [
        "",
        "Pixels are `(value / 255 - mean) / std`, sentences are token ids of `vocabulary.txt` (WordPiece), filled up with "
        "padding that `token_mask` hides.",
        "",
        f"`python examples/{SCRIPT} picture.jpg` runs them with `{_PACKAGES[kind]}`, `numpy` and `Pillow` alone; "
        "`mmfusion.load` gives them the interface of every other model.",
    ]
    if kind == "litert-int8":
        lines += ["", "Weights are int8: answers differ a little from the model's; `mmfusion verify` says by how much."]
    return lines
