"""Evaluation batches: everything once, in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mmfusion.data import ImageTransform, Quarantine, Source, build_eval_images, build_eval_texts

TRANSFORM = ImageTransform(size=8)


def ids(dataset):
    return [batch["image_id"].tolist() for batch in dataset.as_numpy_iterator()]


def test_every_picture_once_in_order_with_the_rest(picture_source):
    source = picture_source(7)
    dataset = build_eval_images(source, "train", transform=TRANSFORM, batch_size=3, quarantine=Quarantine(None, total=7))
    assert ids(dataset) == [[0, 1, 2], [3, 4, 5], [6]]
    assert ids(dataset) == ids(dataset)
    first = next(dataset.as_numpy_iterator())
    np.testing.assert_array_equal(
        first["image"], [TRANSFORM(tf.constant(row.image.read())) for row in source.splits["train"][:3]]
    )


def test_bad_pictures_are_left_out_and_recorded(picture_source):
    source = picture_source(7)
    for index in (1, 6):
        Path(source.splits["train"][index].image.path).write_bytes(b"")
    quarantine = Quarantine(None, total=7, max_share=0.5)
    dataset = build_eval_images(source, "train", transform=TRANSFORM, batch_size=3, quarantine=quarantine)
    assert ids(dataset) == [[0, 2], [3, 4, 5]], "no empty batch"
    assert ids(dataset) == [[0, 2], [3, 4, 5]]
    assert sorted(quarantine.reasons) == ["captions.jsonl:2", "captions.jsonl:7"]


def test_past_the_share_evaluation_stops(picture_source):
    source = picture_source(7)
    for row in source.splits["train"][:3]:
        Path(row.image.path).unlink()
    quarantine = Quarantine(None, total=7, max_share=0.2)
    dataset = build_eval_images(source, "train", transform=TRANSFORM, batch_size=3, quarantine=quarantine)
    with pytest.raises(tf.errors.OpError, match="too many bad examples"):
        ids(dataset)
    assert quarantine.error is not None


def test_every_caption_once_with_its_picture(picture_source, tokenizer):
    source = picture_source(4, captions=[1, 3, 2, 4])
    dataset = build_eval_texts(source, "train", tokenizer=tokenizer, batch_size=4)
    assert ids(dataset) == [[0, 1, 1, 1], [2, 2, 3, 3], [3, 3]]
    found = [text.decode() for batch in dataset for text in tokenizer.detokenize(batch["token_ids"]).numpy()]
    assert found == [text for row in source.splits["train"] for text in row.captions]


def test_all_is_all_splits_in_the_order_of_their_names(picture_source, tokenizer):
    train, val = picture_source(3), picture_source(2, split="val", first=3)
    source = Source("both", {"val": val.splits["val"], "train": train.splits["train"]})
    quarantine = Quarantine(None, total=5)
    images = build_eval_images(source, "all", transform=TRANSFORM, batch_size=9, quarantine=quarantine)
    assert ids(images) == [[0, 1, 2, 3, 4]]
    assert ids(build_eval_texts(source, "all", tokenizer=tokenizer, batch_size=99)) == [
        [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    ]


def test_an_empty_split_gives_no_batch(tokenizer):
    source = Source("empty", {"val": []})
    quarantine = Quarantine(None, total=1)
    assert ids(build_eval_images(source, "val", transform=TRANSFORM, batch_size=2, quarantine=quarantine)) == []
    assert ids(build_eval_texts(source, "val", tokenizer=tokenizer, batch_size=2)) == []
