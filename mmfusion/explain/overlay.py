"""Attention drawn over the image that it looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmfusion.errors import ConfigError, DataError
from mmfusion.evaluation.drawing import as_pixels, label, new_figure, save_figure, show_image, wrap_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[PAD]", "")


def attention_maps(
    attention: npt.ArrayLike, *, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> npt.NDArray[np.float64]:
    """Averages attention over layers and heads.

    Args:
        attention: ``float[layers, heads, T, rows, cols]``, as a model's ``attend`` gives for one image and text; of a clip or
            several images ``[layers, heads, T, frames, rows, cols]``.
        layers: Which layers; negative ones count from the last. Default all.
        heads: Which heads. Default all.

    Returns:
        ``float64[T, rows, cols]``; of a clip ``float64[T, frames, rows, cols]``.

    Raises:
        DataError: If `attention` has another shape, or holds NaN.
        ConfigError: If there is no such layer or head.

    Example:
        >>> attention = np.stack([np.zeros((2, 3, 4, 4)), np.ones((2, 3, 4, 4))])
        >>> attention_maps(attention).shape, float(attention_maps(attention, layers=[-1]).mean())
        ((3, 4, 4), 1.0)
    """
    scores = np.asarray(attention, np.float64)
    if scores.ndim not in (5, 6) or 0 in scores.shape:
        raise DataError(
            "attention has the wrong shape",
            expected="[layers, heads, T, rows, cols] of one image and text, or of a clip [layers, heads, T, frames, rows, cols]",
            found=list(scores.shape),
        )
    for axis, (name, chosen) in enumerate((("layers", layers), ("heads", heads))):
        if chosen is None:
            continue
        size = scores.shape[axis]
        if not len(chosen) or not all(-size <= index < size for index in chosen):
            raise ConfigError(f"no such {name}", where=name, expected=f"some of {-size}..{size - 1}", found=list(chosen))
        scores = scores.take(list(chosen), axis=axis)
    maps: npt.NDArray[np.float64] = scores.mean(axis=(0, 1))
    if np.isnan(maps).any():
        raise DataError("attention holds NaN", expected="numbers")
    return maps


def draw_attention_overlay(
    image: npt.ArrayLike,
    attention: npt.ArrayLike,
    tokens: Sequence[str | bytes],
    path: str | Path | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    skip: Sequence[str] = SPECIAL_TOKENS,
    columns: int = 5,
    opacity: float = 0.7,
    scale: str = "token",
    title: str | None = None,
) -> Figure:
    """Draws the image once as it is, and once for each token with its attention as a heat map on it; a clip as a strip of frames.

    Args:
        image: What the model saw: ``uint8[h, w, 3]`` or floats in 0..1, of any size and shape; the grid is laid over
            all of it. Of a clip or several images ``[F, h, w, 3]``.
        attention: ``float[layers, heads, T, rows, cols]``; of a clip ``[layers, heads, T, frames, rows, cols]``, each of its
            frames over as many of the image's.
        tokens: T tokens, as text or UTF-8. Characters that no installed font has are shown as a square.
        path: Where to save the picture. Default: nowhere.
        layers: Which layers to average; negative ones count from the last. Default all.
        heads: Which heads to average. Default all.
        skip: Tokens not to draw. Default ``("[CLS]", "[SEP]", "[PAD]", "")``.
        columns: Panels a row, of a clip as many fewer as its strip is wider. Default 5.
        opacity: Of the map where it is highest, 0..1. Default 0.7.
        scale: ``"token"`` stretches each map from its least to its greatest value; ``"shared"`` all maps alike, from 0
            to the greatest value of all, so that tokens can be compared. Default ``"token"``.
        title: A line above all. Default: the tokens.

    Returns:
        The figure: one axes for the image and one for each token drawn.

    Raises:
        DataError: If the shapes do not fit, or there is nothing to draw.
        ConfigError: If there is no such layer, head or scale.

    Example:
        >>> attention = np.random.default_rng(0).random((2, 4, 3, 6, 6))
        >>> figure = draw_attention_overlay(np.zeros((48, 64, 3)), attention, ["[CLS]", "a", "dog"])
        >>> [axes.get_label() for axes in figure.axes]
        ['image', 'a', 'dog']
    """
    if scale not in ("token", "shared"):
        raise ConfigError("no such scale", where="scale", expected="token or shared", found=scale)
    if not 0.0 <= opacity <= 1.0 or columns < 1:
        raise ConfigError("impossible drawing", expected="opacity in 0..1, columns from 1", found=f"{opacity}, {columns}")
    frames = [as_pixels(frame) for frame in (image if np.ndim(image) == 4 else [image])]  # type: ignore[union-attr]
    pixels = np.concatenate(frames, axis=1)
    maps = attention_maps(attention, layers=layers, heads=heads)
    maps = maps[:, None] if maps.ndim == 3 else maps
    if len(frames) % maps.shape[1]:
        raise DataError("frames and attention differ in number", expected=f"a multiple of {maps.shape[1]}", found=len(frames))
    words = [token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token) for token in tokens]
    if len(words) != len(maps):
        raise DataError("tokens and attention differ in number", expected=f"{len(maps)} tokens", found=len(words))
    drawn = [index for index, word in enumerate(words) if word not in skip]
    if not drawn:
        raise DataError("nothing to draw", expected="a token that is not skipped", found=" ".join(words))
    highest = np.max(maps[drawn])
    height, width = pixels.shape[:2]
    # Panels keep the shape of the image, within reason for strips.
    cell_width = 1.9 if len(frames) == 1 else min(1.2 * len(frames), 7.2)
    cell_height = cell_width * min(max(height / width, 0.4 / len(frames)), 2.0)
    columns = min(max(int(columns * 1.9 / cell_width), 1), len(drawn) + 1)
    rows = math.ceil((len(drawn) + 1) / columns)
    gap, head, margin, top = 0.12, 0.3, 0.15, 0.45
    figure_width = 2 * margin + columns * cell_width + (columns - 1) * gap
    figure_height = top + rows * (cell_height + head) + margin
    figure = new_figure(figure_width, figure_height)
    heading = title if title is not None else " ".join(words[index] for index in drawn).replace(" ##", "")
    heading = wrap_text(figure, heading, figure_width - 2 * margin, size=11.5, max_lines=1, weight="bold")
    label(figure, margin / figure_width, 1 - 0.24 / figure_height, heading, size=11.5, weight="bold", va="center")
    for panel, index in enumerate([None, *drawn]):
        left = margin + panel % columns * (cell_width + gap)
        bottom = figure_height - top - (panel // columns + 1) * (cell_height + head)
        axes = figure.add_axes(
            (left / figure_width, bottom / figure_height, cell_width / figure_width, cell_height / figure_height),
            label="image" if index is None else words[index],
        )
        show_image(axes, pixels)
        if index is not None:
            heat = np.repeat(maps[index], len(frames) // maps.shape[1], axis=0)
            _lay_over(axes, heat, frames[0].shape[:2], opacity, highest if scale == "shared" else None)
            word = wrap_text(figure, words[index], cell_width, size=10.5, max_lines=1)
            label(axes, 0.5, 1.02, word, size=10.5, ha="center", va="bottom", transform=axes.transAxes)
        for border in range(1, len(frames)):
            axes.axvline(border * width / len(frames) - 0.5, color="white", linewidth=1.2)
    return save_figure(figure, path)


def draw_heat(
    image: npt.ArrayLike,
    heat: npt.ArrayLike,
    path: str | Path | None = None,
    *,
    title: str = "",
    box: Sequence[float] | None = None,
    opacity: float = 0.7,
) -> Figure:
    """Draws the image as it is, and beside it with a heat map on it.

    Args:
        image: ``uint8[h, w, 3]`` or floats in 0..1; the map is laid over all of it.
        heat: ``float[rows, cols]``, as `localise` gives for one picture.
        path: Where to save the picture. Default: nowhere.
        title: A line above.
        box: Top, left, bottom, right in pixels of what should be found, drawn on both. Default: none.
        opacity: Of the map where it is highest, 0..1. Default 0.7.

    Returns:
        The figure, of two axes.

    Raises:
        DataError: If the map has another shape, or holds NaN.

    Example:
        >>> figure = draw_heat(np.zeros((32, 32, 3)), np.eye(4), title="red heart", box=(0, 0, 8, 8))
        >>> [axes.get_label() for axes in figure.axes]
        ['image', 'heat']
    """
    pixels, maps = as_pixels(image), np.asarray(heat, np.float64)
    if maps.ndim != 2 or 0 in maps.shape or not np.isfinite(maps).all():
        raise DataError("not a heat map", expected="finite [rows, cols]", found=list(maps.shape))
    height, width = pixels.shape[:2]
    cell_width, margin, gap, top = 2.6, 0.15, 0.12, 0.5
    cell_height = cell_width * min(max(height / width, 0.4), 2.0)
    figure_width, figure_height = 2 * margin + 2 * cell_width + gap, top + cell_height + margin
    figure = new_figure(figure_width, figure_height)
    heading = wrap_text(figure, title, figure_width - 2 * margin, size=11.5, max_lines=1, weight="bold")
    label(figure, margin / figure_width, 1 - 0.25 / figure_height, heading, size=11.5, weight="bold", va="center")
    for panel, name in enumerate(("image", "heat")):
        left = margin + panel * (cell_width + gap)
        place = (left / figure_width, margin / figure_height, cell_width / figure_width, cell_height / figure_height)
        axes = figure.add_axes(place, label=name)
        show_image(axes, pixels)
        if name == "heat":
            _lay_over(axes, maps[None], pixels.shape[:2], opacity, None)
        if box is not None:
            (y, x), (end_y, end_x) = box[:2], box[2:]
            outline = [x, end_x, end_x, x, x], [y, y, end_y, end_y, y]
            axes.plot(*(np.asarray(line) - 0.5 for line in outline), color="white", linewidth=1.5)
    return save_figure(figure, path)


def _lay_over(axes: Axes, heat: npt.NDArray[np.float64], size: tuple[int, ...], opacity: float, highest: float | None) -> None:
    """Draws ``[frames, rows, cols]`` over frames of a size, side by side."""
    low, high = (float(np.min(heat)), float(np.max(heat))) if highest is None else (0.0, highest)
    strength = np.clip((heat - low) / (high - low), 0.0, 1.0) if high > low else np.zeros_like(heat)
    smooth = np.concatenate([_enlarge(frame, size) for frame in strength], axis=1)
    # Weak attention darkens the image only a little, so that one still sees what is not attended to.
    alpha = opacity * (0.4 + 0.6 * smooth)
    extent = (-0.5, smooth.shape[1] - 0.5, size[0] - 0.5, -0.5)
    axes.imshow(smooth, cmap="inferno", vmin=0.0, vmax=1.0, alpha=alpha, extent=extent)


def _enlarge(heat: npt.NDArray[np.float64], size: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Bilinear, the centres of the patches in place."""
    for axis, length in enumerate(size):
        count = heat.shape[axis]
        position = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
        low = np.floor(position).astype(int)
        share = np.expand_dims(position - low, 1 - axis)
        heat = heat.take(low, axis) * (1 - share) + heat.take(np.minimum(low + 1, count - 1), axis) * share
    return heat
