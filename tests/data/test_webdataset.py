"""Tar files in the WebDataset layout."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from mmfusion.data import read_webdataset, write_webdataset
from mmfusion.errors import DataError


@pytest.fixture
def archive(tmp_path):
    def make(name, members, mode="w"):
        path = tmp_path / name
        with tarfile.open(path, mode) as tar:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return make


def test_what_is_written_is_read_back(picture_source, tmp_path):
    source = picture_source(5, captions=[1, 2, 3, 1, 2], split="val")
    files = write_webdataset(source, tmp_path / "tars", shard_size=2)
    assert [file.name for file in files] == ["val-00000.tar", "val-00001.tar", "val-00002.tar"]
    again = read_webdataset(tmp_path / "tars")
    expected = [(example.image.read(), example.captions) for example in source.splits["val"]]
    assert [(example.image.read(), example.captions) for example in again.splits["val"]] == expected


def test_texts_and_json_of_every_kind(archive, encode, gradient):
    picture = encode(gradient)
    path = archive(
        "train-0.tar",
        {
            "a/1.png": picture, "a/1.txt": b"first\n\nsecond\n",
            "2.jpeg": picture, "2.json": json.dumps({"caption": "one", "split": "test"}).encode(),
            "3.seg.png": picture, "3.txt": "mit Umlaut: ä".encode(),
        },
    )  # fmt: skip
    rows = read_webdataset(path).splits["train"]
    assert sorted(row.captions for row in rows) == [("first", "second"), ("mit Umlaut: ä",), ("one",)]
    assert {row.image.read() for row in rows} == {picture}


def test_the_split_stands_in_the_json_where_the_name_says_none(archive, encode, gradient):
    members = {"1.png": encode(gradient), "1.json": json.dumps({"text": "one", "split": "val"}).encode()}
    assert list(read_webdataset(archive("shard.tar", members)).splits) == ["val"]


def test_members_without_a_partner_and_bad_texts_are_named(archive, encode, gradient):
    picture = encode(gradient)
    path = archive(
        "train.tar",
        {
            "1.png": picture, "1.txt": b"good", "2.png": picture, "3.txt": b"no picture",
            "4.png": picture, "4.json": b"{broken", "5.png": picture, "5.json": b"{}", "6.png": picture, "6.txt": b" ",
        },
    )  # fmt: skip
    source = read_webdataset(path)
    assert [row.captions for row in source.splits["train"]] == [("good",)]
    reasons = {row.name.partition(":")[2]: row.reason for row in source.bad_rows}
    assert set(reasons) == {"2.png", "3.txt", "4.png", "5.png", "6.png"}
    assert "no 2.txt or 2.json" in reasons["2.png"] and "no picture" in reasons["3.txt"]
    assert "cannot be read" in reasons["4.png"] and "none of the keys" in reasons["5.png"]


def test_a_truncated_archive_keeps_what_was_whole(picture_source, tmp_path):
    (file,) = write_webdataset(picture_source(4), tmp_path / "tars")
    members = tarfile.open(file).getmembers()
    file.write_bytes(file.read_bytes()[: members[5].offset_data + 10])
    source = read_webdataset(file)
    assert len(source.splits["train"]) == 2
    assert any("breaks off" in row.reason for row in source.bad_rows)


def test_what_is_no_archive_is_refused(archive, tmp_path, encode, gradient):
    members = {"1.png": encode(gradient), "1.txt": b"good"}
    with pytest.raises(DataError, match="compressed archive"):
        read_webdataset(archive("train.tar", members, "w:gz"))
    (tmp_path / "text.tar").write_text("hello")
    with pytest.raises(DataError, match=r"not a tar archive.*text\.tar"):
        read_webdataset(tmp_path / "text.tar")


def test_a_range_of_shards(archive, encode, gradient):
    for shard in range(3):
        path = archive(f"train-{shard:03d}.tar", {f"{shard}.png": encode(gradient), f"{shard}.txt": b"good"})
    assert len(read_webdataset(path.with_name("train-{000..001}.tar")).splits["train"]) == 2


@pytest.mark.parametrize("damage", ["at a member", "inside a header", "a broken header"])
def test_nothing_is_lost_in_silence(damage, picture_source, tmp_path):
    # Python's tarfile takes each of these for the end of the archive.
    (file,) = write_webdataset(picture_source(4), tmp_path / "tars")
    content, offset = file.read_bytes(), tarfile.open(file).getmembers()[4].offset
    file.write_bytes(
        {
            "at a member": content[:offset],
            "inside a header": content[: offset + 100],
            "a broken header": content[:offset] + b"x" * 512 + content[offset + 512 :],
        }[damage]
    )
    source = read_webdataset(file)
    assert len(source.splits["train"]) == 2
    (bad,) = source.bad_rows
    assert bad.name == f"{file.name}:{offset}" and ("damaged" if damage == "a broken header" else "breaks off") in bad.reason


def test_a_second_archive_in_the_same_file_is_noticed(picture_source, tmp_path):
    (file,) = write_webdataset(picture_source(2), tmp_path / "tars")
    file.write_bytes(file.read_bytes() * 2)
    source = read_webdataset(file)
    assert len(source.splits["train"]) == 2
    assert "more data follows the end of the archive" in source.bad_rows[0].reason


@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_beside_a_picture_is_not_the_picture(turned, archive, encode, gradient):
    members = {"a.b/1.png": encode(gradient), "a.b/1.seg.png": b"mask", "a.b/1.txt": b"good"}
    path = archive("train.tar", dict(reversed(members.items())) if turned else members)
    (row,) = read_webdataset(path).splits["train"]
    assert row.image.read() == encode(gradient) and row.captions == ("good",)


@pytest.mark.parametrize("values", [b'{"width": 3}', b'{"caption": null}', b"{broken", b"[1]"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_text_beside_json_without_captions_counts(values, turned, archive, encode, gradient):
    # As img2dataset writes them: 1.jpg, 1.txt and 1.json with facts of the download.
    members = {"1.png": encode(gradient), "1.json": values, "1.txt": b"good"}
    source = read_webdataset(archive("train.tar", dict(reversed(members.items())) if turned else members))
    assert source.splits["train"][0].captions == ("good",) and not source.bad_rows


def test_names_in_capitals_and_with_a_byte_order_mark(archive, encode, gradient):
    path = archive("cc3m-validation-0000.tar", {"1.PNG": encode(gradient), "1.TXT": b"\xef\xbb\xbffirst\r\nsecond\r\n"})
    source = read_webdataset(path)
    assert {split: [row.captions for row in rows] for split, rows in source.splits.items()} == {"val": [("first", "second")]}


def test_texts_that_cannot_be_read_say_why(archive, encode, gradient):
    picture = encode(gradient)
    members = {"1.png": picture, "1.txt": b"good", "2.png": picture, "2.txt": b"caf\xe9", "3.png": picture, "3.json": b"[1]"}
    reasons = [row.reason for row in read_webdataset(archive("train.tar", members)).bad_rows]
    assert reasons == ["2.txt is not UTF-8", "3.json: expected a JSON object, found list"]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_every_compression_is_known(mode, archive, encode, gradient):
    with pytest.raises(DataError, match="compressed archive.*decompress it"):
        read_webdataset(archive("train.tar", {"1.png": encode(gradient), "1.txt": b"good"}, mode))


def test_empty_archives(archive, tmp_path):
    (tmp_path / "none.tar").touch()
    with pytest.raises(DataError, match="not a tar archive.*empty file"):
        read_webdataset(tmp_path / "none.tar")
    with pytest.raises(DataError, match=r"no usable row .*found no rows$"):
        read_webdataset(archive("train.tar", {}))
