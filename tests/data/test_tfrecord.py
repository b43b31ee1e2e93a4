"""TFRecord files: written and read back, and what is wrong with others' files."""

from __future__ import annotations

import gzip

import pytest
import tensorflow as tf

from mmfusion.data import read_tfrecord, write_tfrecord
from mmfusion.errors import DataError


def contents(source):
    return {
        split: [(example.image.read(), example.captions) for example in examples] for split, examples in source.splits.items()
    }


def feature(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def write_records(path, *records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            if isinstance(record, dict):
                record = tf.train.Example(features=tf.train.Features(feature=record)).SerializeToString()
            writer.write(record)


def test_what_is_written_is_read_back_over_several_files(picture_source, tmp_path):
    source = picture_source(7, captions=[1, 2, 3, 1, 5, 1, 2])
    files = write_tfrecord(source, tmp_path / "records", shard_size=3)
    assert [file.name for file in files] == [f"train-0000{shard}-of-00003.tfrecord" for shard in range(3)]
    again = read_tfrecord(tmp_path / "records")
    assert contents(again) == contents(source) and not again.bad_rows
    ids = [example.image_id for example in again.splits["train"]]
    assert len(set(ids)) == 7


def test_one_file_and_a_pattern_name_the_same_rows(picture_source, tmp_path):
    write_tfrecord(picture_source(4), tmp_path / "records", shard_size=2)
    assert len(read_tfrecord(tmp_path / "records" / "train-00000-of-00002.tfrecord").splits["train"]) == 2
    assert len(read_tfrecord(str(tmp_path / "records" / "train-*")).splits["train"]) == 4


def test_splits_come_from_names_or_from_records(tmp_path, encode, gradient):
    picture = feature(encode(gradient))
    write_records(tmp_path / "validation-0.tfrecord", {"image": picture, "caption": feature(b"a")})
    write_records(tmp_path / "all.tfrecord", {"image": picture, "caption": feature(b"b"), "split": feature(b"test")})
    splits = read_tfrecord(tmp_path).splits
    assert {split: rows[0].captions for split, rows in splits.items()} == {"val": ("a",), "test": ("b",)}


def test_other_peoples_names_are_understood(tmp_path, encode, gradient):
    content = encode(gradient, "JPEG")
    write_records(tmp_path / "train.tfrecord", {"image/encoded": feature(content), "image/caption": feature(b"one", b"two")})
    (example,) = read_tfrecord(tmp_path).splits["train"]
    assert example.image.read() == content and example.captions == ("one", "two")


def test_bad_records_are_named_and_the_others_kept(tmp_path, encode, gradient):
    good = {"image": feature(encode(gradient)), "captions": feature(b"fine")}
    write_records(
        tmp_path / "train.tfrecord",
        good,
        {"picture": feature(b"x")},
        b"\xff\xff no protobuf",
        {"image": feature(encode(gradient)), "captions": feature(b"  ")},
        good,
    )
    source = read_tfrecord(tmp_path)
    assert [example.name for example in source.splits["train"]] == ["train.tfrecord:0", "train.tfrecord:4"]
    reasons = {row.name: row.reason for row in source.bad_rows}
    assert set(reasons) == {"train.tfrecord:1", "train.tfrecord:2", "train.tfrecord:3"}
    assert "found picture" in reasons["train.tfrecord:1"]
    assert "not a tf.train.Example" in reasons["train.tfrecord:2"]
    assert "empty" in reasons["train.tfrecord:3"]


def test_a_truncated_file_keeps_what_was_whole(picture_source, tmp_path):
    (file,) = write_tfrecord(picture_source(5), tmp_path / "records")
    file.write_bytes(file.read_bytes()[:-20])
    source = read_tfrecord(file)
    assert len(source.splits["train"]) == 4
    (bad,) = source.bad_rows
    assert bad.name == f"{file.name}:4" and "truncated" in bad.reason


def test_compressed_and_missing_files_are_refused(picture_source, tmp_path):
    (file,) = write_tfrecord(picture_source(1), tmp_path / "records")
    file.write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(DataError, match=r"no random access.*decompress"):
        read_tfrecord(file)
    with pytest.raises(DataError, match="nowhere"):
        read_tfrecord(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [1, 11, 13, -1])
def test_wherever_a_file_breaks_off_it_is_noticed(kept, picture_source, tmp_path):
    (file,) = write_tfrecord(picture_source(2), tmp_path / "records")
    content = file.read_bytes()
    # The first record: its length in 8 bytes, a checksum in 4, the data, a checksum in 4.
    second = 12 + int.from_bytes(content[:8], "little") + 4
    file.write_bytes(content[: second + kept] if kept > 0 else content[:kept])
    source = read_tfrecord(file)
    assert len(source.splits["train"]) == 1
    (bad,) = source.bad_rows
    assert bad.name == f"{file.name}:1" and "truncated" in bad.reason and "{{" not in bad.reason


@pytest.mark.parametrize("at", [2, 40])
def test_a_wrong_checksum_is_noticed(at, picture_source, tmp_path):
    (file,) = write_tfrecord(picture_source(2), tmp_path / "records")
    content = bytearray(file.read_bytes())
    content[12 + int.from_bytes(content[:8], "little") + 4 + at] ^= 255
    file.write_bytes(content)
    source = read_tfrecord(file)
    assert len(source.splits["train"]) == 1 and "corrupted record" in source.bad_rows[0].reason


def test_what_is_no_tfrecord(tmp_path):
    (tmp_path / "text.tfrecord").write_text("this is a text and nothing else")
    with pytest.raises(DataError, match="Is this even a TFRecord file"):
        read_tfrecord(tmp_path / "text.tfrecord")


def test_files_of_tfds_say_their_split(tmp_path, encode, gradient):
    for split in ("train", "validation"):
        write_records(
            tmp_path / f"coco-{split}.tfrecord-00000-of-00001", {"image": feature(encode(gradient)), "text": feature(b"a")}
        )
    assert {split: len(rows) for split, rows in read_tfrecord(tmp_path).splits.items()} == {"train": 1, "val": 1}


def test_captions_of_another_type_or_coding_are_named(tmp_path, encode, gradient):
    picture = feature(encode(gradient))
    numbers = tf.train.Feature(int64_list=tf.train.Int64List(value=[1, 2]))
    write_records(
        tmp_path / "train.tfrecord",
        {"image": picture, "text": feature(b"good")},
        {"image": picture, "text": numbers},
        {"image": numbers, "text": feature(b"good")},
        {"image": picture, "text": feature(b"caf\xe9")},
    )
    source = read_tfrecord(tmp_path)
    assert len(source.splits["train"]) == 1
    assert [row.reason[:22] for row in source.bad_rows] == ["no caption", "expected one of image,", "caption 1 is not valid"]
