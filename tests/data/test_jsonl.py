"""JSON lines: what is read, and what each kind of broken line becomes."""

from __future__ import annotations

import pytest

from mmfusion.data import BadRow, read_jsonl
from mmfusion.errors import DataError


def test_reads_rows_in_order_with_splits_and_ids(write_jsonl):
    path = write_jsonl(
        [
            {"image": "images/b.jpg", "captions": ["one ", " two  words"], "split": "train", "license": "CC"},
            {"image": "images/a.jpg", "caption": "three", "split": "val"},
            {"image": "images/c.jpg", "captions": ["four"]},
        ]
    )
    source = read_jsonl(path)
    assert {split: [row.image_id for row in rows] for split, rows in source.splits.items()} == {
        "train": [0, 2],
        "val": [1],
    }
    assert source.splits["train"][0].captions == ("one", "two words")
    assert source.splits["train"][0].image.path == str(path.parent / "images/b.jpg")
    assert source.splits["val"][0].name == "captions.jsonl:2"
    assert source.bad_rows == []


def test_a_folder_means_its_captions_file(write_jsonl):
    path = write_jsonl([{"image": "a.jpg", "captions": ["one"]}])
    assert read_jsonl(path.parent).splits == read_jsonl(path).splits


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": "a.jpg", "captions": ["x"]', "not a line of JSON"),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b'{"captions": ["x"]}', "no key 'image', found 'captions'"),
        (b'{"image": "a.jpg"}', "no key 'captions'"),
        (b'{"image": 7, "captions": ["x"]}', "image: expected a file name, found 7"),
        (b'{"image": "", "captions": ["x"]}', "image: expected a file name"),
        (b'{"image": "a.jpg", "captions": 7}', "expected a string or a list of strings, found int"),
        (b'{"image": "a.jpg", "captions": {"en": "x"}}', "expected a string or a list of strings, found dict"),
        (b'{"image": "a.jpg", "captions": []}', "no caption"),
        (b'{"image": "a.jpg", "captions": [null]}', "caption 1: expected a string, found NoneType"),
        (b'{"image": "a.jpg", "captions": ["  "]}', "caption 1 is empty"),
        (b'{"image": "a.jpg", "captions": ["%s"]}' % (b"word " * 1000), "caption 1 has 4,999 characters"),
        (b'{"image": "a.jpg", "captions": ["\xff\xfe"]}', "not a line of JSON"),
        (b'{"image": "a.jpg", "captions": ["\\ud800"]}', "caption 1 is not valid Unicode"),
        (b'{"image": "a.jpg", "captions": ["x"], "split": 3}', "split: expected a name"),
        (b'{"image": "a.jpg", "captions": ["x"], "split": "all"}', "split: expected a name"),
        (b"[" * 100000, "not a line of JSON"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_kept(write_jsonl, line, reason):
    source = read_jsonl(write_jsonl([{"image": "good.jpg", "captions": ["good"]}, line]))
    assert [row.captions for row in source.splits["train"]] == [("good",)]
    assert [row.name for row in source.bad_rows] == ["captions.jsonl:2"]
    assert reason in source.bad_rows[0].reason


def test_one_bad_caption_costs_only_itself(write_jsonl):
    source = read_jsonl(write_jsonl([{"image": "a.jpg", "captions": ["one", "", "three"]}]))
    assert source.splits["train"][0].captions == ("one", "three")
    assert source.bad_rows == [BadRow("captions.jsonl:1", "caption 2 is empty")]


def test_lines_of_one_picture_are_joined_but_never_across_splits(write_jsonl):
    source = read_jsonl(
        write_jsonl(
            [
                {"image": "a.jpg", "caption": "one"},
                {"image": "./a.jpg", "caption": "two"},
                {"image": "a.jpg", "caption": "three", "split": "val"},
            ]
        )
    )
    assert [row.captions for row in source.examples("all")] == [("one", "two")]
    assert "split 'train' already" in source.bad_rows[0].reason


def test_nothing_usable_and_nothing_there_are_one_clear_line(write_jsonl, tmp_path):
    with pytest.raises(DataError, match=r"no usable row \[.*captions.jsonl\]: found captions.jsonl:1: no key 'image'"):
        read_jsonl(write_jsonl([{"picture": "a.jpg"}]))
    with pytest.raises(DataError, match="nowhere.*No such file.*set data.path"):
        read_jsonl(tmp_path / "nowhere")


def test_flickr8k(shared):
    source = read_jsonl(shared / "data" / "flickr8k")
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 6000, "val": 1000}
    assert all(len(row.captions) == 5 for row in source.examples("all")) or len(source.bad_rows) > 0
    assert len({row.image_id for row in source.examples("all")}) == 7000
