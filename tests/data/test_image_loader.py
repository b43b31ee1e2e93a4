"""The loader: bad pictures, stand-ins, and the memory of decoded pictures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mmfusion.data import Example, ImageLoader, ImageReference, ImageTransform, Quarantine, image_loader
from mmfusion.errors import ConfigError, DataError

TRANSFORM = ImageTransform(size=8)


def make(source, cache="none", max_share=1.0):
    rows = source.splits["train"]
    quarantine = Quarantine(None, total=len(rows), max_share=max_share)
    return ImageLoader(rows, TRANSFORM, quarantine, cache=cache), quarantine


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), "cannot read the image .*: found No such file"),
        (lambda file: file.write_bytes(b""), r"not a readable image \[004.png\].*found an empty file"),
        (lambda file: file.write_bytes(b"a text"), r"found 6 bytes starting with b'a text'"),
        (lambda file: file.write_bytes(file.read_bytes()[:-20]), "not a readable image"),
        (lambda file: (file.unlink(), file.mkdir()), "cannot read the image .*: found Is a directory"),
    ],
)
def test_a_bad_picture_is_recorded_once_and_replaced(picture_source, damage, reason):
    source = picture_source(6)
    damage(Path(source.splits["train"][4].image.path))
    loader, quarantine = make(source)
    for _ in range(2):
        assert loader.load(4) is None
        row, pixels = loader.load_or_next(4)
        assert row == 5 and (pixels == 50).all()
    assert quarantine.count == 1
    assert list(quarantine.reasons) == ["captions.jsonl:5"]
    with pytest.raises(AssertionError if "nothing" in reason else DataError, match=reason):
        raise DataError(quarantine.reasons["captions.jsonl:5"])


def test_the_last_row_is_replaced_by_the_first(picture_source):
    source = picture_source(3)
    Path(source.splits["train"][2].image.path).unlink()
    assert make(source)[0].load_or_next(2)[0] == 0


def test_nothing_but_bad_pictures_is_an_error_outside_too(picture_source):
    source = picture_source(3)
    for row in source.splits["train"]:
        Path(row.image.path).unlink()
    loader, quarantine = make(source)
    with pytest.raises(DataError, match="no readable image: found 3 bad ones"):
        loader.load_or_next(0)
    assert quarantine.error is not None


def test_memory_reads_each_file_once(picture_source):
    source = picture_source(4)
    for cache, survives in (("memory", True), ("none", False)):
        loader, _ = make(source, cache)
        first = [loader.load(index).copy() for index in range(4)]
        files = {Path(row.image.path): Path(row.image.path).read_bytes() for row in source.splits["train"]}
        for file in files:
            file.unlink()
        again = [loader.load(index) for index in range(4)]
        assert all((again[index] is not None) == survives for index in range(4))
        if survives:
            np.testing.assert_array_equal(first, again)
        for file, content in files.items():
            file.write_bytes(content)


def test_memory_takes_only_what_is_free(picture_source, monkeypatch):
    monkeypatch.setattr(image_loader, "_free_memory", lambda: 2 * 8 * 8 * 3 * 2)
    loader, _ = make(picture_source(4), "memory")
    assert len(loader._pixels) == 2
    assert [int(loader.load(index)[0, 0, 0]) for index in (0, 1, 2, 3, 0, 3)] == [0, 10, 20, 30, 0, 30]


def test_many_threads_agree(picture_source):
    source = picture_source(20)
    Path(source.splits["train"][7].image.path).write_bytes(b"")
    loader, quarantine = make(source, "memory")
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda index: loader.load_or_next(index % 20), range(400)))
    for index, (row, pixels) in enumerate(rows):
        assert row == (8 if index % 20 == 7 else index % 20)
        assert (pixels == 10 * row).all()
    assert quarantine.count == 1


def test_a_range_that_ends_behind_its_file_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    reference = ImageReference(str(tmp_path / "a.tar"), offset=6, length=10)
    loader = ImageLoader([Example(reference, ("x",), 0, "a.tar:1.jpg")], TRANSFORM, Quarantine(None, total=1, max_share=1.0))
    assert loader.load(0) is None
    assert "ends inside the image" in loader.quarantine.reasons["a.tar:1.jpg"]
    assert "expected 10 bytes at 6, found 4" in loader.quarantine.reasons["a.tar:1.jpg"]


def test_unknown_cache(picture_source):
    with pytest.raises(ConfigError, match="expected memory or none, found 'disk'"):
        make(picture_source(1), "disk")
