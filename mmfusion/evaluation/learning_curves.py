"""Curves of a training, from its log."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.errors import DataError
from mmfusion.evaluation.drawing import INK, QUIET, SERIES, displayable, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ABOUT_THE_LINE = {"kind", "step", "epoch", "time"}
_RECALLS = {
    "image to text, recall %": ("i2t_r1", "i2t_r5", "i2t_r10"),
    "text to image, recall %": ("t2i_r1", "t2i_r5", "t2i_r10"),
    "median rank": ("i2t_median_rank", "t2i_median_rank"),
    "BLEU and ROUGE-L": ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"),
}


def draw_learning_curves(log: str | Path, path: str | Path | None = None, *, title: str | None = None) -> Figure:
    r"""Draws a panel for each loss and measure of a training over its steps.

    Training figures are lines, validation figures (``val_…``) are dots on lines in the same panel; recalls of one
    direction share a panel.

    Args:
        log: A file of JSON lines, each an object with ``step`` and figures; an unfinished last line is passed over.
        path: Where to save the picture. Default: nowhere.
        title: A line above all.

    Returns:
        The figure, with one axes a panel.

    Raises:
        DataError: If the log is missing or holds no figures.

    Example:
        >>> import pathlib, tempfile
        >>> log = pathlib.Path(tempfile.mkdtemp()) / "train.jsonl"
        >>> _ = log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5, "val_loss": 1.8}\n')
        >>> [axes.get_title(loc="left") for axes in draw_learning_curves(log).axes]
        ['loss']
    """
    series = _read_series(Path(log))
    panels = _panels(series)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(4.0 * columns, 2.9 * rows + (0.4 if title else 0.0))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    if title:
        figure.suptitle(displayable(title), color=INK, weight="bold", size=13, parse_math=False)
    for index, (name, keys) in enumerate(panels.items()):
        _draw_panel(figure.add_subplot(rows, columns, index + 1), name, {key: series[key] for key in keys})
    return save_figure(figure, path)


def _read_series(log: Path) -> dict[str, dict[int, float]]:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError("cannot read the training log", where=log, found=error.strerror) from error
    series: dict[str, dict[int, float]] = {}
    for line in text.splitlines():
        try:
            values: Any = json.loads(line)
        except json.JSONDecodeError:
            continue  # a kill can leave half a line at the end
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            continue
        if values.get("kind", "step") not in ("step", "epoch"):
            continue  # diagnostics and recoveries have pictures of their own
        for key, value in values.items():
            if key not in _ABOUT_THE_LINE and isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault(key, {})[values["step"]] = float(value)
    if not series:
        raise DataError("nothing to draw", where=log, expected="lines of JSON with step and figures", found="none")
    return series


def _panels(series: Mapping[str, Any]) -> dict[str, list[str]]:
    """Which series stand together, losses first and the learning rate last."""
    bases = list(dict.fromkeys(key.removeprefix("val_") for key in series))
    shared = {key for keys in _RECALLS.values() for key in keys}
    losses = sorted((base for base in bases if base.endswith("loss")), key=lambda base: base != "loss")
    others = [base for base in bases if base not in shared and base not in losses and base != "learning_rate"]
    groups: dict[str, Sequence[str]] = {base.replace("_", " "): (base,) for base in losses}
    groups |= _RECALLS
    groups |= {_title(base): (base,) for base in others}
    groups["learning rate"] = ("learning_rate",)
    panels = {name: [key for base in group for key in (base, f"val_{base}") if key in series] for name, group in groups.items()}
    return {name: keys for name, keys in panels.items() if keys}


def _title(base: str) -> str:
    return {"rsum": "sum of recalls", "cider_d": "CIDEr-D", "distinct": "share of distinct captions"}.get(
        base, base.replace("_", " ")
    )


def _draw_panel(axes: Axes, name: str, curves: Mapping[str, Mapping[int, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, (key, points) in enumerate(curves.items()):
        steps = sorted(points)
        values = [points[step] for step in steps]
        dots = key.startswith("val_") or len(steps) == 1
        axes.plot(
            steps,
            values,
            color=SERIES[index % len(SERIES)],
            linewidth=1.6,
            marker="o" if dots else None,
            markersize=3.5,
            label=_legend(key, name, len(curves)),
        )
    axes.set_title(name, size=10.5, color=INK, loc="left", weight="bold", parse_math=False)
    axes.set_xlabel("step", size=9, color=QUIET)
    axes.tick_params(labelsize=8, colors=QUIET)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d0d7de")
    if len(curves) > 1 or next(iter(curves)).startswith("val_"):
        # Beside the panel, where it hides nothing; between two curves there is room.
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(curves) > 2 else {"loc": "best"}
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.5, **beside)


def _legend(key: str, panel: str, curves: int) -> str:
    base = key.removeprefix("val_")
    if panel in _RECALLS:
        return {"rouge_l": "ROUGE-L", "i2t_median_rank": "image to text", "t2i_median_rank": "text to image"}.get(
            base, base.replace("bleu_", "BLEU-").replace("i2t_r", "R@").replace("t2i_r", "R@")
        )
    return "validation" if key.startswith("val_") else "training"
