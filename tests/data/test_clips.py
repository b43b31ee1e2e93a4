"""Clips and several pictures a row: from files with known frames to batches with masks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmfusion.data import (
    Augmentation,
    ClipTransform,
    Example,
    ImageLoader,
    ImageReference,
    ImageTransform,
    Quarantine,
    Source,
    build_eval_images,
    build_train_dataset,
    check_source,
    decode_frames,
    frame_places,
    open_source,
    read_jsonl,
    read_tfrecord,
    write_tfrecord,
    write_webdataset,
)
from mmfusion.errors import ConfigError, DataError

LEVELS = (0, 60, 120, 180, 240)
frames_in_graph = tf.function(decode_frames, input_signature=[tf.TensorSpec([], tf.string)])


def gif(encode, levels=LEVELS, side=8, **options) -> bytes:
    """A GIF whose frame i is grey of level i, with a white corner that moves by one pixel a frame."""
    frames = np.stack([np.full((side, side, 3), level, np.uint8) for level in levels])
    for index in range(len(levels)):
        frames[index, index % side, index % side] = 255
    pictures = [Image.fromarray(frame) for frame in frames]
    return encode(pictures[0], "GIF", save_all=True, append_images=pictures[1:], duration=50, **options)


def transform(frames=4, size=8, **options) -> ClipTransform:
    return ClipTransform(ImageTransform(size=size, mean=(0, 0, 0), std=(1, 1, 1)), frames=frames, **options)


@pytest.fixture
def clips(tmp_path, encode):
    """A source of a clip of five frames, one of two, a still picture, and two pictures in one row."""
    (tmp_path / "five.gif").write_bytes(gif(encode))
    (tmp_path / "two.gif").write_bytes(gif(encode, LEVELS[:2]))
    for level in (90, 150):
        (tmp_path / f"{level}.png").write_bytes(encode(np.full((8, 8, 3), level, np.uint8)))
    rows = [
        {"image": "five.gif", "caption": "number 5"},
        {"images": ["two.gif"], "caption": "number 2"},
        {"image": "90.png", "caption": "number 90"},
        {"images": ["150.png", "90.png"], "captions": ["number 150 word 90"]},
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_jsonl(tmp_path)


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"disposal": 1}, {"disposal": 3}])
def test_frames_of_a_gif_equal_pillows(encode, options):
    content = gif(encode, **options)
    found = decode_frames(tf.constant(content)).numpy()
    assert found.shape == (5, 8, 8, 3)
    assert [int(frame[7, 0, 0]) for frame in found] == list(LEVELS)
    assert all((found[i, i, i] == 255).all() and (found[i, i, i - 1] == LEVELS[i]).all() for i in range(5))
    np.testing.assert_array_equal(frames_in_graph(content), found)


def test_what_is_still_has_one_frame_and_an_animated_webp_is_refused(encode, gradient):
    image = Image.fromarray(gradient)
    for content in (encode(image), encode(image, "JPEG"), encode(image, "WEBP", lossless=True), encode(image, "GIF")):
        for decode in (decode_frames, frames_in_graph):
            assert decode(tf.constant(content)).shape == (1, 40, 60, 3)
    animated = encode(image, "WEBP", save_all=True, append_images=[image.rotate(180)], duration=9)
    for decode in (decode_frames, frames_in_graph):
        with pytest.raises(tf.errors.InvalidArgumentError, match="animated WebP"):
            decode(tf.constant(animated))


def test_places_are_spread_from_first_to_last():
    for count in range(1, 40):
        for frames in range(1, 9):
            places = frame_places(count, frames).numpy()
            assert len(places) == min(count, frames)
            assert (np.diff(places) > 0).all() and places[0] == 0 and (frames == 1 or places[-1] == count - 1)
            if count > frames > 1:
                assert np.ptp(np.diff(places)) <= 1
    assert frame_places(9, 3, "start").numpy().tolist() == [0, 1, 2]


def test_a_clip_eagerly_in_graph_and_by_operators(encode):
    few, many = gif(encode, LEVELS[:2]), gif(encode)
    of_files = tf.function(transform(3), input_signature=[tf.TensorSpec([None], tf.string)])
    for contents, levels in (
        ([many], (0, 120, 240)),
        ([few], (0, 60)),
        ([encode(np.full((9, 9, 3), 33, np.uint8))] * 2, (33, 33)),
    ):
        stack, count = transform(3).read(contents)
        assert stack[:count, 7, 0, 0].tolist() == list(levels) and not stack[count:].any()
        for clip in (transform(3)(tf.constant(contents)), of_files(tf.constant([b"", *contents, b""]))):
            assert clip.image_mask.numpy().tolist() == [place < count for place in range(3)]
            np.testing.assert_allclose(clip.image, stack / 255, atol=1e-6)
    alone = transform(3)(tf.constant(many))
    np.testing.assert_array_equal(alone.image, of_files(tf.constant([many])).image)
    assert transform(3, sampling="start").read([many])[0][:, 7, 0, 0].tolist() == [0, 60, 120]


def test_what_does_not_fit_is_refused(encode):
    picture, moving = encode(np.zeros((8, 8, 3), np.uint8)), gif(encode)
    of_files = tf.function(transform(2), input_signature=[tf.TensorSpec([None], tf.string)])
    for contents, words in (([picture] * 3, "more pictures than 2"), ([picture, moving], "moves"), ([b"", b""], "no picture")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            of_files(tf.constant(contents))
    with pytest.raises(DataError, match=r"too many pictures: expected at most 2 \(data.frames\), found 3"):
        transform(2).read([picture] * 3)
    with pytest.raises(DataError, match=r"one of several pictures moves \[picture 2\].*found 5 frames"):
        transform(2).read([picture, moving])
    with pytest.raises(ConfigError, match="unknown sampling"):
        transform(2, sampling="random")


def test_batches_hold_frames_and_their_mask(clips, tokenizer):
    options = {"tokenizer": tokenizer, "transform": transform(), "batch_size": 4, "seed": 1}
    quarantine = Quarantine(None, total=4)
    batch = next(iter(build_train_dataset(clips, **options, quarantine=quarantine, cache="memory")))
    assert batch["image"].shape == (4, 4, 8, 8, 3) and batch["image_mask"].shape == (4, 4)
    by_id = dict(zip(batch["image_id"].numpy().tolist(), range(4), strict=True))
    levels = {0: [0, 60, 180, 240], 1: [0, 60], 2: [90], 3: [150, 90]}
    for image_id, expected in levels.items():
        row = by_id[image_id]
        assert batch["image_mask"][row].numpy().tolist() == [place < len(expected) for place in range(4)]
        found = np.rint(batch["image"][row].numpy()[: len(expected), 7, 0, 0] * 255)
        assert np.abs(found - expected).max() <= 60 if image_id == 0 else found.tolist() == expected
    evaluated = list(build_eval_images(clips, "train", transform=transform(), batch_size=3, quarantine=quarantine))
    assert [row.shape[0] for row in (evaluated[0]["image"], evaluated[1]["image_mask"])] == [3, 1]
    for image_id, row in by_id.items():
        there = evaluated[image_id // 3]
        np.testing.assert_array_equal(there["image"][image_id % 3], batch["image"][row])
        np.testing.assert_array_equal(there["image_mask"][image_id % 3], batch["image_mask"][row])


def test_training_goes_on_where_it_was(clips, tokenizer):
    def batches(start):
        dataset = build_train_dataset(
            clips, tokenizer=tokenizer, transform=transform(), batch_size=2, seed=3, start_step=start,
            quarantine=Quarantine(None, total=4), augment=Augmentation(crop_scale=(0.5, 1.0), color=0.3),
        )  # fmt: skip
        return list(dataset.take(4 - start))

    for one, two in zip(batches(0)[2:], batches(2), strict=True):
        for name in ("image", "image_mask", "image_id"):
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("options", [{}, {"crop_scale": (1.0, 1.0)}, {"crop_scale": (0.3, 0.9), "color": 0.5}])
def test_all_frames_change_alike_and_padding_never_matters(options):
    random = np.random.default_rng(0)
    still = random.integers(0, 255, (12, 10, 3)).astype("uint8")
    augment, seed, mask = Augmentation(**options), [5, 7], np.array([True, True, False])
    one, two = (augment(np.stack([still, still, padding]), seed, mask).numpy() for padding in (still, np.zeros_like(still)))
    np.testing.assert_array_equal(one[0], one[1])
    np.testing.assert_array_equal(one[:2], two[:2])
    np.testing.assert_allclose(one[0], augment(still, seed), atol=1e-3)


def test_the_memory_keeps_masks_and_bad_clips_are_named(clips, tmp_path, encode):
    rows = clips.splits["train"]
    loader = ImageLoader(rows, transform(), Quarantine(None, total=4), cache="memory")
    first = [loader.load(row).copy() for row in range(4)]
    for file in tmp_path.glob("*.gif"):
        file.write_bytes(b"GIF89a and nothing else")
    assert all((loader.load(row) == first[row]).all() for row in range(4))
    assert loader.masks([1, 3]).tolist() == [[True, True, False, False]] * 2
    quarantine = Quarantine(None, total=4, max_share=1.0)
    (tmp_path / "90.png").write_bytes(b"text")
    webp = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    (tmp_path / "two.gif").write_bytes(encode(webp, "WEBP", save_all=True, append_images=[webp.rotate(90)], duration=9))
    fresh = ImageLoader(rows, transform(), quarantine)
    assert [fresh.load(row) for row in range(4)] == [None] * 4
    reasons = list(quarantine.reasons.values())
    assert "[five.gif]" in reasons[0] and "23 bytes" in reasons[0]
    assert "[two.gif]: expected an animated GIF" in reasons[1]
    # Of several pictures, the one that is bad.
    assert "[90.png]" in reasons[3]


def test_rows_of_pictures(tmp_path, write_jsonl):
    path = write_jsonl([
        {"images": ["a.jpg", "b.jpg"], "caption": "one"},
        {"images": ["b.jpg", "a.jpg"], "caption": "two"},
        {"images": ["a.jpg", "./b.jpg"], "caption": "three"},
        {"image": "a.jpg", "images": ["b.jpg"], "caption": "x"},
        {"images": [], "caption": "x"},
        {"images": ["a.jpg", 3], "caption": "x"},
        {"images": ["a.jpg"] * 5, "caption": "x"},
        {"images": ["a.jpg", "b.jpg"], "caption": "x", "split": "val"},
    ])  # fmt: skip
    source = read_jsonl(path)
    rows = source.splits["train"]
    assert [[image.path[-5:] for image in row.images] for row in rows[:2]] == [["a.jpg", "b.jpg"], ["b.jpg", "a.jpg"]]
    assert rows[0].captions == ("one", "three") and rows[1].captions == ("two",)
    assert [row.reason for row in source.bad_rows] == [
        "expected 'image' or 'images', found both",
        "images: expected a list of one or more file names, found []",
        "images: expected a list of one or more file names, found ['a.jpg', 3]",
        "a.jpg + b.jpg is in split 'train' already (captions.jsonl:1)",
    ]
    data = SimpleNamespace(source="jsonl", path=path, name=None)
    with pytest.raises(
        ConfigError, match=r"several pictures a row.*:1\]: expected one, since data.frames is 1, found 2.*frames=5"
    ):
        open_source(SimpleNamespace(**vars(data), frames=1))
    opened = open_source(SimpleNamespace(**vars(data), frames=4))
    assert len(opened.splits["train"]) == 2
    assert opened.bad_rows[-1] == ("captions.jsonl:7", "has 5 pictures, more than 4 (data.frames)")
    assert len(open_source(data).splits["train"]) == 3


def test_a_check_counts_frames(clips, tmp_path, encode):
    mixed = Example(ImageReference(str(tmp_path / "two.gif")), ("x",), 9, "row 9", (ImageReference(str(tmp_path / "90.png")),))
    report = check_source(Source("clips", {"train": [*clips.splits["train"], mixed]}))
    assert dict(report.splits["train"].frames) == {5: 1, 2: 2, 1: 1}
    assert [row.reason for row in report.bad_rows] == ["2 files with 3 frames: expected still pictures, or one that moves"]
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(report.table())
    assert "frames, or pictures a row" in console.export_text()
    assert report.to_dict()["splits"]["train"]["frames"] == {"1": 1, "2": 2, "5": 1}


def test_a_tfrecord_holds_several_pictures_and_a_tar_does_not(clips, tmp_path):
    write_tfrecord(clips, tmp_path / "records")
    rows = read_tfrecord(tmp_path / "records").splits["train"]
    for one, two in zip(clips.splits["train"], rows, strict=True):
        assert [image.read() for image in one.images] == [image.read() for image in two.images]
    with pytest.raises(DataError, match=r"one picture a row \[captions.jsonl:4\].*found 2; write a TFRecord"):
        write_webdataset(clips, tmp_path / "archives")
