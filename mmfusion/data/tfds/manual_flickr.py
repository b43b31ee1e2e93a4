"""What the builders of Flickr8k and Flickr30k share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mmfusion.data.flickr_files import FlickrRow, read_flickr_files


def flickr_features() -> tfds.features.FeaturesDict:
    """Features of a photo with captions."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "name": tfds.features.Text(),
        }
    )


def rows_by_split(manual_dir: Any, name: str) -> dict[str, list[FlickrRow]]:
    """The rows of the manual folder, or of its subfolder of that name, by split."""
    folder = Path(str(manual_dir))
    rows = read_flickr_files(folder / name if (folder / name).is_dir() else folder, name)
    splits: dict[str, list[FlickrRow]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    return splits


def flickr_examples(rows: list[FlickrRow]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys and examples."""
    for row in rows:
        # A path, not pixels: the file's bytes are stored as they are.
        yield row.image.name, {"image": str(row.image), "captions": list(row.captions), "name": row.image.name}
