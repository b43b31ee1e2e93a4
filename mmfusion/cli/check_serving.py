"""``mmfusion check-serving``: an export's operators against TensorFlow Serving's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check_serving(
    export: Annotated[Path, typer.Argument(help="A SavedModel that `mmfusion export` wrote.", show_default=False)],
    releases: Annotated[list[str], typer.Argument(help="Releases of TensorFlow Serving, as 2.14.", show_default=False)],
) -> None:
    """Say which of an export's operators a release of TensorFlow Serving has, lacks, or may lack."""
    from mmfusion.cli.environment import quiet_tensorflow
    from mmfusion.errors import ExportError

    quiet_tensorflow()
    from mmfusion.export import check_serving as check

    lacking = []
    for release in releases:
        found = check(export, release)
        for what, names in (("has", found.held), ("lacks", found.lacking), ("not verified", found.unknown)):
            if names:
                typer.echo(f"TensorFlow Serving {release}: {what}: {', '.join(names)}")
        if not (found.held or found.lacking or found.unknown):
            typer.echo(f"TensorFlow Serving {release}: the export needs no operators but TensorFlow's own")
        if any(name.startswith("Xla") for name in found.unknown):
            # Exports of before: Serving's flag is off by default, and its own help calls it experimental.
            typer.echo("  operators of XLA run with --xla_cpu_compilation_enabled alone; an export made now has none")
        if found.source is not None:
            typer.echo(f"  by {found.source}")
        if found.older:
            typer.echo(f"  warning: older than the export's TensorFlow {found.tensorflow}, it may lack operators of that")
        lacking += [f"{release} lacks {', '.join(found.lacking)}"] if found.lacking else []
    if lacking:
        raise ExportError("the export cannot be served", where=export, found="; ".join(lacking), fix="choose another release")
