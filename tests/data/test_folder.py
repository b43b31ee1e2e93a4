"""Pictures with text files beside them."""

from __future__ import annotations

import pytest

from mmfusion.data import read_folder
from mmfusion.errors import DataError


def test_reads_pairs_splits_and_faults(tmp_path):
    for name in ("b.jpg", "a.PNG", "alone.jpg", "latin.jpg", "blank.jpg", "val/c.webp", "train/deep/d.jpeg", "cats/e.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("b", "a", "val/c", "train/deep/d", "cats/e", "orphan"):
        (tmp_path / f"{name}.txt").write_text(f"first of {name}\n\nsecond of {name}\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "notes.md").write_text("ignored")
    source = read_folder(tmp_path)
    names = {split: [row.name for row in rows] for split, rows in source.splits.items()}
    assert names == {"train": ["a.PNG", "b.jpg", "cats/e.gif", "train/deep/d.jpeg"], "val": ["val/c.webp"]}
    assert source.splits["train"][1].captions == ("first of b", "second of b")
    assert dict(source.bad_rows) == {
        "alone.jpg": "no alone.txt beside it",
        "blank.jpg": "no caption",
        "latin.jpg": "latin.txt is not UTF-8",
        "orphan.txt": "no picture beside it",
    }


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
