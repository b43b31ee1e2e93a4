"""Pictures of a model's health over a training, from its log."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import DataError
from mmfusion.evaluation.drawing import INK, QUIET, SERIES, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
_FLAGS = {"vanishing": "#cf222e", "exploding": "#cf222e", "not finite": "#cf222e", "none": "#cf222e"}


def draw_diagnostics(log: str | Path, folder: str | Path) -> list[Path]:
    """Draws ``attention.png``, ``gradients.png`` and ``modality.png``, those of which the log knows something.

    Args:
        log: A training's log, lines of JSON of which those of kind ``"diagnostics"`` are drawn.
        folder: Where the pictures go.

    Returns:
        The pictures.

    Raises:
        DataError: If the log cannot be read, or a picture cannot be written.

    Example:
        >>> import json, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> look = {"matching": {"ablation": {"image": 0.4, "text": 0.6}, "gradient": {"image": 0.3, "text": 0.7}}}
        >>> _ = (folder / "log").write_text(json.dumps({"kind": "diagnostics", "step": 9, "epoch": 0, "modality": look}))
        >>> [path.name for path in draw_diagnostics(folder / "log", folder)]
        ['modality.png']
    """
    rows = read_diagnostics(log)
    drawn = []
    for name, draw in (("attention", draw_attention), ("gradients", draw_gradients), ("modality", draw_modality)):
        if any(row.get(name) for row in rows):
            path = Path(folder) / f"{name}.png"
            draw([row for row in rows if row.get(name)], path)
            drawn.append(path)
    return drawn


def read_diagnostics(log: str | Path) -> list[Row]:
    """The lines of a log that are of kind ``"diagnostics"``, in order.

    Args:
        log: The file.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        text = Path(log).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError("cannot read the training log", where=log, found=error.strerror) from error
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a kill can leave half a line at the end
        if isinstance(row, dict) and row.get("kind") == "diagnostics":
            rows.append(row)
    return rows


def draw_attention(rows: Sequence[Row], path: str | Path | None = None) -> Figure:
    """For each stream of tokens: entropy and rank a head and layer at the last look, and their means over the epochs.

    Args:
        rows: Lines of the log with ``"attention"``.
        path: Where to save the picture. Default: nowhere.

    Returns:
        The figure.
    """
    streams = rows[-1]["attention"]
    heights = [max(1.5, 0.55 + 0.28 * len(stream["layers"])) for stream in streams.values()]
    figure = new_figure(12.0, sum(heights) + 0.6 * len(heights))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.12)
    grid = figure.add_gridspec(len(streams), 3, height_ratios=heights)
    for place, (name, stream) in enumerate(streams.items()):
        for column, (measure, title) in enumerate((("entropy", "entropy"), ("rank", "effective rank"))):
            axes = figure.add_subplot(grid[place, column])
            _heat_map(axes, stream, measure)
            _title(axes, f"{name}: {title}")
        axes = figure.add_subplot(grid[place, 2])
        known = [row for row in rows if name in row["attention"]]
        for measure, color in (("entropy", SERIES[0]), ("rank", SERIES[1])):
            means = [_mean(row["attention"][name][measure]) for row in known]
            axes.plot([row["epoch"] + 1 for row in known], means, color=color, marker="o", markersize=3.5, label=measure)
        axes.set_ylim(-0.03, 1.03)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
        _title(axes, "mean over heads and layers")
        _plain(axes, "epoch")
    return save_figure(figure, path)


def draw_gradients(rows: Sequence[Row], path: str | Path | None = None) -> Figure:
    """Norms of gradient, weights and update by depth, a column a stack, a line a look, the last one darkest.

    Args:
        rows: Lines of the log with ``"gradients"``.
        path: Where to save the picture. Default: nowhere.

    Returns:
        The figure.
    """
    stacks = rows[-1]["gradients"]
    measures = (("gradient", "norm of the gradient"), ("update", "update over weight"), ("weight", "norm of the weights"))
    figure = new_figure(3.4 * max(len(stacks), 2) + 0.6, 2.3 * len(measures) + 0.4)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    for column, (name, last) in enumerate(stacks.items()):
        for line, (measure, label) in enumerate(measures):
            axes = figure.add_subplot(len(measures), len(stacks), line * len(stacks) + column + 1)
            known = [row for row in rows if (row["gradients"].get(name) or {}).get(measure)]
            # More lines than these say no more.
            ages = sorted({round(age) for age in np.linspace(0, len(known) - 1, min(len(known), 6))})
            for age, row in ((age, known[age]) for age in ages):
                _depth_line(axes, row["gradients"][name], measure, age / max(len(known) - 1, 1), row["epoch"] + 1)
            _plain(axes, "block" if line == len(measures) - 1 else "")
            if measure != "weight":
                _logarithmic(axes)
            ticks = range(0, len(last["blocks"]), max(1, math.ceil(len(last["blocks"]) / 12)))
            axes.set_xticks(ticks, [last["blocks"][tick] for tick in ticks])
            if not column:
                axes.set_ylabel(label, size=9, color=QUIET)
            if not line:
                flag = last["flag"]
                _title(axes, f"{name}: {flag}", _FLAGS.get(flag, INK))
            if not line and column == len(stacks) - 1 and len(known) > 1:
                axes.legend(
                    title="epoch", fontsize=8, title_fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
                )
    figure.align_ylabels()
    return save_figure(figure, path)


def draw_modality(rows: Sequence[Row], path: str | Path | None = None) -> Figure:
    """The image's share in each output over the epochs, by ablation and by gradient; the rest is the text's.

    Args:
        rows: Lines of the log with ``"modality"``.
        path: Where to save the picture. Default: nowhere.

    Returns:
        The figure.
    """
    outputs = rows[-1]["modality"]
    figure = new_figure(3.6 * max(len(outputs), 1) + 1.6, 3.0)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    for place, name in enumerate(outputs):
        axes = figure.add_subplot(1, len(outputs), place + 1)
        for method, color in (("ablation", SERIES[0]), ("gradient", SERIES[1])):
            known = [row for row in rows if name in row["modality"]]
            shares = [_number(row["modality"][name][method]["image"]) for row in known]
            axes.plot([row["epoch"] + 1 for row in known], shares, color=color, marker="o", markersize=3.5, label=f"by {method}")
        axes.axhline(0.5, color="#d0d7de", linewidth=1.0, zorder=0)
        axes.set_ylim(-0.03, 1.03)
        _title(axes, name)
        _plain(axes, "epoch")
        if not place:
            axes.set_ylabel("share of the image", size=9, color=QUIET)
        if place == len(outputs) - 1:
            axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, path)


def _heat_map(axes: Axes, stream: Row, measure: str) -> None:
    values = np.array([[_number(value) for value in layer] for layer in stream[measure]])
    shown = axes.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    # Numbers where there is room for them; darkness alone is hard to compare.
    if values.shape[1] <= 12:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if not value > 0.6 else INK
            axes.text(column, row, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", size=7, color=color)
    else:
        bar = axes.figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=QUIET, length=0)
    axes.set_yticks(range(len(stream["layers"])), stream["layers"])
    axes.set_xticks(range(values.shape[1]), [str(head + 1) for head in range(values.shape[1])])
    axes.tick_params(labelsize=8, colors=QUIET, length=0)
    axes.set_xlabel("head", size=9, color=QUIET)
    axes.spines[:].set_visible(False)


def _depth_line(axes: Axes, stack: Row, measure: str, age: float, epoch: int) -> None:
    values = [_number(value) for value in stack[measure]]
    positive = [value if value > 0 else np.nan for value in values]
    style: dict[str, Any] = {"color": SERIES[0], "alpha": 0.25 + 0.75 * age, "linewidth": 1.6, "marker": "o", "markersize": 3.5}
    axes.plot(range(len(values)), positive, label=str(epoch), **style)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:.3g}")
    axes.yaxis.set_major_formatter(plain)
    # Within two decades the powers of ten alone may leave an axis without a number.
    near = high < 100.0 * low
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0) if high > 4.0 * low else (1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
    axes.yaxis.set_minor_formatter(plain if near else NullFormatter())
    axes.tick_params(which="both", labelsize=8, colors=QUIET)


def _title(axes: Axes, text: str, color: str = INK) -> None:
    axes.set_title(text, size=10, color=color, loc="left", weight="bold", parse_math=False)


def _plain(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label, size=9, color=QUIET)
    axes.tick_params(labelsize=8, colors=QUIET)
    if label == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d0d7de")


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _mean(layers: Sequence[Sequence[float | None]]) -> float:
    known = [value for layer in layers for value in layer if value is not None]
    return sum(known) / len(known) if known else float("nan")
