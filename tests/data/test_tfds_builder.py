"""Data sets of TensorFlow Datasets: our own builders, and other people's."""

from __future__ import annotations

import json

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from mmfusion.config import recipe_from_dict  # noqa: E402
from mmfusion.data import open_source, read_builtin, read_tfds  # noqa: E402
from mmfusion.errors import DataError  # noqa: E402


@pytest.fixture
def photos(tmp_path, encode, gradient):
    """A folder with five JPEGs, as the makers of Flickr8k pack them, and their bytes."""

    def make(name):
        folder = tmp_path / "manual" / name / "Images"
        folder.mkdir(parents=True)
        contents = {}
        for number in range(5):
            contents[f"{number}.jpg"] = encode(np.roll(gradient, 7 * number, 0), "JPEG")
            (folder / f"{number}.jpg").write_bytes(contents[f"{number}.jpg"])
        return folder.parent, contents

    return make


def captions_of(number):
    return tuple(f"Photo {number} , caption {k} ." for k in range(5))


def write_tokens(path, count=5):
    path.write_text("".join(f"{n}.jpg#{k}\t{text}\n" for n in range(count) for k, text in enumerate(captions_of(n))))


def test_flickr8k_from_the_official_files(photos, tmp_path):
    folder, contents = photos("flickr8k")
    write_tokens(folder / "Flickr8k.token.txt")
    for split, names in {"train": "0.jpg\n1.jpg\n2.jpg\n", "dev": "3.jpg\n", "test": "4.jpg\n"}.items():
        (folder / f"Flickr_8k.{split}Images.txt").write_text(names)
    source = read_tfds("flickr8k", data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 3, "val": 1, "test": 1}
    (row,) = source.splits["val"]
    assert row.captions == captions_of(3)
    assert row.image.read() == contents["3.jpg"], "photos are stored as they are, not coded again"
    assert not source.bad_rows


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k"])
def test_karpathys_splits(name, photos, tmp_path):
    folder, _ = photos(name)
    images = [
        {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": text} for text in captions_of(n)]}
        for n, split in enumerate(["train", "restval", "val", "test", "train"])
    ]
    (folder / f"dataset_{name}.json").write_text(json.dumps({"images": images}))
    source = read_tfds(name, data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert source.splits["test"][0].captions == captions_of(3)


def test_flickr30k_without_splits_and_a_second_reading(photos, tmp_path):
    folder, _ = photos("flickr30k")
    write_tokens(folder / "results_20130124.token")
    source = read_tfds("flickr30k", data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 5}
    again = read_tfds("flickr30k", data_dir=tmp_path / "data")
    assert again.splits == source.splits


def test_a_missing_manual_folder_says_what_to_put_there(tmp_path):
    with pytest.raises(DataError, match=r"cannot prepare the data set \[flickr8k\].*Flickr8k"):
        read_tfds("flickr8k", data_dir=tmp_path)


class PhotoCaptions(tfds.core.GeneratorBasedBuilder):
    """With the features of TFDS's ``coco_captions``."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = {}

    def _info(self):
        text = np.str_
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "captions": tfds.features.Sequence({"id": np.int64, "text": text}),
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "objects": tfds.features.Sequence({"label": tfds.features.ClassLabel(num_classes=3)}),
                }
            )
        )

    def _split_generators(self, manager):
        return {
            "train": self._generate_examples(0, 3),
            "restval": self._generate_examples(3, 4),
            "val": self._generate_examples(4, 6),
        }

    def _generate_examples(self, first, last):
        for number in range(first, last):
            yield (
                number,
                {
                    "captions": [{"id": k, "text": text} for k, text in enumerate(captions_of(number))],
                    "image": np.full((9, 12, 3), 20 * number, np.uint8),
                    "image/filename": f"{number}.jpg",
                    "objects": [],
                },
            )


class PlainPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures with labels and no captions."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = {}

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image": np.zeros((4, 4, 3), np.uint8), "label": 0}


def test_a_builder_with_the_features_of_coco_captions(tmp_path):
    source = read_tfds("photo_captions", data_dir=tmp_path)
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 3, "restval": 1, "val": 2}
    assert sorted(row.captions for row in source.splits["val"]) == [captions_of(4), captions_of(5)]
    assert {row.image.read()[:2] for row in source.splits["val"]} == {b"\xff\xd8"}


def test_a_recipe_opens_it_and_its_validation_split_by_either_name(tmp_path):
    for name in ("val", "validation"):
        options = {"source": "tfds", "name": "photo_captions", "path": str(tmp_path), "validation_split": name, "limit": 2}
        source = open_source(recipe_from_dict({"data": options}).data)
        assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 2, "restval": 1, name: 2}
        assert sorted(row.captions for row in source.splits[name]) == [captions_of(4), captions_of(5)]


def test_a_prepared_data_set_that_lost_a_file_says_which(tmp_path):
    read_tfds("photo_captions", data_dir=tmp_path)
    (file,) = tmp_path.rglob("photo_captions-val.tfrecord*")
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read the data .*photo_captions-val.*No such file"):
        read_tfds("photo_captions", data_dir=tmp_path)


def test_coco_captions_is_known_by_name_and_has_what_is_needed():
    from mmfusion.data.tfds_builder import _keys

    features = tfds.builder("coco_captions").info.features
    images, captions = _keys(features)
    assert images == ["image"] and captions == ["captions/text"]


def test_what_has_no_captions_or_no_name_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"without pictures and captions \[plain_pictures\].*found image, label"):
        read_tfds("plain_pictures", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"no such data set \[coco_captons\]"):
        read_tfds("coco_captons", data_dir=tmp_path)


@pytest.mark.slow
def test_the_built_in_set_is_the_same_through_tfds(tmp_path):
    source, direct = read_tfds("emoji_captions/de", data_dir=tmp_path), read_builtin(["de"])
    assert {split: len(rows) for split, rows in source.splits.items()} == {
        split: len(rows) for split, rows in direct.splits.items()
    }
    for split, rows in direct.splits.items():
        assert sorted(row.captions for row in source.splits[split]) == sorted(row.captions for row in rows)
