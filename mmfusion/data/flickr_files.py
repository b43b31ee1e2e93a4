"""Understands the files of Flickr8k and Flickr30k as their makers and Karpathy gave them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from mmfusion.errors import DataError

_ANNOTATIONS = {
    "flickr8k": ("dataset_flickr8k.json", "Flickr8k.token.txt"),
    "flickr30k": ("dataset_flickr30k.json", "results_20130124.token"),
}
_SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
_KARPATHY = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


class FlickrRow(NamedTuple):
    """A picture of Flickr8k or Flickr30k.

    Attributes:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        image: The picture's file.
        captions: Its captions.
    """

    split: str
    image: Path
    captions: tuple[str, ...]


def read_flickr_files(folder: str | Path, name: str) -> list[FlickrRow]:
    r"""Reads a folder with pictures and annotations, wherever in it they are.

    Annotations are Karpathy's ``dataset_flickr8k.json`` or ``dataset_flickr30k.json`` (with his splits), or
    ``Flickr8k.token.txt`` or ``results_20130124.token``, with the splits of ``Flickr_8k.trainImages.txt`` and its
    siblings, or everything in ``train`` where these are missing. Annotated pictures that are not there are left out:
    ``Flickr8k.token.txt`` itself names one.

    Args:
        folder: The folder.
        name: ``"flickr8k"`` or ``"flickr30k"``.

    Returns:
        The rows, by file name.

    Raises:
        DataError: If the folder has no annotations or no pictures, or they cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> folder.joinpath("1.jpg").touch()
        >>> _ = folder.joinpath("Flickr8k.token.txt").write_text("1.jpg#0\tA dog .\n1.jpg#1\tA pet .\n")
        >>> read_flickr_files(folder, "flickr8k")[0].captions
        ('A dog .', 'A pet .')
    """
    folder = Path(folder)
    files = sorted(folder.rglob("*")) if folder.is_dir() else []
    images = {file.name: file for file in files if file.suffix.lower() in (".jpg", ".jpeg")}
    by_name = {file.name: file for file in files}
    annotations = next((by_name[file] for file in _ANNOTATIONS[name] if file in by_name), None)
    if not images or annotations is None:
        raise DataError(
            f"not a folder of {name}",
            where=folder,
            expected=f"*.jpg and {' or '.join(_ANNOTATIONS[name])}",
            found=f"{len(images)} pictures and no annotations" if images else "no pictures",
        )
    try:
        if annotations.suffix == ".json":
            rows = _from_json(annotations, images)
        else:
            rows = _from_tokens(annotations, by_name, images)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("cannot read the annotations", where=annotations, found=repr(error)[:200]) from error
    if not rows:
        raise DataError("none of the annotated pictures is there", where=folder, found=f"{len(images)} other pictures")
    return sorted(rows, key=lambda row: row.image.name)


def _from_json(file: Path, images: dict[str, Path]) -> list[FlickrRow]:
    entries = json.loads(file.read_text(encoding="utf-8"))["images"]
    return [
        FlickrRow(
            _KARPATHY[entry["split"]],
            images[entry["filename"]],
            tuple(sentence["raw"].strip() for sentence in entry["sentences"]),
        )
        for entry in entries
        if entry["filename"] in images
    ]


def _from_tokens(file: Path, files: dict[str, Path], images: dict[str, Path]) -> list[FlickrRow]:
    captions: dict[str, list[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        key, separator, caption = line.partition("\t")
        if separator and caption.strip():
            captions.setdefault(key.rpartition("#")[0], []).append(caption.strip())
    split_of_image = {
        name.strip(): split
        for split, split_file in _SPLIT_FILES.items()
        if split_file in files
        for name in files[split_file].read_text(encoding="utf-8").splitlines()
    }
    # With the official lists, pictures that are in none of them belong to no split.
    wanted = split_of_image or dict.fromkeys(captions, "train")
    return [
        FlickrRow(wanted[name], images[name], tuple(texts))
        for name, texts in captions.items()
        if name in images and name in wanted
    ]
