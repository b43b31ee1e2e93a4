"""``mmfusion search``: pictures that fit a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def search(
    model: Annotated[Path, typer.Argument(help="A run folder or an export.", show_default=False)],
    text: Annotated[str, typer.Argument(help="The sentence.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="A folder of pictures.", show_default=False)],
    top_k: Annotated[int, typer.Option(min=1, help="How many pictures to show.")] = 5,
    rerank: Annotated[int, typer.Option(min=0, help="How many candidates the matching head reorders.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Also draw the hits, as a PNG.")] = None,
) -> None:
    """Find the pictures of a folder that fit a sentence best."""
    from rich.console import Console
    from rich.progress import track  # noqa: F401

    from mmfusion.cli.environment import quiet_tensorflow

    quiet_tensorflow()
    from mmfusion.errors import DataError
    from mmfusion.export import load
    from mmfusion.retrieval import ImageIndex, list_images

    paths = list_images(folder)
    if not paths:
        raise DataError("no pictures there", where=folder, expected="JPEG, PNG, WebP, GIF or BMP files")
    index = ImageIndex(load(model))
    console = Console(stderr=True)
    with console.status("embedding pictures") as status:
        index.add(paths, progress=lambda done, total: status.update(f"embedding pictures: {done} of {total}"))
    for _, reason in index.unreadable:
        typer.echo(f"skipped: {reason}", err=True)
    hits = index.search(text, top_k=top_k, rerank=rerank)
    for rank, hit in enumerate(hits, start=1):
        match = "" if hit.match is None else f"  match {hit.match:.3f}"
        typer.echo(f"{rank:2}  similarity {hit.similarity:+.3f}{match}  {hit.path}")
    if picture is not None:
        from mmfusion.evaluation.figures import draw_retrieval

        typer.echo(f"drawn: {draw_retrieval}")
