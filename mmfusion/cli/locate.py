"""``mmfusion locate``: where in a picture a phrase is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmfusion.cli.precision import PrecisionOption, word_of


def locate(
    model: Annotated[Path, typer.Argument(help="A run folder or an export.", show_default=False)],
    image: Annotated[Path, typer.Argument(help="A picture.", show_default=False)],
    phrase: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    sentence: Annotated[str | None, typer.Option(help="A sentence that holds the phrase, read instead of it.")] = None,
    method: Annotated[str, typer.Option(help="attention, similarity, gradient, input; exports: attention.")] = "attention",
    picture: Annotated[Path | None, typer.Option(help="Also draw the heat map, as a PNG.")] = None,
    precision: PrecisionOption = None,
) -> None:
    """Find where in a picture a phrase is."""
    from mmfusion.cli.environment import native_notes_hidden, quiet_tensorflow

    quiet_tensorflow()
    import numpy as np

    from mmfusion.config import load_recipe
    from mmfusion.data import decode_image
    from mmfusion.explain import draw_heat
    from mmfusion.export import load
    from mmfusion.training.experiment import image_transform

    predictor = load(model, precision=word_of(precision))
    with native_notes_hidden():
        found = predictor.localise(image, phrase, method=method, sentence=sentence)
    rows, columns = found.heat.shape
    row, column = divmod(int(np.argmax(found.heat)), columns)
    score = "" if np.isnan(found.score) else f"; the text fits the picture: {found.score:.3f}"
    typer.echo(f"hottest: row {row + 1} of {rows}, column {column + 1} of {columns}, {found.heat.max():.0%} of the heat{score}")
    if picture is not None:
        # The grid lies over what the model sees, which may be a part of the picture.
        transform: Any = image_transform(load_recipe(model / "recipe.yaml"))
        seen = transform.resize(decode_image(image.read_bytes()))
        draw_heat(seen.numpy().astype("uint8"), found.heat, picture, title=phrase)
        typer.echo(f"drawn: {picture}")
