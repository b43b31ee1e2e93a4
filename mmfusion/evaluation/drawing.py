"""What all figures share: a canvas without global state, images as pixels, and labels that any font can show.

Figures are built from matplotlib's objects, never through ``pyplot``: nothing is left open, no window is needed, and
threads do not disturb one another. matplotlib loads when the first figure is made.
"""

from __future__ import annotations

import math
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmfusion.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RIGHT, SERIES = "#1f2328", "#6e7781", "#1a7f37", ("#0969da", "#cf6a00", "#1a7f37", "#8250df", "#bf3989")
DOTS_PER_INCH = 150
_UNKNOWN = "\u25a1"  # a white square, which the default font has
_PREFERRED_FONTS = (
    "DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC",
    "Noto Sans KR", "Source Han Sans", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Hebrew",
    "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "Hiragino Sans", "PingFang SC", "FreeSans", "Symbola",
)  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    """Makes an empty figure.

    Args:
        width: Inches.
        height: Inches.

    Returns:
        A ``matplotlib.figure.Figure`` that draws with Agg.

    Example:
        >>> new_figure(4, 3).get_size_inches().tolist()
        [4.0, 3.0]
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Drawn at the resolution that it is saved in: letters are fitted to dots, so a text measured in another is wider.
    figure = Figure(figsize=(width, height), facecolor="white", dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path | None) -> Figure:
    """Writes a figure, if there is a path, and returns it.

    Args:
        figure: The figure.
        path: Where to, with a suffix that matplotlib knows; folders are made. None writes nothing.

    Returns:
        The same figure.

    Raises:
        DataError: If it cannot be written.

    Example:
        >>> save_figure(new_figure(1, 1), None).axes
        []
    """
    if path is not None:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=DOTS_PER_INCH)
        except (OSError, ValueError) as error:
            raise DataError("cannot write the figure", where=path, found=error) from error
    return figure


def as_pixels(image: npt.ArrayLike, where: str = "image") -> npt.NDArray[np.uint8]:
    """Turns an image into pixels that can be shown.

    Args:
        image: ``uint8[h, w, 3]``, or ``float[h, w, 3]`` in 0..1; also ``[h, w]`` and ``[h, w, 1]``, which are grey.
        where: What to call it in an error. Default ``"image"``.

    Returns:
        ``uint8[h, w, 3]``.

    Raises:
        DataError: If it has another shape, or floats outside of 0..1 (a normalised image, say).

    Example:
        >>> as_pixels(np.full((1, 1, 3), 0.5)).tolist()
        [[[128, 128, 128]]]
    """
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise DataError("not an image to draw", where=where, expected="[h, w, 3]", found=list(np.shape(image)))
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= -1e-3 and pixels.max() <= 1.001):
            raise DataError(
                "not an image to draw",
                where=where,
                expected="floats in 0..1",
                found=f"{pixels.min():.3g}..{pixels.max():.3g}",
                fix="draw the image as it was before normalisation",
            )
        pixels = np.clip(np.rint(pixels * 255.0), 0, 255)
    elif pixels.dtype != np.uint8:
        raise DataError("not an image to draw", where=where, expected="uint8 or floats", found=pixels.dtype)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8)


def contact_sheet(frames: npt.NDArray[np.uint8], *, columns: int | None = None) -> npt.NDArray[np.uint8]:
    """Lays the pictures of a clip side by side, row by row, with white lines between them.

    Args:
        frames: ``uint8[F, h, w, 3]``.
        columns: Pictures a row. Default: as many as rows, or one more.

    Returns:
        ``uint8[height, width, 3]``; of a single picture, that picture.

    Example:
        >>> contact_sheet(np.zeros((4, 10, 20, 3), np.uint8)).shape
        (21, 41, 3)
    """
    count, height, width = frames.shape[:3]
    if count == 1:
        return frames[0]
    columns = math.ceil(math.sqrt(count)) if columns is None else min(columns, count)
    rows, gap = math.ceil(count / columns), max(round(min(height, width) / 24), 1)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for place, frame in enumerate(frames):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def show_image(axes: Axes, pixels: npt.NDArray[np.uint8], *, frame: str | None = None, width: float = 1.0) -> None:
    """Shows an image without ticks.

    Args:
        axes: Where.
        pixels: ``uint8[h, w, 3]``.
        frame: Colour of a frame. Default: no frame.
        width: Points of the frame. Default 1.

    Example:
        >>> axes = new_figure(1, 1).add_subplot()
        >>> show_image(axes, np.zeros((4, 4, 3), np.uint8), frame=RIGHT)
        >>> len(axes.images)
        1
    """
    axes.imshow(pixels, interpolation="bilinear")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_edgecolor(frame or INK)
        spine.set_linewidth(width)


def displayable(text: str) -> str:
    r"""Replaces what no installed font can show by a white square, and drops what cannot be seen.

    Args:
        text: Any text. Right-to-left scripts are left in their logical order: matplotlib from 3.11 on lays them out.

    Returns:
        One line of text whose every character has a glyph; an emoji and its modifiers become one square.

    Example:
        >>> displayable("caf\u00e9 \U0001faa9\ufe0f now\n")
        'café □ now'
    """
    known = _fonts()[1]
    shown: list[str] = []
    for character in unicodedata.normalize("NFC", text):
        if unicodedata.category(character) in {"Cf", "Cs"} or 0xFE00 <= ord(character) <= 0xFE0F:
            continue
        if character.isspace() or unicodedata.category(character) == "Cc":
            character = " "
        elif ord(character) not in known:
            character = _UNKNOWN
        if not (character in {" ", _UNKNOWN} and shown[-1:] == [character]):
            shown.append(character)
    return "".join(shown).strip()


def label(target: Any, x: float, y: float, text: str, **options: Any) -> Any:
    """Writes text as it stands: a ``$`` begins no formula.

    Args:
        target: A figure or axes.
        x: Where, in fractions of the target (of a figure) or in its data (of axes).
        y: Where.
        text: Text that `wrap_text` or `displayable` gave.
        **options: Further options of matplotlib's ``text``.

    Returns:
        The ``matplotlib.text.Text``.

    Example:
        >>> label(new_figure(1, 1), 0.5, 0.5, "$5 or $6").get_text()
        '$5 or $6'
    """
    style = {"color": INK, "family": list(_fonts()[0]), "parse_math": False, **options}
    return target.text(x, y, text, **style)


def wrap_text(figure: Figure, text: str, width: float, *, size: float, max_lines: int = 3, weight: str = "normal") -> str:
    r"""Breaks text into lines that fit, as measured with the font that will draw it.

    Args:
        figure: The figure that it will stand in.
        text: Any text; it is made `displayable`.
        width: Inches.
        size: Points.
        max_lines: What is longer ends in an ellipsis. Default 3.
        weight: ``"normal"`` or ``"bold"``. Default ``"normal"``.

    Returns:
        The lines, joined by line breaks.

    Example:
        >>> wrap_text(new_figure(4, 3), "a dog runs over the wet grass", 1.0, size=10, max_lines=2)
        'a dog runs\nover the…'
    """
    from matplotlib.font_manager import FontProperties

    renderer: Any = figure.canvas
    renderer = renderer.get_renderer()
    font = FontProperties(family=list(_fonts()[0]), size=size, weight=weight)

    def fits(line: str) -> bool:
        return bool(renderer.get_text_width_height_descent(line, font, False)[0] <= width * figure.dpi)

    lines: list[str] = []
    line = ""
    for word in displayable(text).split(" "):
        if line and not fits(f"{line} {word}"):
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
        # Long words, and scripts without spaces, break wherever they must.
        while len(line) > 1 and not fits(line):
            cut = next(end for end in range(len(line) - 1, 0, -1) if end == 1 or fits(line[:end]))
            lines.append(line[:cut])
            line = line[cut:]
    lines.append(line)
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and not fits(f"{last}…"):
            # Whole words go, a single one is cut.
            last = last.rpartition(" ")[0] if " " in last else last[:-1]
        lines = [*lines[: max_lines - 1], f"{last}…"]
    return "\n".join(lines)


@lru_cache(maxsize=1)
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    families = tuple(name for name in _PREFERRED_FONTS if name in installed)
    known: set[int] = set()
    for family in families:
        known |= FT2Font(font_manager.findfont(family)).get_charmap().keys()
    return families, frozenset(known)
