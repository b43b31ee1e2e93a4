"""``mmfusion verify``: an export against the model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    export: Annotated[Path, typer.Argument(help="The export's folder.", show_default=False)],
    run: Annotated[Path, typer.Option(help="The run that it was made from.", show_default=False)],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Pictures to compare on. Default: drawn ones.", show_default=False)
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest difference. Default 1e-4 (float32), 2e-2 (bfloat16, int8), 2.5e-3 (float16).")
    ] = None,
) -> None:
    """Run an export in a fresh process and compare every output with the Keras model."""
    from rich.table import Column, Table

    from mmfusion.cli.console import whole_lines
    from mmfusion.cli.environment import quiet_tensorflow
    from mmfusion.errors import ExportError

    quiet_tensorflow()
    from mmfusion.export import verify_export
    from mmfusion.training import load_run

    comparisons = verify_export(export, load_run(run), images=list(images or []) or None, tolerance=tolerance)
    table = Table(Column("output", overflow="fold"), "shape", "largest difference", "tolerance", "")
    for row in comparisons:
        verdict = "ok" if row.passed else "DIFFERS"
        table.add_row(row.output, str(row.shape), f"{row.difference:.2e}", f"{row.tolerance:.0e}", verdict)
    whole_lines().print(table)
    failed = [row.output for row in comparisons if not row.passed]
    if failed:
        raise ExportError("the export differs from the model", where=export, found=", ".join(failed))
    typer.echo("verified: the export answers like the model")
