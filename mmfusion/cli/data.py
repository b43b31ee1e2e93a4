"""``mmfusion data``: look at a data set before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at a data set before training on it.")


@app.callback()
def data() -> None:
    """Look at a data set before training on it."""


@app.command()
def check(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a JSONL, CSV, TFRecord or tar file, a recipe (.yaml), 'builtin', or 'tfds:NAME'.", show_default=False
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="With a recipe: values to change.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the report there, as JSON.")] = None,
) -> None:
    """Read everything once and report counts, sizes, caption lengths, duplicates and every bad row."""
    from mmfusion.cli.environment import quiet_tensorflow

    quiet_tensorflow()
    from mmfusion.cli.data_report import report

    report(source, overrides or [], as_json=as_json, output=output)


@app.command("make-clips")
def make(
    folder: Annotated[Path, typer.Argument(help="Where to; a new folder.", show_default=False)],
    task: Annotated[str, typer.Option(help="motion: GIFs of moving icons; order: rows of two pictures.")] = "motion",
    copies: Annotated[int, typer.Option(min=1, help="Training clips of each thing and motion.")] = 5,
    things: Annotated[int, typer.Option(min=2, help="How many different things.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
) -> None:
    """Write a small data set of moving icons (Twemoji) whose captions no single picture can tell."""
    from mmfusion.cli.environment import quiet_tensorflow

    quiet_tensorflow()
    from mmfusion.data.clip_maker import make_clips

    typer.echo(f"written: {make_clips(folder, task=task, copies=copies, things=things, seed=seed)}")
