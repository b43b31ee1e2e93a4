"""Pictures of what a model does: retrieval lists, captions, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.errors import DataError
from mmfusion.evaluation.drawing import (
    INK,
    QUIET,
    RIGHT,
    as_pixels,
    label,
    new_figure,
    save_figure,
    show_image,
    wrap_text,
)
from mmfusion.evaluation.learning_curves import draw_learning_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_captions", "draw_learning_curves", "draw_retrieval"]


def draw_retrieval(
    texts: Sequence[str],
    images: Sequence[Sequence[npt.ArrayLike]],
    right: Sequence[Sequence[bool]] | None = None,
    path: str | Path | None = None,
    *,
    scores: Sequence[Sequence[float]] | None = None,
    ranks: Sequence[int] | None = None,
    title: str | None = None,
) -> Figure:
    """Draws a row for each query text: the text, then the images found, the right one framed.

    Args:
        texts: The queries.
        images: The images found for each query, best first: ``uint8[h, w, 3]`` or floats in 0..1, of any sizes; rows
            may differ in length.
        right: Whether each of them belongs to the text. Default: unknown, nothing is framed.
        path: Where to save the picture. Default: nowhere.
        scores: The scores of the images. Default: only their places are shown.
        ranks: Rank of the right image of each query, told where it is not among those shown. Default: unknown.
        title: A line above all.

    Returns:
        The figure; its axes are, row by row, the text's and one an image.

    Raises:
        DataError: If there is nothing to draw, lengths are unequal, or an image cannot be drawn.

    Example:
        >>> red, blue = np.zeros((2, 8, 8, 3), np.uint8)
        >>> figure = draw_retrieval(["a red square"], [[red, blue]], [[True, False]], scores=[[0.9, 0.1]])
        >>> len(figure.axes)
        3
    """
    _check_lengths(texts, images=images, right=right, scores=scores, ranks=ranks)
    examples = [
        _Row(
            text,
            images[row],
            None if right is None else right[row],
            None if scores is None else scores[row],
            None if ranks is None else ranks[row],
        )
        for row, text in enumerate(texts)
    ]
    columns = max((len(found) for found in images), default=0)
    if not columns:
        raise DataError("nothing to draw", expected="at least one query with an image")
    pixels = [_pixels_of(example, f"query {row}") for row, example in enumerate(examples)]
    cell, text_width, gap, line, margin = 1.5, 2.1, 0.12, 0.42, 0.15
    heights = [max(cell * max(map(_shape, row), default=0.0), 0.9) for row in pixels]
    width = 2 * margin + text_width + columns * (cell + gap)
    canvas = _Canvas.of_size(width, sum(heights) + len(pixels) * line + margin, title)
    bottom = canvas.top
    for example, found, height in zip(examples, pixels, heights, strict=True):
        bottom -= height + line
        _write_query(canvas, example, (margin, bottom, text_width, height))
        for column, image in enumerate(found):
            hit = example.right is not None and bool(example.right[column])
            axes = canvas.axes(margin + text_width + column * (cell + gap), bottom, cell, height)
            show_image(axes, image, frame=RIGHT if hit else "#d0d7de", width=3.5 if hit else 0.8)
            head = str(column + 1) if example.scores is None else f"{column + 1}   {example.scores[column]:.3g}"
            axes.set_title(
                f"{head}   ✓" if hit else head, size=8.5, color=RIGHT if hit else QUIET, pad=5,
                weight="bold" if hit else "normal", parse_math=False,
            )  # fmt: skip
    return save_figure(canvas.figure, path)


def draw_captions(
    images: Sequence[npt.ArrayLike],
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    path: str | Path | None = None,
    *,
    columns: int = 4,
    title: str | None = None,
) -> Figure:
    """Draws images with the captions that a model wrote, and what a person wrote below.

    Args:
        images: ``uint8[h, w, 3]`` or floats in 0..1, of any sizes.
        captions: One an image.
        references: People's captions of each image; the first is shown. Default: none.
        path: Where to save the picture. Default: nowhere.
        columns: Images a row. Default 4.
        title: A line above all.

    Returns:
        The figure, with one axes an image.

    Raises:
        DataError: If there is nothing to draw, lengths are unequal, or an image cannot be drawn.

    Example:
        >>> import numpy as np
        >>> figure = draw_captions([np.zeros((8, 8, 3))], ["a black square"], [["nothing to see"]])
        >>> len(figure.axes)
        1
    """
    _check_lengths(images, captions=captions, references=references)
    if not len(images):
        raise DataError("nothing to draw", expected="at least one image")
    columns = max(1, min(columns, len(images)))
    pixels = [as_pixels(image, f"image {index}") for index, image in enumerate(images)]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    cell, gap, margin, text_height = 2.3, 0.2, 0.15, 0.72 if references is None else 1.25
    heights = [cell * max(_shape(pixels[index]) for index in row) for row in rows]
    width = 2 * margin + columns * cell + (columns - 1) * gap
    canvas = _Canvas.of_size(width, sum(heights) + len(rows) * text_height + 0.05, title)
    bottom = canvas.top
    for row, height in zip(rows, heights, strict=True):
        bottom -= height
        for column, index in enumerate(row):
            left = margin + column * (cell + gap)
            show_image(canvas.axes(left, bottom, cell, height, anchor="S"), pixels[index])
            caption = canvas.write(left, bottom - 0.07, captions[index] or "(empty)", cell, size=9.5, weight="bold")
            if references is not None and references[index]:
                below = bottom - 0.13 - 0.168 * (caption.count("\n") + 1)
                canvas.write(left, below, references[index][0], cell, size=8.5, color=QUIET)
        bottom -= text_height
    return save_figure(canvas.figure, path)


class _Row(NamedTuple):
    text: str
    images: Sequence[npt.ArrayLike]
    right: Sequence[bool] | None
    scores: Sequence[float] | None
    rank: int | None


class _Canvas(NamedTuple):
    """A figure addressed in inches from its lower left corner; `top` is where the title ends."""

    figure: Figure
    width: float
    height: float
    top: float

    @classmethod
    def of_size(cls, width: float, content: float, title: str | None) -> _Canvas:
        head = 0.45 if title else 0.1
        canvas = cls(new_figure(width, content + head), width, content + head, content)
        if title:
            canvas.write(0.15, content + 0.33, title, width - 0.3, size=12, weight="bold", max_lines=1)
        return canvas

    def axes(self, left: float, bottom: float, width: float, height: float, anchor: str = "C") -> Axes:
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box, anchor=anchor)

    def write(
        self,
        left: float,
        top: float,
        text: str,
        width: float,
        *,
        size: float,
        weight: str = "normal",
        max_lines: int = 3,
        color: str = INK,
    ) -> str:
        wrapped = wrap_text(self.figure, text, width, size=size, weight=weight, max_lines=max_lines)
        label(
            self.figure, left / self.width, top / self.height, wrapped, size=size, weight=weight, color=color, va="top",
            linespacing=1.15,
        )  # fmt: skip
        return wrapped


def _shape(pixels: npt.NDArray[np.uint8]) -> float:
    """Height of an image that is drawn with width 1, in a square at most."""
    height, width = pixels.shape[:2]
    return float(min(height / width, 1.0))


def _check_lengths(first: Sequence[object], **others: Sequence[object] | None) -> None:
    found = {name: len(other) for name, other in others.items() if other is not None}
    if any(count != len(first) for count in found.values()):
        told = ", ".join(f"{count} {name}" for name, count in found.items())
        raise DataError("lists to draw differ in length", expected=f"{len(first)} each", found=told)


def _pixels_of(row: _Row, where: str) -> list[npt.NDArray[np.uint8]]:
    for name, values in (("right", row.right), ("scores", row.scores)):
        if values is not None and len(values) != len(row.images):
            raise DataError(
                "lists to draw differ in length", where=where, expected=len(row.images), found=f"{len(values)} {name}"
            )
    return [as_pixels(image, f"{where}, image {column}") for column, image in enumerate(row.images)]


def _write_query(canvas: _Canvas, example: _Row, box: tuple[float, float, float, float]) -> None:
    axes = canvas.axes(*box)
    axes.set_axis_off()
    wrapped = wrap_text(canvas.figure, example.text, box[2] - 0.15, size=10, max_lines=max(3, int(box[3] / 0.22)))
    label(axes, 0, 0.5, wrapped, size=10, va="center", linespacing=1.25)
    if example.right is not None and not any(example.right):
        note = "right one not shown" if example.rank is None else f"right one at rank {example.rank}"
        below = 0.5 - (0.105 * (wrapped.count("\n") + 1) + 0.06) / box[3]
        label(axes, 0, below, note, size=8, color=QUIET, va="top")
