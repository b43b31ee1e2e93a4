"""From the data part of a recipe to a source, for every kind."""

from __future__ import annotations

import pytest

from mmfusion.config import recipe_from_dict
from mmfusion.data import open_source, write_tfrecord, write_webdataset
from mmfusion.data.opening import SOURCES
from mmfusion.errors import ConfigError, DataError


def data(**values):
    return recipe_from_dict({"data": values}).data


def test_every_kind_opens_the_same_pictures(picture_source, tmp_path):
    source = picture_source(4, captions=1)
    rows = source.splits["train"]
    folder = tmp_path / "kinds"
    folder.mkdir()
    lines = ["image,caption,split"] + [f"{row.image.path},{row.captions[0]},train" for row in rows]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    (folder / "captions.jsonl").write_text(
        "".join(f'{{"image": "{row.image.path}", "captions": ["{row.captions[0]}"], "split": "train"}}\n' for row in rows)
    )
    (folder / "beside").mkdir()
    for row in rows:
        (folder / "beside" / f"{row.image_id}.png").write_bytes(row.image.read())
        (folder / "beside" / f"{row.image_id}.txt").write_text(row.captions[0] + "\n")
    write_tfrecord(source, folder / "records")
    write_webdataset(source, folder / "tars")
    paths = {
        "csv": folder,
        "jsonl": folder,
        "folder": folder / "beside",
        "tfrecord": folder / "records",
        "webdataset": folder / "tars",
    }
    expected = sorted((row.image.read(), row.captions) for row in rows)
    for kind, path in paths.items():
        opened = open_source(data(source=kind, path=str(path), validation_share=0))
        assert sorted((row.image.read(), row.captions) for row in opened.splits["train"]) == expected, kind
    assert set(SOURCES) == {*paths, "builtin", "tfds"}


def test_data_without_a_validation_split_gets_one(picture_source, tmp_path):
    write_tfrecord(picture_source(20), tmp_path / "records")
    options = {"source": "tfrecord", "path": str(tmp_path / "records"), "validation_share": 0.25}
    splits = open_source(data(**options)).splits
    assert (len(splits["train"]), len(splits["val"])) == (15, 5)
    assert not {row.image_id for row in splits["train"]} & {row.image_id for row in splits["val"]}
    assert open_source(data(**options)).splits == splits


def test_limit_keeps_the_first_training_pictures():
    assert len(open_source(data(source="builtin", limit=10)).splits["train"]) == 10
    assert len(open_source(data(source="builtin", limit=10)).splits["val"]) > 10


def test_what_is_missing_is_said(tmp_path):
    for kind in ("jsonl", "csv", "folder", "tfrecord", "webdataset"):
        with pytest.raises((ConfigError, DataError), match=r"data\.path|path"):
            open_source(data(source=kind))
    with pytest.raises(ConfigError, match=r"data\.name"):
        open_source(data(source="tfds"))
    with pytest.raises(DataError, match="nowhere"):
        open_source(data(source="jsonl", path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(("theirs", "ours"), [("validation", "val"), ("dev", "val"), ("val", "validation")])
def test_a_split_of_the_same_meaning_is_found(theirs, ours, tmp_path):
    lines = [
        f'{{"image": "{n}.jpg", "caption": "a", "split": "{split}"}}\n' for n, split in enumerate(["train", "train", theirs])
    ]
    (tmp_path / "captions.jsonl").write_text("".join(lines))
    opened = open_source(data(source="jsonl", path=str(tmp_path), validation_split=ours))
    assert {split: len(rows) for split, rows in opened.splits.items()} == {"train": 2, ours: 1}


def test_two_splits_of_the_same_meaning_are_left_alone(tmp_path):
    lines = [f'{{"image": "{n}.jpg", "caption": "a", "split": "{split}"}}\n' for n, split in enumerate(["train", "dev", "valid"])]
    (tmp_path / "captions.jsonl").write_text("".join(lines))
    opened = open_source(data(source="jsonl", path=str(tmp_path), validation_share=0))
    assert set(opened.splits) == {"train", "dev", "valid"}
