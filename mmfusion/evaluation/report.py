"""The report of an evaluation: for programs, for a repository, for the terminal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmfusion.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

REQUIRED = ("data", "split", "images", "captions", "resolution", "gallery")
ICON_NOTE = "The pictures are icons with short names, not photographs: figures on them say nothing about photographs."

Figures = dict[str, float | None]
_RETRIEVAL = ("r1", "r5", "r10", "median_rank", "ceiling")
_NAMES = {
    "r1": "R@1", "r5": "R@5", "r10": "R@10", "median_rank": "median rank", "rsum": "rsum",
    "ceiling": "candidate ceiling", "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D", "distinct": "distinct captions",
    "token_loss": "loss a token (nats)", "unigram_loss": "loss of a unigram model",
    "masked_language_loss": "loss a hidden word (nats)", "masked_language_accuracy": "hidden words guessed (share)",
    "matching_accuracy": "pairs told right (share, chance 0.5)",
}  # fmt: skip


class _Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]


def write_report(folder: str | Path, metrics: Mapping[str, float], meta: Mapping[str, Any]) -> Path:
    """Writes ``metrics.json`` and ``metrics.md``.

    Args:
        folder: Where to; it is made if needed. Older reports in it are replaced.
        metrics: Figures by name, those after reranking beginning with ``reranked_``. The tables have a row for each
            direction of recalls and ranks (``i2t_r1`` …). A figure that is not finite becomes null.
        meta: What was measured: ``data``, ``split``, ``images``, ``captions``, ``resolution`` and ``gallery``, and
            anything more worth saying. ``note`` is a sentence, ``notes`` a list of them; where the data are icons
            (``icons=True``, or the name of the data says it), a note that says so is added.

    Returns:
        The folder.

    Raises:
        DataError: If `meta` lacks one of the six, a metric is no number, or the files cannot be written.

    Example:
        >>> import tempfile
        >>> meta = dict(data="flickr8k", split="val", images=2, captions=10, resolution="192x192", gallery="split")
        >>> folder = write_report(tempfile.mkdtemp(), {"i2t_r1": 50.0, "t2i_r1": 40.0, "rsum": 90.0}, meta)
        >>> print((folder / "metrics.md").read_text().split("## ")[1].strip())
        Retrieval
        <BLANKLINE>
        |  | R@1 |
        |---|---:|
        | image to text | 50.00 |
        | text to image | 40.00 |
        <BLANKLINE>
        rsum: 90.00
    """
    content = {"meta": _facts(meta), "metrics": {name: _number(value, name) for name, value in metrics.items()}}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "metrics.json", json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
        _replace(folder / "metrics.md", _markdown(content["meta"], _sections(content["metrics"])))
    except OSError as error:
        raise DataError("cannot write the report", where=folder, found=error.strerror) from error
    return folder


def print_report(folder: str | Path, console: Console | None = None) -> None:
    """Prints a written report as tables in the terminal.

    Args:
        folder: Where `write_report` wrote.
        console: Where to. Default: standard output.

    Raises:
        DataError: If there is no report.

    Example:
        >>> import tempfile
        >>> from rich.console import Console
        >>> meta = dict(data="flickr8k", split="val", images=2, captions=10, resolution="192x192", gallery="split")
        >>> folder = write_report(tempfile.mkdtemp(), {"cider_d": 0.5}, meta)
        >>> print_report(folder, Console(width=99, no_color=True))  # doctest: +ELLIPSIS
        flickr8k, val: 2 images, 10 captions, at 192x192, gallery: split
        ...
    """
    from rich.console import Console as TerminalConsole
    from rich.markup import escape
    from rich.table import Table

    facts, sections = _read(Path(folder) / "metrics.json")
    console = console or TerminalConsole()

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False)

    say(
        f"{facts['data']}, {facts['split']}: {facts['images']} images, {facts['captions']} captions, "
        f"at {facts['resolution']}, gallery: {facts['gallery']}"
    )
    for name, figures in sections.items():
        table, rest = _tables(name, figures)
        if table is not None:
            shown = Table(title=escape(table.title), title_justify="left", title_style="bold")
            for index, head in enumerate(table.header):
                shown.add_column(escape(head), justify="right" if index else "left")
            for row in table.rows:
                shown.add_row(*map(escape, row))
            console.print(shown)
        for line in rest:
            say(line)
    for note in facts["notes"]:
        say(f"Note: {note}", "yellow")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Figures]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        facts, sections = content["meta"], _sections(content["metrics"])
        missing = [name for name in (*REQUIRED, "notes") if name not in facts]
    except OSError as error:
        raise DataError("no report there", where=path, found=error.strerror) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("not a report", where=path, expected="what write_report writes", found=repr(error)) from error
    if missing:
        raise DataError("not a report", where=path, expected="what write_report writes", found=f"no {', '.join(missing)}")
    return facts, sections


def _facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    missing = [name for name in REQUIRED if meta.get(name) is None]
    if missing:
        raise DataError(
            "the report does not say what was measured",
            where="meta",
            expected=", ".join(REQUIRED),
            found=f"no {', '.join(missing)}",
        )
    named = {name: _plain(value) for name, value in meta.items() if name not in ("note", "notes", "icons")}
    notes = [str(note) for note in (*([meta["note"]] if meta.get("note") else ()), *(meta.get("notes") or ()))]
    icons = meta.get("icons")
    if icons is None:
        icons = any(word in str(meta["data"]).lower() for word in ("builtin", "icon", "emoji"))
    if icons and not any("icon" in note for note in notes):
        notes.append(ICON_NOTE)
    return {**{name: named[name] for name in REQUIRED}, **named, "notes": notes}


def _sections(metrics: Mapping[str, Any]) -> dict[str, Figures]:
    names = ("retrieval", "reranked", "captions", "matching and hidden words", "other figures")
    sections: dict[str, Figures] = {name: {} for name in names}
    for name, value in metrics.items():
        section, short = "other figures", name
        if name.startswith("reranked_"):
            section, short = "reranked", name.removeprefix("reranked_")
        elif name.startswith(("i2t_", "t2i_")) or name == "rsum":
            section = "retrieval"
        elif name.startswith(("masked_language_", "matching_")):
            section = "matching and hidden words"
        elif name in _NAMES:
            section = "captions"
        sections[section][short] = value
    return {section: figures for section, figures in sections.items() if figures}


def _number(value: Any, where: str) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError("a metric that is no number", where=where, found=repr(value)) from error
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return "x".join(map(str, value)) if len(value) == 2 else [_plain(item) for item in value]
    if hasattr(value, "item"):
        return value.item()
    return value if isinstance(value, str | int | float | bool) else str(value)


def _markdown(facts: Mapping[str, Any], sections: Mapping[str, Figures]) -> str:
    lines = ["# Evaluation", "", "|  |  |", "|---|---|"]
    lines += [f"| {_cell(name.replace('_', ' '))} | {_cell(value)} |" for name, value in facts.items() if name != "notes"]
    for note in facts["notes"]:
        lines += ["", f"> {' '.join(note.split())}"]
    for name, figures in sections.items():
        table, rest = _tables(name, figures)
        lines += ["", f"## {name.replace('_', ' ').capitalize()}"]
        if table is not None:
            lines += ["", f"| {' | '.join(table.header)} |", f"|---|{'---:|' * (len(table.header) - 1)}"]
            lines += [f"| {' | '.join(map(_cell, row))} |" for row in table.rows]
        if rest:
            lines += ["", *[f"{line}  " for line in rest[:-1]], rest[-1]]
    return "\n".join(lines) + "\n"


def _tables(name: str, figures: Figures) -> tuple[_Table | None, list[str]]:
    """A section's table, and the lines of what does not fit into it."""
    columns = [key for key in _RETRIEVAL if any(f"{way}_{key}" in figures for way in ("i2t", "t2i"))]
    title = name.replace("_", " ").capitalize()
    if not columns:
        rows = [[_NAMES.get(key, key.replace("_", " ")), _figure(value)] for key, value in figures.items()]
        return (_Table(title, ["", "value"], rows) if rows else None), []
    rows = [
        [direction, *(_figure(figures.get(f"{way}_{key}"), 1 if key == "median_rank" else 2) for key in columns)]
        for way, direction in (("i2t", "image to text"), ("t2i", "text to image"))
    ]
    used = {f"{way}_{key}" for way in ("i2t", "t2i") for key in columns}
    rest = [
        f"{_NAMES.get(key, key.replace('_', ' '))}: {_figure(value, 2 if key == 'rsum' else 4)}"
        for key, value in figures.items()
        if key not in used
    ]
    return _Table(title, ["", *(_NAMES[key] for key in columns)], rows), rest


def _figure(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
