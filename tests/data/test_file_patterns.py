"""From a path, folder or pattern to files."""

from __future__ import annotations

import pytest

from mmfusion.data.file_patterns import matching_files
from mmfusion.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("a-00.tar", "a-01.tar", "a-02.tar", "b-{x}.tar", "notes.txt", "deep/a-03.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a-00.tar", "a-01.tar", "a-02.tar", "b-{x}.tar"]),
        ("a-01.tar", ["a-01.tar"]),
        ("notes.txt", ["notes.txt"]),
        ("a-*.tar", ["a-00.tar", "a-01.tar", "a-02.tar"]),
        ("a-0[01].tar", ["a-00.tar", "a-01.tar"]),
        ("a-0?.tar", ["a-00.tar", "a-01.tar", "a-02.tar"]),
        ("**/a-*.tar", ["a-00.tar", "a-01.tar", "a-02.tar", "a-03.tar"]),
        ("a-{01..02}.tar", ["a-01.tar", "a-02.tar"]),
        ("a-{0..0}{0..1}.tar", ["a-00.tar", "a-01.tar"]),
        ("b-{x}.tar", ["b-{x}.tar"]),
        ("*-{00..01}.t*", ["a-00.tar", "a-01.tar"]),
    ],
)
def test_what_a_pattern_means(folder, pattern, names):
    assert [file.name for file in matching_files(folder / pattern, (".tar",))] == names


@pytest.mark.parametrize("pattern", ["c-*.tar", "nowhere", "deep/none", "folder.tar", "a-{05..09}.tar"])
def test_nothing_is_an_error_that_names_it(folder, pattern):
    with pytest.raises(DataError, match="no such data") as caught:
        matching_files(folder / pattern, (".tar",))
    assert str(folder / pattern) in str(caught.value) and "\n" not in str(caught.value)


def test_a_range_with_a_hole_is_an_error(folder):
    # A shard that is missing from an explicit range was forgotten in a copy.
    with pytest.raises(DataError, match=r"a-05\.tar"):
        matching_files(folder / "a-{01..05}.tar", (".tar",))
