"""Tables of comma- or tab-separated values."""

from __future__ import annotations

import pytest

from mmfusion.data import read_csv
from mmfusion.errors import DataError


def write(tmp_path, content: bytes):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    return path


def test_joins_rows_of_a_picture_and_reads_columns_by_name(tmp_path):
    path = write(
        tmp_path,
        b'\xef\xbb\xbfcaption,other,Image,split\r\n"a dog, old",1,a.jpg,train\r\ntwo\nlines,2,b.jpg,val\r\n'
        b"a pet,3,a.jpg,train\r\n",
    )
    source = read_csv(path)
    assert source.splits["train"][0].captions == ("a dog, old", "a pet")
    assert source.splits["train"][0].image.path == str(tmp_path / "a.jpg")
    # The unquoted line break makes two short rows of one.
    assert [row.name for row in source.bad_rows] == [
        "table.csv:3",
    ]
    assert [row.captions for row in source.splits["val"]] == [("lines",)]


def test_tabs(tmp_path):
    source = read_csv(write(tmp_path, b"image\tcaption\na.jpg\tone, two\n"))
    assert source.splits["train"][0].captions == ("one, two",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"b.jpg", "expected 2 values, found 1"),
        (b",a dog", "image: expected a file name"),
        (b"b.jpg,", "caption 1 is empty"),
        (b"b.jpg,caf\xe9", "caption 1 is not valid Unicode"),
        (b"b.jpg," + b"x" * 200000, "not a row of CSV: field larger than field limit"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, reason):
    source = read_csv(write(tmp_path, b"image,caption\na.jpg,good\n" + row + b"\nc.jpg,good too\n"))
    assert [example.captions[0] for example in source.splits["train"]] == ["good", "good too"]
    assert source.bad_rows[0].name == "table.csv:3"
    assert reason in source.bad_rows[0].reason


@pytest.mark.parametrize(("content", "found"), [(b"file,text\na.jpg,a dog\n", "found file, text"), (b"", "found an empty file")])
def test_the_header_must_name_the_columns(tmp_path, content, found):
    with pytest.raises(DataError, match=f"expected image, caption and, optionally, split, {found}"):
        read_csv(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.csv\]: found No such file"):
        read_csv(tmp_path / "nowhere.csv")


def test_semicolons_and_no_text_at_all(tmp_path):
    source = read_csv(write(tmp_path, b"image;caption\na.jpg;one, two\n"))
    assert source.splits["train"][0].captions == ("one, two",)
    with pytest.raises(DataError, match="found no UTF-8 text"):
        read_csv(write(tmp_path, "image,caption\na.jpg,one\n".encode("utf-16")))
