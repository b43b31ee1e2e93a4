"""``mmfusion export``: a run into a SavedModel, LiteRT or ONNX."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mmfusion.cli.precision import PrecisionOption, word_of


class Format(str, Enum):
    """What an export can be."""

    SAVED_MODEL = "saved_model"
    LITERT = "litert"
    LITERT_INT8 = "litert-int8"
    ONNX = "onnx"


def export(
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: saved_models/ and the run folder's name.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export there.")] = False,
    kind: Annotated[
        Format, typer.Option("--format", help="saved_model takes files and sentences; the others pixels and token ids.")
    ] = Format.SAVED_MODEL,
    batch_size: Annotated[
        int | None, typer.Option(help="The one batch size of all signatures or functions. Default: free.", show_default=False)
    ] = None,
    with_options: Annotated[
        bool, typer.Option("--with-options", help="A SavedModel's captions also with options as inputs.")
    ] = False,
    precision: PrecisionOption = None,
) -> None:
    """Write a SavedModel that takes image files and sentences, or LiteRT or ONNX functions that need no TensorFlow."""
    from mmfusion.cli.environment import quiet_tensorflow
    from mmfusion.errors import ConfigError

    quiet_tensorflow()
    from mmfusion.export import export_model, export_portable
    from mmfusion.training import load_run

    kind = Format(kind)
    if kind is not Format.SAVED_MODEL and with_options:
        raise ConfigError(
            "its functions compute one token, options are what asks them", where="--with-options",
            expected="--format saved_model", found=kind.value,
        )  # fmt: skip
    if kind is not Format.SAVED_MODEL and precision is not None:
        raise ConfigError(
            "the number formats of LiteRT and ONNX are those of their files", where="--precision",
            expected="--format saved_model, or without it litert or onnx (float32) or litert-int8", found=kind.value,
        )  # fmt: skip
    loaded = load_run(run, precision=word_of(precision))
    # Not the recipe's name, which all of its runs share.
    made_as = loaded.precision if kind is Format.SAVED_MODEL else kind.value
    name = run.resolve().name if made_as is None else f"{run.resolve().name}-{made_as}"
    output, script = output or Path("saved_models") / name, "request.py"
    if kind is Format.SAVED_MODEL:
        folder = export_model(loaded, output, overwrite=overwrite, with_options=with_options, batch_size=batch_size)
    else:
        folder = export_portable(loaded, output, kind=kind.value, overwrite=overwrite, batch_size=batch_size)
        script = "run.py"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(f"{folder}: {size / 1e6:.1f} MB; try: python {folder}/examples/{script}")
