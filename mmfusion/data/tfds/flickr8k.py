"""Flickr8k for TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from mmfusion.data.flickr_files import FlickrRow
from mmfusion.data.tfds.manual_flickr import flickr_examples, flickr_features, rows_by_split


class Flickr8k(tfds.core.GeneratorBasedBuilder):
    """8,000 photos with five captions each, from files that were downloaded by hand.

    Features: ``image``, ``captions`` (strings) and ``name`` (the picture's file name). Splits: ``train``,
    ``validation`` and ``test``, Karpathy's where his JSON file is there, else the official lists.

    Source: Hodosh, Young and Hockenmaier, "Framing image description as a ranking task", 2013.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    # Nothing is downloaded, so there are no checksums to look for. (TFDS 4.9.10 looks for them with the package
    # importlib_resources, which it does not require.)
    url_infos: ClassVar[dict[str, Any]] = {}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put the pictures (Flickr8k_Dataset.zip, unpacked) and either dataset_flickr8k.json (Karpathy's splits) or
    Flickr8k_text.zip, unpacked, into the folder flickr8k. The photos are for research only.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="8,000 photos with five captions each.",
            features=flickr_features(),
            homepage="https://hockenmaier.cs.illinois.edu/8k-pictures.html",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits = rows_by_split(dl_manager.manual_dir, "flickr8k")
        return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows: list[FlickrRow]) -> Iterator[tuple[str, dict[str, Any]]]:
        return flickr_examples(rows)
