"""``mmfusion tune``: a search over a recipe's ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tune(
    recipe: Annotated[Path, typer.Argument(help="The recipe, with a section tune.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to change, as in tune.max_trials=5.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the search goes. Default: runs/ and the recipe's name and -tune.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's quick variant.")] = False,
) -> None:
    """Search the ranges of a recipe's tune section; started again with the same --folder, it goes on."""
    from mmfusion.cli.environment import quiet_tensorflow
    from mmfusion.config import load_recipe

    resolved = load_recipe(recipe, overrides or [], quick=quick)
    quiet_tensorflow()
    from mmfusion.errors import ConfigError
    from mmfusion.tuning import Trial, search_recipe

    metric = "" if resolved.tune is None else resolved.tune.objective.metric

    def report(trial: Trial) -> None:
        values = ", ".join(f"{key}={value}" for key, value in trial.values.items() if not key.startswith("tuner/"))
        outcome = f"{metric} {trial.score:.4g}" if trial.score is not None else f"failed: {trial.error}"
        typer.echo(f"trial {trial.name}: {outcome}  ({values})")

    place = folder or Path("runs") / f"{resolved.name}-tune"
    try:
        result = search_recipe(resolved, place, report=report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command again goes on with the trial that was running ({place})") from None
    typer.echo(f"all trials: {result.report}")
    if result.best_recipe is None:
        raise ConfigError("every trial failed", where=result.report, fix="read the trials' output.txt beside it")
    typer.echo(f"best recipe: {result.best_recipe}")
