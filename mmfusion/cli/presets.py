"""``mmfusion presets``: published compositions by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmfusion.config import Recipe


def presets(
    size: Annotated[
        str | None, typer.Option(help="Also count the parameters at a size: tiny, small or base.", show_default=False)
    ] = None,
    image_size: Annotated[int, typer.Option(min=16, help="Pixels, for the count.")] = 224,
    vocabulary_size: Annotated[int, typer.Option(min=10, help="Token ids, for the count.")] = 8000,
) -> None:
    """List the compositions that preset=NAME stands for."""
    import json

    from rich.table import Column, Table

    from mmfusion.cli.console import whole_lines
    from mmfusion.config import FROZEN, PRESETS, SIZES, recipe_from_dict
    from mmfusion.config.preset_merging import replaced
    from mmfusion.errors import ConfigError

    if size is not None and size not in SIZES:
        raise ConfigError("unknown size", where="--size", expected=", ".join(SIZES), found=size)
    names = ["image", "text", "fusion", "heads and losses", *(["parameters"] if size else [])]
    table = Table(Column("preset", no_wrap=True), *names, box=None, padding=(0, 2, 0, 0))
    for name in PRESETS:
        recipe = recipe_from_dict(replaced(SIZES[size or "tiny"], name))
        row = [name, _image(recipe), _text(recipe), _fusion(recipe), _terms(recipe)]
        if size is not None:
            row.append(f"{_parameters(name, size, image_size, vocabulary_size):,}")
        table.add_row(*row)
    console = whole_lines()
    console.print(table)
    note = "Weights are fresh, and all are trained. What the papers keep frozen, for pretrained weights that you have loaded:"
    keeping = [f"  {name}: 'train.freeze={json.dumps(patterns)}'" for name, patterns in FROZEN.items()]
    console.print("", note, *keeping, sep="\n", markup=False, highlight=False)


def _image(recipe: Recipe) -> str:
    encoder = "ViT" if recipe.model.image_encoder.depth else "patch embedding"
    return encoder if recipe.model.image_queries is None else f"{encoder}, {recipe.model.image_queries} queries"


def _text(recipe: Recipe) -> str:
    if not recipe.model.text_encoder.depth:
        return "token embedding"
    return "causal Transformer" if recipe.model.causal_text else "Transformer"


def _fusion(recipe: Recipe) -> str:
    if not recipe.model.fuses:
        return "–"
    style = recipe.fusion.style
    return style if recipe.fusion.inner is None else f"{style}, {recipe.fusion.inner}"


def _terms(recipe: Recipe) -> str:
    contrastive = recipe.objective.contrastive
    words = [f"contrastive ({contrastive.loss})" if term == "contrastive" and contrastive else term for term in recipe.terms]
    return ", ".join(words + ["momentum"] * (recipe.objective.momentum is not None))


def _parameters(name: str, size: str, image_size: int, vocabulary_size: int) -> int:
    from mmfusion.cli.environment import quiet_tensorflow

    quiet_tensorflow()
    from mmfusion.models import ImageTextModel

    return int(ImageTextModel.from_preset(name, vocabulary_size=vocabulary_size, image_size=image_size, size=size).count_params())
