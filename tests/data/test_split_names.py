"""Which split a name means."""

from __future__ import annotations

import pytest

from mmfusion.data.split_names import split_named, split_of, split_of_file


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("VAL", "val"), ("valid", "val"), ("validation", "val"), ("dev", "val"),
        ("test", "test"), ("restval", None), ("all", None), ("", None),
    ],
)  # fmt: skip
def test_words(name, split):
    assert split_named(name) == split
    assert split_of(name) == split_of_file(name) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [("train2017", "train"), ("val_2", "val"), ("trains", None), ("my train", None), ("0train", None), ("tests", None)],
)
def test_folders_begin_with_it(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00004.tfrecord", "train"), ("cc3m-validation-0000.tar", "val"), ("cc3m.train.0.tar", "train"),
        ("coco_captions-val.tfrecord-00000-of-00008", "val"), ("shard_{000..012}.tar", None), ("test_train.tar", "test"),
        ("trainable-0.tar", None), ("00000.tar", None),
    ],
)  # fmt: skip
def test_files_have_it_as_a_word(name, split):
    assert split_of_file(name) == split
