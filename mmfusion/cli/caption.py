"""``mmfusion caption``: captions of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfusion.cli.precision import PrecisionOption, word_of

if TYPE_CHECKING:
    from mmfusion.export import Caption, Predictor


def caption(
    model: Annotated[Path, typer.Argument(help="A run folder or an export.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.", show_default=False)],
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="How to write, where not as its recipe says, of a run: method=sample, num_samples=3, beam_size=5, "
            "prefix='a red', forbidden=[man], ...; of an export made --with-options what its captions take.",
            show_default=False,
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Of a run: show each caption while it is written.")] = False,
    precision: PrecisionOption = None,
) -> None:
    """Write a caption for each picture, or several."""
    from mmfusion.cli.environment import native_notes_hidden, quiet_tensorflow

    quiet_tensorflow()
    from mmfusion.config.overrides import apply_overrides
    from mmfusion.errors import DataError
    from mmfusion.export import load
    from mmfusion.export.option_inputs import seeds_of
    from mmfusion.retrieval import list_images

    asked = apply_overrides({}, options or [])
    predictor = load(model, precision=word_of(precision))
    paths = [path for image in images for path in (list_images(image) if image.is_dir() else [image])]
    if asked.get("method") == "sample":
        asked.setdefault("seeds", 0)
    seeds = seeds_of(asked["seeds"], len(paths), "--set seeds").tolist() if "seeds" in asked else None

    def asked_of(start: int, end: int) -> dict[str, Any]:
        return asked if seeds is None else {**asked, "seeds": seeds[start:end]}

    failed = 0
    for start in range(0, len(paths), 1 if stream else predictor.batch_size):
        batch = paths[start : start + (1 if stream else predictor.batch_size)]
        own = asked_of(start, start + len(batch))
        with native_notes_hidden():
            if stream:
                answers = [_streamed(predictor, batch[0], own)]
            else:
                try:
                    answers = list(zip(batch, _captions(predictor, batch, own), [None] * len(batch), strict=True))
                except DataError:
                    answers = [_one(predictor, path, asked_of(at, at + 1)) for at, path in enumerate(batch, start)]
        for path, captions, error in answers:
            if error is not None:
                failed += 1
                typer.echo(f"error: {error}", err=True)
            elif not stream:
                _tell(path, captions, json_lines)
    if failed:
        raise typer.Exit(2)
    if not paths:
        raise DataError("no pictures there", where=", ".join(map(str, images)), expected="JPEG, PNG, WebP, GIF or BMP files")


def _captions(predictor: Predictor, paths: list[Path], options: dict[str, Any]) -> list[list[Caption]]:
    return predictor.captions(paths, **options) if options else [[found] for found in predictor.caption(paths)]


def _one(predictor: Predictor, path: Path, options: dict[str, Any]) -> tuple[Path, list[Caption], Exception | None]:
    from mmfusion.errors import DataError

    try:
        return path, _captions(predictor, [path], options)[0], None
    except DataError as error:
        return path, [], error


def _streamed(predictor: Predictor, path: Path, options: dict[str, Any]) -> tuple[Path, list[Caption], Exception | None]:
    from mmfusion.errors import DataError

    try:
        shown = f"{path}: "
        typer.echo(shown, nl=False)
        for text in predictor.stream_caption(path, **options):
            # What is new, where the text only grew; all of it where a word was joined to the one before.
            line = f"{path}: {text}"
            typer.echo(line[len(shown) :] if line.startswith(shown) else f"\r{line}", nl=False)
            shown = line
        typer.echo()
        return path, [], None
    except DataError as error:
        typer.echo()
        return path, [], error


def _tell(path: Path, captions: list[Caption], json_lines: bool) -> None:
    import json

    if not json_lines:
        for found in captions:
            typer.echo(f"{path}: {found.text}")
        return
    rows = [{"caption": found.text, "score": round(found.score, 4)} for found in captions]
    row = {"image": str(path), **(rows[0] if len(rows) == 1 else {"captions": rows})}
    typer.echo(json.dumps(row, ensure_ascii=False))
