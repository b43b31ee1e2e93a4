"""Training batches: shapes, order, exact resumption, shards, bad examples, strategies."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mmfusion.data import Augmentation, ImageTransform, Quarantine, build_train_dataset, steps_per_epoch
from mmfusion.errors import ConfigError, DataError

AUGMENT = Augmentation(crop_scale=(0.5, 1.0), color=0.2)


@pytest.fixture
def batches(tokenizer):
    """Some batches of a source, as NumPy."""

    def take(source, count, **options):
        quarantine = options.pop("quarantine", None) or Quarantine(None, total=1, max_share=1e9)
        options = {"batch_size": 4, "seed": 7, "augment": AUGMENT, "transform": ImageTransform(size=8)} | options
        dataset = build_train_dataset(source, tokenizer=tokenizer, quarantine=quarantine, **options)
        return list(itertools.islice(dataset.as_numpy_iterator(), count))

    return take


def assert_equal(left, right):
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], err_msg=key)


def texts(tokenizer, batch):
    return [text.decode() for text in tokenizer.detokenize(tf.constant(batch["token_ids"])).numpy()]


def test_elements(picture_source, tokenizer):
    dataset = build_train_dataset(
        picture_source(10),
        "train",
        tokenizer=tokenizer,
        transform=ImageTransform(size=(8, 12)),
        batch_size=4,
        seed=0,
        quarantine=Quarantine(None, total=10),
    )
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    shapes = {key: (spec.shape.as_list(), spec.dtype) for key, spec in dataset.element_spec.items()}
    assert shapes == {
        "image": ([4, 8, 12, 3], tf.float32),
        "token_ids": ([4, 12], tf.int32),
        "token_mask": ([4, 12], tf.bool),
        "image_id": ([4], tf.int32),
    }


def test_picture_caption_and_id_belong_together(picture_source, batches, tokenizer):
    source = picture_source(10, captions=3)
    for batch in batches(source, 6, augment=None):
        pixels = np.round((batch["image"] * 0.5 + 0.5) * 255)
        np.testing.assert_array_equal(pixels[:, 3, 3, 1], 10 * batch["image_id"])
        for text, image_id in zip(texts(tokenizer, batch), batch["image_id"], strict=True):
            assert text in source.splits["train"][image_id].captions
        np.testing.assert_array_equal(batch["token_mask"], batch["token_ids"] != 0)


def test_the_same_seed_gives_the_same_batches_and_another_does_not(picture_source, batches):
    source = picture_source(10)
    assert_equal(batches(source, 6), batches(source, 6))
    other = batches(source, 6, seed=8)
    assert any((one["image_id"] != two["image_id"]).any() for one, two in zip(batches(source, 6), other, strict=True))


@pytest.mark.parametrize("captions", ["sample", "all"])
@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("start", [1, 2, 5])
def test_resuming_is_exact(picture_source, batches, captions, cache, start):
    source = picture_source(10, captions=2)
    Path(source.splits["train"][3].image.path).write_bytes(b"")
    options = {"captions": captions, "cache": cache}
    assert_equal(batches(source, 8, **options)[start:], batches(source, 8 - start, start_step=start, **options))


def test_an_epoch_has_every_picture_once_and_augmentation_changes(picture_source, batches):
    first, second = np.split(np.asarray(batches(picture_source(12), 6), object), 2)
    for epoch in (first, second):
        assert sorted(np.concatenate([batch["image_id"] for batch in epoch])) == list(range(12))


def test_all_pairs_once_and_pairs_of_one_picture_share_the_id(picture_source, batches, tokenizer):
    source = picture_source(4, captions=[1, 3, 2, 4])
    epoch = batches(source, 5, captions="all", batch_size=2)
    pairs = sorted(pair for batch in epoch for pair in zip(batch["image_id"].tolist(), texts(tokenizer, batch), strict=True))
    assert pairs == sorted((row.image_id, text) for row in source.splits["train"] for text in row.captions)


@pytest.mark.parametrize("count", [2, 3])
def test_shards_are_the_global_batch_in_parts(picture_source, batches, count):
    source = picture_source(12)
    whole = batches(source, 4, batch_size=6)
    parts = [batches(source, 4, batch_size=6 // count, shard=(count, index)) for index in range(count)]
    joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)]
    assert_equal(whole, joined)
    assert sorted(np.concatenate([batch["image_id"] for batch in joined[:2]])) == list(range(12))


def test_bad_examples_are_replaced_and_listed(picture_source, batches, tmp_path):
    source = picture_source(10)
    rows = source.splits["train"]
    Path(rows[2].image.path).unlink()
    Path(rows[3].image.path).write_bytes(b"a text")
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", total=10, max_share=0.2)
    epoch = batches(source, 10, batch_size=5, quarantine=quarantine)
    assert quarantine.error is None and quarantine.count == 2
    listed = [json.loads(line)["name"] for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(listed) == ["captions.jsonl:3", "captions.jsonl:4"]
    ids = np.concatenate([batch["image_id"] for batch in epoch[:2]])
    assert sorted(ids) == [0, 1, 4, 4, 4, 5, 6, 7, 8, 9], "4 stands in for 2 and 3"


def test_past_the_share_iteration_stops_and_the_error_is_kept(picture_source, batches):
    source = picture_source(20)
    for row in source.splits["train"][::4]:
        Path(row.image.path).unlink()
    quarantine = Quarantine(None, total=20, max_share=0.1)
    with pytest.raises(tf.errors.OpError, match="too many bad examples"):
        batches(source, 10, quarantine=quarantine)
    assert str(quarantine.error).startswith("too many bad examples: expected at most 10.00% of 20, found 3")


def test_steps_per_epoch(picture_source):
    source = picture_source(10, captions=3)
    assert steps_per_epoch(source, "train", 4) == 2
    assert steps_per_epoch(source, "train", 4, "all") == 7
    assert steps_per_epoch(source, "train", 11) == 0


def test_impossible_batches(picture_source, batches):
    source = picture_source(3)
    with pytest.raises(DataError, match=r"smaller than a batch \[pictures: train\]: expected at least 4, found 3"):
        batches(source, 1)
    for options in ({"batch_size": 0}, {"start_step": -1}, {"shard": (2, 2), "batch_size": 1}):
        with pytest.raises(ConfigError, match="impossible batches"):
            batches(source, 1, **options)
    with pytest.raises(DataError, match="no such split"):
        batches(source, 1, split="test")


def test_fit_and_two_replicas_see_the_global_batch(picture_source, tokenizer, two_devices):
    source = picture_source(8)
    dataset = build_train_dataset(
        source,
        tokenizer=tokenizer,
        transform=ImageTransform(size=8),
        batch_size=4,
        seed=1,
        quarantine=Quarantine(None, total=8),
    )
    expected = [batch["image_id"] for batch in itertools.islice(dataset.as_numpy_iterator(), 2)]
    distributed = iter(two_devices.experimental_distribute_dataset(dataset))
    for ids in expected:
        parts = two_devices.experimental_local_results(next(distributed)["image_id"])
        assert [part.shape for part in parts] == [(2,), (2,)]
        np.testing.assert_array_equal(np.concatenate(parts), ids)


def test_flickr8k_from_memory_equals_from_files(shared, tokenizer):
    from mmfusion.data import read_jsonl

    source = read_jsonl(shared / "data" / "flickr8k").limited("train", 24)
    options = {"tokenizer": tokenizer, "transform": ImageTransform(size=32), "batch_size": 8, "seed": 0}
    found = []
    for cache in ("memory", "none"):
        quarantine = Quarantine(None, total=24, max_share=0.0)
        dataset = build_train_dataset(source, quarantine=quarantine, cache=cache, augment=AUGMENT, **options)
        found.append(list(itertools.islice(dataset.as_numpy_iterator(), 6)))
    assert_equal(*found)
