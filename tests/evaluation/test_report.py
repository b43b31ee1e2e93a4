"""Reports: what was measured is always said, JSON is strict, tables hold every figure."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mmfusion.errors import DataError
from mmfusion.evaluation import print_report, rerank, retrieval_metrics, write_report
from mmfusion.evaluation.report import ICON_NOTE

META = {
    "data": "flickr8k",
    "split": "val",
    "images": 1000,
    "captions": 5000,
    "resolution": (192, 192),
    "gallery": "split",
}


def metrics() -> dict[str, float]:
    similarity, ids = np.eye(12), np.arange(12)
    reranked = rerank(similarity, ids, ids, lambda images, texts: similarity[images, texts], top_k=4)
    return {
        **retrieval_metrics(similarity, ids, ids),
        **{f"reranked_{name}": value for name, value in reranked.items()},
        "bleu_4": 0.25,
        "cider_d": np.float32(0.5),
        "distinct": 0.75,
        "loss": 1.5,
    }


def test_both_files_hold_the_figures_and_what_was_measured(tmp_path: Path) -> None:
    folder = write_report(tmp_path / "new" / "folder", metrics(), META)
    content = json.loads((folder / "metrics.json").read_text())
    assert content["metrics"]["rsum"] == 600.0
    assert content["metrics"]["reranked_t2i_ceiling"] == 100.0
    assert content["metrics"]["cider_d"] == 0.5
    assert content["meta"]["images"] == 1000
    assert content["meta"]["resolution"] == "192x192"
    assert content["meta"]["notes"] == []
    text = (folder / "metrics.md").read_text()
    for part in (
        "| data | flickr8k |",
        "| captions | 5000 |",
        "| gallery | split |",
        "rsum: 600.00",
        "| CIDEr-D | 0.5000 |",
        "|  | R@1 | R@5 | R@10 | median rank | candidate ceiling |",
        "| image to text | 100.00 |",
    ):
        assert part in text
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "metrics.md"]


def test_tables_are_well_formed(tmp_path: Path) -> None:
    write_report(tmp_path, metrics(), {**META, "checkpoint": "a|b\nc"})
    lines = (tmp_path / "metrics.md").read_text().splitlines()
    tables = [[line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")]
              for block in "\n".join(lines).split("\n\n")]  # fmt: skip
    assert sum(bool(table) for table in tables) == 5
    assert all(len(set(table)) <= 1 for table in tables)


def test_figures_that_are_not_finite(tmp_path: Path) -> None:
    write_report(tmp_path, {"loss": float("nan"), "i2t_r1": 50.0}, META)
    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["metrics"] == {"loss": None, "i2t_r1": 50.0}
    assert "| loss | – |" in (tmp_path / "metrics.md").read_text()


def test_printing_what_is_no_report_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no report there"):
        print_report(tmp_path)
    for content in ("{", "[]", '{"meta": {}, "metrics": {}}', '{"meta": 1, "metrics": 2}'):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(DataError, match="not a report"):
            print_report(tmp_path)


@pytest.mark.parametrize(
    ("extra", "noted"),
    [
        ({}, False),
        ({"icons": True}, True),
        ({"data": "builtin"}, True),
        ({"data": "Twemoji icons"}, True),
        ({"data": "builtin", "icons": False}, False),
        ({"notes": ["Squashed."]}, False),
        ({"data": "builtin", "note": "drawn icons, not photographs"}, False),
    ],
)
def test_icons_are_called_icons_wherever_a_score_is_shown(tmp_path: Path, extra: dict, noted: bool) -> None:
    meta = {**META, **extra}
    write_report(tmp_path, {"rsum": 1.0}, meta)
    stream = io.StringIO()
    print_report(tmp_path, Console(file=stream, width=300))
    written = [(tmp_path / "metrics.json").read_text(), (tmp_path / "metrics.md").read_text(), stream.getvalue()]
    assert [ICON_NOTE in text for text in written] == [noted] * 3
    for note in (*extra.get("notes", []), extra.get("note", "")):
        assert all(note in text for text in written)


def test_printed_tables_hold_the_figures(tmp_path: Path) -> None:
    stream = io.StringIO()
    print_report(write_report(tmp_path, metrics(), {**META, "data": "[red]mine[/red]"}), Console(file=stream, width=120))
    text = stream.getvalue()
    assert "[red]mine[/red], val: 1000 images, 5000 captions, at 192x192, gallery: split" in text
    for part in (
        "Retrieval",
        "Reranked",
        "Captions",
        "candidate ceiling",
        "rsum: 600.00",
        "BLEU-4",
        "0.2500",
        "Other figures",
    ):
        assert part in text


def test_what_was_measured_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no split, gallery"):
        write_report(tmp_path, {"a": 1.0}, {name: value for name, value in META.items() if name not in ("split", "gallery")})
    with pytest.raises(DataError, match=r"no number \[a\]"):
        write_report(tmp_path, {"a": "high"}, META)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(tmp_path / "file" / "report", {"a": 1.0}, META)
