"""Writes a run as a SavedModel that takes image files and sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mmfusion.config import dump_recipe
from mmfusion.errors import ExportError
from mmfusion.export.example_requests import example_values, picture_name, write_examples
from mmfusion.export.fingerprint import fingerprint
from mmfusion.export.folder import DESCRIPTION, check_output, written_at_once
from mmfusion.export.operators import operators_of
from mmfusion.export.serving_check import serving_lines
from mmfusion.export.serving_function import ServingFunction, as_tf_function
from mmfusion.export.serving_functions import serving_functions, takes_several
from mmfusion.export.warmup import write_warm_up
from mmfusion.layers.cache_writing import scattered_writes
from mmfusion.models.captioning import checked_length
from mmfusion.training import LoadedRun
from mmfusion.version import __version__


def export_model(
    run: LoadedRun,
    output: str | Path,
    *,
    overwrite: bool = False,
    with_options: bool = False,
    batch_size: int | None = None,
) -> Path:
    """Writes a SavedModel with the named signatures, its recipe, vocabulary, card, example and warm-up requests.

    The folder appears when it is complete; a failure leaves nothing behind.

    Args:
        run: What to export, in its number format: `LoadedRun.in_number_format` changes it. The signatures answer in float32.
        output: The folder to write.
        overwrite: Whether an earlier export there is replaced. Default False.
        with_options: Whether ``caption_sample`` and ``caption_beam`` are there too, which take options of decoding, see
            `mmfusion.export.caption_functions`. Each is a graph as large as ``caption``'s. Default False.
        batch_size: The one batch size of all signatures, for accelerators that want fixed shapes; `mmfusion.load` fills it up.
            Default: free.

    Returns:
        The folder.

    Raises:
        ExportError: If the folder exists and is not to be replaced, or cannot be written; the batch size is impossible; or
            options are wanted of a model that does not caption pictures.
    """
    output = Path(output)
    if batch_size is not None and batch_size < 1:
        raise ExportError("impossible batch size", expected="at least 1", found=batch_size)
    check_output(output, overwrite)
    decoding = run.recipe.decoding
    functions = serving_functions(
        run.model,
        run.tokenizer,
        run.transform,
        with_options=decoding if with_options else None,
        batch_size=batch_size,
        **decoding.options(),
    )
    if with_options and "caption_sample" not in functions:
        raise ExportError(
            "there are no options to choose from: the model does not caption pictures", where=run.folder.path,
            found=", ".join(run.model.heads), fix="leave --with-options out",
        )  # fmt: skip
    # Not Keras's ExportArchive: there each signature is traced twice, half the time of an export.
    with scattered_writes():
        signatures = {name: _traced(serving) for name, serving in functions.items()}
    contents = tf.Module()
    contents.all_variables = [variable.value for variable in run.model.variables]
    contents.tokenizer = run.tokenizer
    for name, signature in signatures.items():
        setattr(contents, name, signature)
    signatures["serving_default"] = next(iter(signatures.values()))
    with written_at_once(output) as partial:
        tf.saved_model.save(contents, str(partial), signatures=signatures)
        (partial / "recipe.yaml").write_text(dump_recipe(run.recipe), encoding="utf-8")
        description = _description(run, functions, batch_size) | {"operators": operators_of(partial)}
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(run, description), encoding="utf-8")
        values = example_values(description, run.tokenizer)
        write_examples(partial / "examples", description, values)
        write_warm_up(partial, description["signatures"], values, name=output.name)
    return output


def _traced(serving: ServingFunction) -> Any:
    names = ", ".join(spec.name for spec in serving.inputs)
    # SavedModel takes the request's keys from the parameters' names; the functions have them already.
    code = serving.function.__code__
    expected = code.co_varnames[: code.co_argcount]
    if ", ".join(expected) != names:
        raise ExportError("a signature's inputs are not its function's", expected=names, found=", ".join(expected))
    return as_tf_function(serving).get_concrete_function()


def _description(run: LoadedRun, functions: dict[str, Any], batch_size: int | None) -> dict[str, Any]:
    description = described(run, "saved_model") | {
        "precision": run.precision,
        "batch_size": batch_size,
        "signatures": {
            name: {spec.name: f"{spec.dtype.name}{list(spec.shape)}" for spec in serving.inputs}
            for name, serving in functions.items()
        },
    }
    if "caption_sample" not in functions:
        return description
    decoding = run.recipe.decoding
    longest = checked_length(run.model, decoding.max_tokens)
    told = {"max_tokens": longest, "num_samples": decoding.num_samples, "beam_size": decoding.beam_size}
    return description | {"caption_options": told}


def described(run: LoadedRun, kind: str) -> dict[str, Any]:
    """What an export of any kind says of its run.

    Args:
        run: The run.
        kind: ``"saved_model"``, or one of `mmfusion.export.portable.FORMATS`.
    """
    return {
        "format": 1,
        "kind": kind,
        "name": run.recipe.name,
        "mmfusion": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "image_size": list(run.transform.size),
        "frames": run.transform.frames,
        "several_images": takes_several(run.model),
        "max_tokens": run.tokenizer.max_length,
        "grid": list(run.model.image_encoder.grid),
        "heads": list(run.model.heads),
        "weights": fingerprint(run.model),
    }


def _card(run: LoadedRun, description: dict[str, Any]) -> str:
    usage = [
        "## Signatures",
        "",
        *(f"- `{name}`: {', '.join(inputs)}" for name, inputs in description["signatures"].items()),
        *_more(description),
        "",
        f'`python examples/request.py {picture_name(description)} "a sentence"` runs them with `tensorflow` and '
        "`tensorflow_text` alone",
        "(import `tensorflow_text` before loading: it brings the tokenizer's operators).",
        "",
        *serving_lines(description["operators"], description["tensorflow"]),
    ]
    return model_card(run, usage)


def _more(description: dict[str, Any]) -> list[str]:
    lines = []
    if description["precision"] is not None:
        lines += [
            "",
            f"Weights and computation are brought to {description['precision']} after training: answers differ a little from the "
            "trained model's; `mmfusion verify` says by how much, `mmfusion evaluate --precision` what it costs.",
        ]
    if description["batch_size"] is not None:
        lines += [
            "",
            f"Every request is to have {description['batch_size']} examples; `mmfusion.load` fills up and cuts.",
        ]
    if "caption_options" in description:
        options = description["caption_options"]
        lines += [
            "",
            f"`caption_sample` draws {options['num_samples']}, `caption_beam` finds {options['beam_size']} captions of each "
            f"picture, with `max_tokens` from 1 to {options['max_tokens']}. `seed` is one number a picture, the other options "
            "are one for the whole request: ask by column (`inputs`), as in `examples/caption_sample.json`. TensorFlow Serving "
            "refuses them with `--enable_batching`, and does not warm them up.",
        ]
    return lines


def model_card(run: LoadedRun, usage: list[str]) -> str:
    """A model card in Markdown.

    Args:
        run: The run.
        usage: Lines on how the export is used.
    """
    data = run.recipe.data
    scores = run.folder.evaluation / "metrics.md"
    parts = [
        f"# {run.recipe.name}",
        "",
        f"An image-text model of mmfusion {__version__}, {run.model.count_params():,} parameters, heads: "
        f"{', '.join(run.model.heads)}. {_seen(run)} are seen at {run.transform.size[0]} x {run.transform.size[1]} "
        f"({data.resize}), sentences up to {run.tokenizer.max_length} tokens.",
        "",
        f"Trained on `{data.source}`{f' ({data.name})' if data.name else ''}, split `{data.train_split}`, by the recipe in "
        "`recipe.yaml`: `mmfusion train recipe.yaml` makes it again.",
        "",
        *usage,
        "",
    ]
    if scores.is_file():
        parts += ["## Scores", "", scores.read_text(encoding="utf-8"), ""]
    return "\n".join(parts)


def _seen(run: LoadedRun) -> str:
    if takes_several(run.model):
        return f"Up to {run.transform.frames} pictures an example (`image_bytes: string[B, N]`, empty where it has fewer)"
    return "Pictures" if run.transform.frames == 1 else f"Clips (animated GIFs) of up to {run.transform.frames} frames"
