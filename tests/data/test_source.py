"""The table: splits, division, ids."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmfusion.errors import DataError


def test_division_is_deterministic_whole_and_disjoint(picture_source):
    source = picture_source(50, captions=2)
    divided = source.with_validation_share(0.2, seed=3)
    again = source.with_validation_share(0.2, seed=3)
    other = source.with_validation_share(0.2, seed=4)
    assert divided.splits == again.splits
    assert divided.splits["val"] != other.splits["val"]
    assert len(divided.splits["val"]) == 10
    assert sorted(row.image_id for row in divided.examples("all")) == list(range(50))
    assert list(source.splits) == ["train"], "the original is as it was"


def test_division_leaves_at_least_one_on_each_side(picture_source):
    source = picture_source(2)
    for share in (0.001, 0.999):
        divided = source.with_validation_share(share, seed=0)
        assert [len(rows) for rows in divided.splits.values()] == [1, 1]


def test_impossible_divisions(picture_source):
    source = picture_source(3)
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(DataError, match="impossible share"):
            source.with_validation_share(share, seed=0)
    with pytest.raises(DataError, match="exists already"):
        source.with_validation_share(0.3, seed=0, validation="train")
    with pytest.raises(DataError, match="too few"):
        picture_source(1).with_validation_share(0.3, seed=0)


def test_an_unknown_split_lists_the_known(picture_source):
    with pytest.raises(DataError, match=r"no such split \[pictures\]: expected train, all, found 'test'"):
        picture_source(3).examples("test")


def test_reading_tables_needs_no_tensorflow():
    code = (
        "import sys, mmfusion.data as data; data.read_builtin(); data.read_jsonl; data.read_webdataset; "
        "assert not {'tensorflow', 'keras', 'tensorflow_datasets'} & set(sys.modules), 'imported too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_tfds_stays_away_until_it_is_asked_for():
    code = "import sys, mmfusion.data as d; [getattr(d, n) for n in d.__all__]; assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
