"""``mmfusion caption``: captions of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def caption(
    model: Annotated[Path, typer.Argument(help="A run folder or an export.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.", show_default=False)],
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Write a caption for each picture."""
    import json

    from mmfusion.cli.environment import native_notes_hidden, quiet_tensorflow

    quiet_tensorflow()
    from mmfusion.errors import DataError
    from mmfusion.export import load
    from mmfusion.retrieval import list_images

    predictor = load(model)
    paths = [path for image in images for path in (list_images(image) if image.is_dir() else [image])]
    failed = 0
    for start in range(0, len(paths), predictor.batch_size):
        batch = paths[start : start + predictor.batch_size]
        with native_notes_hidden():
            try:
                answers = [(path, answer, None) for path, answer in zip(batch, predictor.caption(batch), strict=True)]
            except DataError:
                answers = [_one(predictor, path) for path in batch]
        for path, answer, error in answers:
            if answer is None:
                failed += 1
                typer.echo(f"error: {error}", err=True)
            elif json_lines:
                row = {"image": str(path), "caption": answer.text, "score": round(answer.score, 4)}
                typer.echo(json.dumps(row, ensure_ascii=False))
            else:
                typer.echo(f"{path}: {answer.text}")
    if failed:
        raise typer.Exit(2)
    if not paths:
        raise DataError("no pictures there", where=", ".join(map(str, images)), expected="JPEG, PNG, WebP, GIF or BMP files")


def _one(predictor, path):  # type: ignore[no-untyped-def]
    from mmfusion.errors import DataError

    try:
        return path, predictor.caption([path])[0], None
    except DataError as error:
        return path, None, error
