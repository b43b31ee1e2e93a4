"""``mmfusion search``: pictures that fit a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfusion.cli.precision import PrecisionOption, word_of

if TYPE_CHECKING:
    from mmfusion.retrieval import Hit


def search(
    model: Annotated[Path, typer.Argument(help="A run folder or an export.", show_default=False)],
    text: Annotated[str, typer.Argument(help="The sentence.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="A folder of pictures.", show_default=False)],
    top_k: Annotated[int, typer.Option(min=1, help="How many pictures to show.")] = 5,
    rerank: Annotated[int, typer.Option(min=0, help="How many candidates the matching head reorders.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Also draw the hits, as a PNG.")] = None,
    precision: PrecisionOption = None,
) -> None:
    """Find the pictures of a folder that fit a sentence best."""
    from rich.console import Console

    from mmfusion.cli.environment import native_notes_hidden, quiet_tensorflow

    quiet_tensorflow()
    from mmfusion.errors import DataError
    from mmfusion.export import load
    from mmfusion.retrieval import ImageIndex, check_query, list_images

    check_query(text)
    paths = list_images(folder)
    if not paths:
        raise DataError("no pictures there", where=folder, expected="JPEG, PNG, WebP, GIF or BMP files")
    index = ImageIndex(load(model, precision=word_of(precision)))
    with native_notes_hidden() as screen, Console(file=screen).status("embedding pictures") as status:
        index.add(paths, progress=lambda done, total: status.update(f"embedding pictures: {done} of {total}"))
    if not index.paths:
        found = f"{len(paths)} bad ones, the first: {index.unreadable[0][1]}"
        raise DataError("no readable picture there", where=folder, found=found)
    for _, reason in index.unreadable:
        typer.echo(f"skipped: {reason}", err=True)
    hits = index.search(text, top_k=top_k, rerank=rerank)
    for rank, hit in enumerate(hits, start=1):
        similarity = "" if hit.similarity is None else f"  similarity {hit.similarity:+.3f}"
        match = "" if hit.match is None else f"  match {hit.match:.3f}"
        typer.echo(f"{rank:2}{similarity}{match}  {hit.path}")
    if picture is not None:
        _draw(text, hits, picture, index.predictor.frames)
        typer.echo(f"drawn: {picture}")


def _draw(text: str, hits: Sequence[Hit], picture: Path, frames: int) -> None:
    from mmfusion.data import decode_image
    from mmfusion.evaluation.figures import draw_retrieval

    images = [decode_image(hit.path.read_bytes()).numpy() if frames == 1 else _sheet(hit.path, frames) for hit in hits]
    draw_retrieval([text], [images], path=picture, scores=[[_score(hit) for hit in hits]])


def _score(hit: Hit) -> float:
    return next(score for score in (hit.match, hit.similarity) if score is not None)


def _sheet(path: Path, frames: int) -> Any:
    from mmfusion.data import decode_frames, frame_places
    from mmfusion.evaluation.drawing import contact_sheet

    pictures = decode_frames(path.read_bytes()).numpy()
    return contact_sheet(pictures[frame_places(len(pictures), frames).numpy()])
