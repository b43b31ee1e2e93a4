"""What ``mmfusion data check`` does once TensorFlow may be imported."""

from __future__ import annotations

import json
from pathlib import Path

import typer

# Bad rows that are printed; a report as JSON has all.
MOST_ROWS = 20


def source_settings(source: str) -> dict[str, str]:
    """The recipe's ``data`` section that a word on the command line stands for.

    Args:
        source: A folder, a file, ``builtin`` or ``tfds:NAME``.

    Example:
        >>> source_settings("tfds:coco_captions")
        {'source': 'tfds', 'name': 'coco_captions'}
        >>> source_settings("photos.csv")
        {'source': 'csv', 'path': 'photos.csv'}
    """
    if source == "builtin":
        return {"source": "builtin"}
    if source.startswith("tfds:"):
        return {"source": "tfds", "name": source.removeprefix("tfds:")}
    path = Path(source)
    if path.is_dir():
        kind = "jsonl" if (path / "captions.jsonl").is_file() else "folder"
        kind = "csv" if kind == "folder" and (path / "captions.csv").is_file() else kind
    else:
        name = path.name.lower()
        endings = {".jsonl": "jsonl", ".csv": "csv", ".tar": "webdataset", ".tfrecord": "tfrecord", ".tfrecords": "tfrecord"}
        otherwise = "tfrecord" if "tfrecord" in name else "jsonl"
        kind = next((kind for ending, kind in endings.items() if name.endswith(ending)), otherwise)
    return {"source": kind, "path": source}


def report(source: str, overrides: list[str], *, as_json: bool, output: Path | None) -> None:
    """Opens the source, checks it and prints the report.

    Args:
        source: See `source_settings`, or a recipe's file.
        overrides: With a recipe: values to change.
        as_json: Print JSON instead of tables.
        output: Also write JSON there.
    """
    from rich.console import Console

    from mmfusion.cli.console import whole_lines
    from mmfusion.config import load_recipe, recipe_from_dict
    from mmfusion.config.data_config import MOST_FRAMES
    from mmfusion.data import check_source, open_source

    if source.endswith((".yaml", ".yml")):
        data = load_recipe(source, overrides).data
    else:
        recipe = {"name": "check", "data": {**source_settings(source), "validation_share": 0}}
        data = recipe_from_dict(recipe, where="the command line").data
        # However many pictures a row has: nobody has said yet how many there may be.
        data = data.model_copy(update={"frames": MOST_FRAMES})
    console = Console(stderr=True)
    with console.status("reading everything once") as status:
        result = check_source(open_source(data), progress=lambda done, total: status.update(f"reading {done} of {total}"))
    content = json.dumps(result.to_dict(), indent=2, ensure_ascii=False)
    if output is not None:
        output.write_text(content + "\n", encoding="utf-8")
    if as_json:
        typer.echo(content)
    else:
        whole_lines().print(result.table())
        for row in result.bad_rows[:MOST_ROWS]:
            typer.echo(f"left out: {row.name}: {row.reason}")
        if len(result.bad_rows) > MOST_ROWS:
            typer.echo(f"and {len(result.bad_rows) - MOST_ROWS:,} more, which --json lists")
