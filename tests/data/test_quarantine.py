"""The quarantine: each once, in a file, up to the share."""

from __future__ import annotations

import json
import threading

import pytest

from mmfusion.data import Quarantine
from mmfusion.errors import DataError


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_lists_each_once_from_many_threads(tmp_path):
    path = tmp_path / "deep" / "quarantine.jsonl"
    quarantine = Quarantine(path, total=100, max_share=1.0)
    threads = [
        threading.Thread(target=lambda: [quarantine.record(f"é:{index}", "gone") for index in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert quarantine.count == 50
    assert sorted(row["name"] for row in rows(path)) == sorted(f"é:{index}" for index in range(50))
    assert rows(path)[0]["reason"] == "gone"


def test_stops_past_the_share_and_remembers_why(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", total=200, max_share=0.01)
    quarantine.record("a:1", "gone")
    quarantine.record("a:2", "gone")
    assert quarantine.error is None
    with pytest.raises(DataError, match=r"at most 1.00% of 200, found 3, the last a:3 \(cut off\)") as caught:
        quarantine.record("a:3", "cut off")
    assert quarantine.error is caught.value
    assert "\n" not in str(caught.value)
    assert len(rows(tmp_path / "quarantine.jsonl")) == 3


def test_a_share_of_zero_tolerates_nothing():
    with pytest.raises(DataError):
        Quarantine(None, total=10, max_share=0.0).record("a:1", "gone")


def test_a_resumed_run_counts_anew_and_lists_nothing_twice(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, total=10, max_share=0.5).record("a:1", "gone")
    with open(path, "a") as file:
        file.write('{"name": "half a li')
    resumed = Quarantine(path, total=10, max_share=0.5)
    assert resumed.count == 0
    resumed.record("a:1", "gone")
    assert resumed.count == 1
    assert path.read_text().count("a:1") == 1


def test_an_unwritable_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    quarantine = Quarantine(tmp_path / "file" / "quarantine.jsonl", total=10, max_share=1.0)
    with pytest.raises(DataError, match="cannot write the quarantine"):
        quarantine.record("a:1", "gone")
