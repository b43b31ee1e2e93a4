"""``mmfusion train``: a recipe into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe: a YAML file, or a name such as quickstart.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to change, as in train.epochs=3 data.path=photos.", show_default=False)
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/ and the recipe's name.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's quick variant.")] = False,
) -> None:
    """Train a recipe; started again with the same --run, it continues where it was."""
    from rich.console import Console

    from mmfusion.cli.environment import quiet_tensorflow
    from mmfusion.config import load_recipe

    resolved = load_recipe(recipe, overrides or [], quick=quick)
    folder = run or Path("runs") / (resolved.name + ("-quick" if quick else ""))
    quiet_tensorflow()
    from mmfusion.training import Checkpoints, RunFolder
    from mmfusion.training import train as train_recipe

    try:
        result = train_recipe(resolved, folder)
    except KeyboardInterrupt:
        steps = Checkpoints(RunFolder(folder).checkpoints).steps()
        place = f"after step {steps[-1]}" if steps else "from the start: there was no checkpoint yet"
        raise KeyboardInterrupt(f"stopped; the same command again continues {place} ({folder})") from None
    console = Console()
    best = ""
    if result.best is not None and result.best_epoch is not None:
        best = f"best {result.monitor} {result.best:.4g} at epoch {result.best_epoch + 1}, "
    skipped = f", {result.skipped} bad examples skipped (see quarantine.jsonl)" if result.skipped else ""
    console.print(f"{result.step} steps, {best}{result.seconds:.0f} s{skipped}; {folder}", highlight=False, soft_wrap=True)
