"""Writes a run as a SavedModel that takes image files and sentences."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mmfusion.config import dump_recipe
from mmfusion.errors import ExportError
from mmfusion.export.fingerprint import fingerprint
from mmfusion.export.folder import DESCRIPTION, check_output, written_at_once
from mmfusion.export.serving_functions import ServingFunction, as_tf_function, serving_functions, takes_several
from mmfusion.training import LoadedRun
from mmfusion.version import __version__

REQUEST = "request.py"


def export_model(run: LoadedRun, output: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a SavedModel with the named signatures, its recipe, vocabulary, card and example requests.

    The folder appears when it is complete; a failure leaves nothing behind.

    Args:
        run: What to export.
        output: The folder to write.
        overwrite: Whether an earlier export there is replaced. Default False.

    Returns:
        The folder.

    Raises:
        ExportError: If the folder exists and is not to be replaced, or cannot be written.
    """
    output = Path(output)
    check_output(output, overwrite)
    functions = serving_functions(
        run.model,
        run.tokenizer,
        run.transform,
        **run.recipe.decoding.options(),
    )
    # Not Keras's ExportArchive: there each signature is traced twice, half the time of an export.
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
        description = _description(run, functions)
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(run, description), encoding="utf-8")
        _write_examples(partial / "examples", description)
    return output


def example_image(size: int = 96) -> bytes:
    r"""A drawn picture as JPEG bytes: free of any licence, for examples and checks.

    Args:
        size: Its side in pixels. Default 96.

    Example:
        >>> from mmfusion.export.saved_model import example_image
        >>> example_image()[:2]
        b'\xff\xd8'
    """
    ramp = tf.linspace(0.0, 255.0, size)
    red, green = tf.meshgrid(ramp, ramp)
    distance = tf.sqrt((red - 127.0) ** 2 + (green - 127.0) ** 2)
    blue = tf.where(distance < 80.0, 230.0, 40.0)
    return tf.io.encode_jpeg(tf.cast(tf.stack([red, green, blue], axis=-1), tf.uint8), quality=95).numpy()


def example_clip(size: int = 96, frames: int = 6) -> bytes:
    r"""A drawn moving picture as GIF bytes, as free as `example_image`.

    Args:
        size: Its side in pixels. Default 96.
        frames: Its frames. Default 6.

    Example:
        >>> from mmfusion.export.saved_model import example_clip
        >>> example_clip()[:3]
        b'GIF'
    """
    import io

    from PIL import Image

    still = tf.io.decode_jpeg(example_image(size)).numpy()
    pictures = [Image.fromarray(np.roll(still, step * size // 12, axis=1)) for step in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return buffer.getvalue()


def _traced(serving: ServingFunction) -> Any:
    names = ", ".join(spec.name for spec in serving.inputs)
    # SavedModel takes the request's keys from the parameters' names; the functions have them already.
    code = serving.function.__code__
    expected = code.co_varnames[: code.co_argcount]
    if ", ".join(expected) != names:
        raise ExportError("a signature's inputs are not its function's", expected=names, found=", ".join(expected))
    return as_tf_function(serving).get_concrete_function()


def _description(run: LoadedRun, functions: dict[str, Any]) -> dict[str, Any]:
    return {
        **described(run, "saved_model"),
        "signatures": {
            name: {spec.name: f"{spec.dtype.name}{list(spec.shape)}" for spec in serving.inputs}
            for name, serving in functions.items()
        },
    }


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
        "",
        f'`python examples/request.py {_picture_name(description)} "a sentence"` runs them with `tensorflow` and '
        "`tensorflow_text` alone",
        "(import `tensorflow_text` before loading: it brings the tokenizer's operators).",
    ]
    return model_card(run, usage)


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


def _picture_name(description: dict[str, Any]) -> str:
    return "picture.gif" if description["frames"] > 1 and not description["several_images"] else "picture.jpg"


def _write_examples(folder: Path, description: dict[str, Any]) -> None:
    folder.mkdir()
    name = _picture_name(description)
    picture = example_clip() if name.endswith("gif") else example_image()
    (folder / name).write_bytes(picture)
    encoded: Any = {"b64": base64.b64encode(picture).decode()}
    values = {"image_bytes": [encoded] if description["several_images"] else encoded, "text": "a colourful square"}
    known = description["signatures"]
    name = next(name for name in ("caption", "encode_image", "match", *known) if name in known)
    request = {"signature_name": name, "instances": [{key: values[key] for key in known[name] if key in values}]}
    (folder / "request.json").write_text(json.dumps(request, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("request_example.py"), folder / REQUEST)
