"""Opens a run or an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from mmfusion.errors import ExportError
from mmfusion.export.fixed_signature import FixedSignature
from mmfusion.export.folder import DESCRIPTION
from mmfusion.export.predictor import Predictor


def load(path: str | Path, *, batch_size: int = 32, precision: str | None = None) -> Predictor:
    """Loads a run folder, or an export: a SavedModel, LiteRT or ONNX.

    LiteRT and ONNX compute without TensorFlow; it reads the files and sentences. They know no ``attend``.

    Args:
        path: The folder.
        batch_size: Pictures or sentences at a time. Default 32.
        precision: Of a run, the number format to compute in, see `mmfusion.models.in_number_format`: ``"float32"``,
            ``"bfloat16"``, ``"float16"`` or ``"int8"``. Default: the one that it was trained in; an export has its own.

    Returns:
        The `Predictor`.

    Raises:
        ExportError: If the folder is neither, its runtime is not installed, or an export is to compute in another format.
        ConfigError: If there is no such number format.
    """
    from mmfusion.training import RunFolder, load_run

    path = Path(path)
    described = _described(path)
    if described and precision is not None:
        raise ExportError(
            "an export's number format was chosen when it was made", where=path, expected="a run folder, or no precision",
            found=f"precision {precision}",
            fix="name the run, or export it in that format: mmfusion export RUN --precision FORMAT (or --format litert-int8)",
        )  # fmt: skip
    if described.get("kind", "saved_model") != "saved_model":
        return _load_portable(path, described, batch_size)
    if RunFolder(path).recipe.is_file() and not (path / "saved_model.pb").is_file():
        from mmfusion.export.serving_function import as_tf_function
        from mmfusion.export.serving_functions import serving_functions, takes_several

        run = load_run(path, precision=precision)
        signatures = serving_functions(
            run.model,
            run.tokenizer,
            run.transform,
            **run.recipe.decoding.options(),
        )
        return Predictor(
            {name: as_tf_function(function) for name, function in signatures.items()},
            name=str(path),
            batch_size=batch_size,
            frames=run.transform.frames,
            several=takes_several(run.model),
            run=run,
        )
    if not (path / "saved_model.pb").is_file() or not (path / DESCRIPTION).is_file():
        raise ExportError(
            "neither a run nor an export of mmfusion",
            where=path,
            expected=f"recipe.yaml with best.keras, or saved_model.pb with {DESCRIPTION}",
            found="no such folder" if not path.exists() else "a file" if path.is_file() else "a folder without them",
            fix="name a folder that `mmfusion train` or `mmfusion export` made",
        )
    import tensorflow_text  # noqa: F401  registers the tokenizer's operators

    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise ExportError("broken export", where=path, found=str(error).splitlines()[0][:200]) from error
    functions = {name: function for name, function in loaded.signatures.items() if name != "serving_default"}
    fixed = described.get("batch_size")
    if fixed is not None:
        functions = {name: FixedSignature(function, fixed) for name, function in functions.items()}
    frames, several = described.get("frames", 1), described.get("several_images", False)
    predictor = Predictor(
        functions, name=str(path), batch_size=batch_size, frames=frames, several=several,
        caption_options=described.get("caption_options"),
    )  # fmt: skip
    predictor._loaded = loaded  # type: ignore[attr-defined]  # keeps the variables alive
    return predictor


def _described(path: Path) -> dict[str, Any]:
    """What an export says of itself; nothing where there is none."""
    if not (path / DESCRIPTION).is_file():
        return {}
    try:
        return json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError("broken export", where=path / DESCRIPTION, found=str(error)[:200]) from error


def _load_portable(path: Path, described: dict[str, Any], batch_size: int) -> Predictor:
    from mmfusion.export.portable import FORMATS
    from mmfusion.export.portable_functions import portable_functions

    if described["kind"] not in FORMATS:
        raise ExportError(
            "an export of an unknown kind", where=path, expected=", ".join(("saved_model", *FORMATS)), found=described["kind"],
            fix="upgrade mmfusion",
        )  # fmt: skip
    functions, several = portable_functions(path, described), described["several_images"]
    return Predictor(functions, name=str(path), batch_size=batch_size, frames=described["frames"], several=several)
