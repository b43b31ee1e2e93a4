"""``mmfusion translate``: a sentence about a picture in another language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmfusion.cli.precision import PrecisionOption, word_of


def translate(
    model: Annotated[Path, typer.Argument(help="A run folder or an export of a model that translates.", show_default=False)],
    image: Annotated[Path, typer.Argument(help="The picture.", show_default=False)],
    text: Annotated[str, typer.Argument(help="The sentence about it, in the model's source language.", show_default=False)],
    to: Annotated[list[str], typer.Option(help="Short name of the language, as in --to de; several are answered in turn.")],
    precision: PrecisionOption = None,
) -> None:
    """Translate a sentence about a picture, with the picture's help."""
    from mmfusion.cli.environment import native_notes_hidden, quiet_tensorflow

    quiet_tensorflow()
    from mmfusion.config import load_recipe
    from mmfusion.errors import ConfigError
    from mmfusion.export import load

    predictor = load(model, precision=word_of(precision))
    data = load_recipe(model / "recipe.yaml").data
    unknown = [language for language in to if language not in data.languages]
    # Rows of other sources say in their own way into what they are translated.
    if data.source == "builtin" and unknown:
        raise ConfigError(
            "the model has not learned to write this language",
            where="--to",
            expected=" or ".join(data.languages),
            found=", ".join(unknown),
        )
    for language in to:
        with native_notes_hidden():
            (answer,) = predictor.translate([image], [text], language)
        typer.echo(f"{language}: {answer.text}")
