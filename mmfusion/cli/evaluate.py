"""``mmfusion evaluate``: a run's best model against a split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmfusion.cli.precision import PrecisionOption, word_of

# Where the data is and what is measured; how pictures are prepared and what the model is were settled by the training.
_FREE_SECTIONS = ("evaluation", "decoding")
_FREE_DATA = ("source", "path", "name", "languages", "train_split", "validation_split", "validation_share", "limit")


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values of its recipe to change, as in evaluation.split=test data.path=photos.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the results go. Default: RUN/evaluation, with --precision RUN/evaluation-FORMAT.")
    ] = None,
    precision: PrecisionOption = None,
) -> None:
    """Measure retrieval, reranking and captions of a run; writes JSON, a table and pictures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from mmfusion.cli.console import whole_lines
    from mmfusion.cli.environment import quiet_tensorflow
    from mmfusion.config import load_recipe

    _check_overrides(overrides or [])
    quiet_tensorflow()
    from mmfusion.data import open_source
    from mmfusion.evaluation.evaluate import evaluate_model
    from mmfusion.evaluation.report import print_report
    from mmfusion.explain import draw_attention_example
    from mmfusion.training import load_run

    loaded = load_run(run, precision=word_of(precision))
    recipe = load_recipe(loaded.folder.recipe, overrides or [])
    # The figures of the model as it was trained stay where they are, to compare with.
    folder = output or loaded.folder.evaluation.with_name(f"evaluation{'' if precision is None else f'-{loaded.precision}'}")
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=total)

    source = open_source(recipe.data)
    with bar:
        evaluate_model(
            recipe,
            loaded.model,
            loaded.tokenizer,
            loaded.transform,
            source,
            folder,
            precision=loaded.precision,
            progress=progress,
        )
    if loaded.model.fusion is not None and recipe.translation is None:
        split = recipe.evaluation.split or recipe.data.validation_split
        draw_attention_example(loaded.model, loaded.tokenizer, loaded.transform, source.splits[split], folder / "attention.png")
    print_report(folder, whole_lines())


def _check_overrides(overrides: list[str]) -> None:
    from mmfusion.errors import ConfigError

    for override in overrides:
        path = override.partition("=")[0].strip()
        section, _, key = path.partition(".")
        if section not in _FREE_SECTIONS and not (section == "data" and key in _FREE_DATA):
            raise ConfigError(
                "a trained model cannot be evaluated with this changed",
                where=path,
                expected=f"evaluation.…, decoding.… or data.{{{', '.join(_FREE_DATA)}}}",
                fix="train another run with it",
            )
