"""``mmfusion export``: a run into a SavedModel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: saved_models/ and the run folder's name.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export there.")] = False,
) -> None:
    """Write a SavedModel that takes image files and sentences."""
    from mmfusion.cli.environment import quiet_tensorflow

    quiet_tensorflow()
    from mmfusion.export import export_model
    from mmfusion.training import load_run

    loaded = load_run(run)
    # Not the recipe's name, which all of its runs share.
    folder = export_model(loaded, output or Path("saved_models") / run.resolve().name, overwrite=overwrite)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(f"{folder}: {size / 1e6:.1f} MB; try: python {folder}/examples/request.py")
