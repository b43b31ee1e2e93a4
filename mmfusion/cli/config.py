"""``mmfusion config``: look at recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Show and check recipes.")


@app.callback()
def config() -> None:
    """Show and check recipes."""


@app.command()
def show(
    recipe: Annotated[Path, typer.Argument(help="The recipe: a YAML file, or a name such as quickstart.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="Values to change.", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's quick variant.")] = False,
) -> None:
    """Print a recipe with all defaults and changes in place."""
    from mmfusion.config import dump_recipe, load_recipe

    typer.echo(dump_recipe(load_recipe(recipe, overrides or [], quick=quick)), nl=False)


@app.command()
def check(
    recipes: Annotated[
        list[str],
        typer.Argument(
            help="Recipes: YAML files, or names such as quickstart; and values to change in them, as in fusion.style=gated.",
            show_default=False,
        ),
    ],
) -> None:
    """Check recipes and their quick variants without training, with the changes that train would be given."""
    from mmfusion.config import load_recipe
    from mmfusion.errors import ConfigError

    overrides = [word for word in recipes if "=" in word and not Path(word).is_file()]
    files = [word for word in recipes if word not in overrides]
    if not files:
        raise ConfigError("no recipe is named", expected="a file or a name such as quickstart", found=" ".join(overrides))
    failed = 0
    for recipe in files:
        try:
            for quick in (False, True):
                load_recipe(recipe, overrides, quick=quick)
            typer.echo(f"{recipe}: good")
        except ConfigError as error:
            failed += 1
            typer.echo(f"error: {error}", err=True)
    if failed:
        raise typer.Exit(2)
