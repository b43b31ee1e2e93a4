"""From the data part of a recipe to a source."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mmfusion.data.example import BadRow
from mmfusion.data.source import Source
from mmfusion.data.split_names import split_named
from mmfusion.errors import ConfigError

if TYPE_CHECKING:
    from mmfusion.config import DataConfig

SOURCES = ("builtin", "jsonl", "csv", "folder", "tfds", "tfrecord", "webdataset")
"""Names of the kinds of sources."""


def open_source(data: DataConfig) -> Source:
    """Opens the data set that a recipe names.

    Args:
        data: The `data` part of a recipe. `source` is one of `SOURCES`; `path` is the file, folder or pattern (for
            ``tfds`` the data directory); `name` is the data set's name for ``tfds``; `languages` are those of
            ``builtin``; `limit` keeps the first so many training pictures; `validation_share` is divided from the
            training split where the data has no validation split; rows of more pictures than `frames` are bad rows. Where
            the data calls a split ``validation``, ``valid`` or ``dev`` and the recipe ``val``, or the other way round, the
            recipe's name is used.

    Returns:
        The source.

    Raises:
        ConfigError: If the kind is unknown, lacks its path or name, or its rows have several pictures and `frames` is 1.
        DataError: If the data cannot be read.

    Example:
        >>> from types import SimpleNamespace
        >>> from mmfusion.data import open_source
        >>> open_source(SimpleNamespace(source="jsonl", path="nowhere", name=None))
        Traceback (most recent call last):
        ...
        mmfusion.errors.DataError: cannot read the data [nowhere]: found No such file or directory; set data.path to a \
file of JSON lines, or to a folder with a captions.jsonl
    """
    source = _that_fit(_open(data), getattr(data, "frames", None))
    train, validation = getattr(data, "train_split", "train"), getattr(data, "validation_split", "val")
    source = _renamed(_renamed(source, train), validation)
    share = getattr(data, "validation_share", None)
    if share and train in source.splits and validation not in source.splits:
        source = source.with_validation_share(share, 0, split=train, validation=validation)
    limit = getattr(data, "limit", None)
    if limit is not None and train in source.splits:
        source = source.limited(train, limit)
    return source


def _that_fit(source: Source, frames: int | None) -> Source:
    """The source with rows that have more pictures than there is room for among its bad ones."""
    many = [
        (split, row) for split, rows in source.splits.items() for row in rows if len(row.images) > (frames or len(row.images))
    ]
    if not many:
        return source
    if frames == 1:
        most = max(len(row.images) for _, row in many)
        raise ConfigError(
            "the data has several pictures a row",
            where=f"{source.name}, first {many[0][1].name}",
            expected="one, since data.frames is 1",
            found=len(many[0][1].images),
            fix=f"set data.frames={most} (as many as a row has at most) and model.image_encoder.kind=multi",
        )
    bad = [BadRow(row.name, f"has {len(row.images)} pictures, more than {frames} (data.frames)") for _, row in many]
    splits = {split: [row for row in rows if len(row.images) <= (frames or 1)] for split, rows in source.splits.items()}
    return replace(source, splits=splits, bad_rows=[*source.bad_rows, *bad])


def _renamed(source: Source, wanted: str) -> Source:
    """The source with the split that means the same as a wanted one under the wanted name."""
    same = [split for split in source.splits if split_named(split) and split_named(split) == split_named(wanted)]
    if wanted in source.splits or len(same) != 1:
        return source
    return replace(source, splits={wanted if name == same[0] else name: rows for name, rows in source.splits.items()})


def _open(data: DataConfig) -> Source:
    if data.source == "builtin":
        from mmfusion.data.builtin import read_builtin

        return read_builtin(data.languages, getattr(data, "source_language", None))
    if data.source == "tfds":
        from mmfusion.data.tfds_builder import read_tfds

        if not data.name:
            raise ConfigError("a TFDS source needs a name", where="data.name", expected="a name such as coco_captions")
        return read_tfds(data.name, data_dir=data.path)
    if data.source not in SOURCES:
        raise ConfigError("unknown source", where="data.source", expected=" or ".join(SOURCES), found=repr(data.source))
    if not data.path:
        raise ConfigError(f"a source of kind {data.source} needs a path", where="data.path", found="none")
    if data.source == "jsonl":
        from mmfusion.data.jsonl import read_jsonl

        return read_jsonl(data.path, translation=getattr(data, "source_language", None) is not None)
    if data.source == "csv":
        from mmfusion.data.csv_table import read_csv

        return read_csv(data.path)
    if data.source == "folder":
        from mmfusion.data.folder import read_folder

        return read_folder(data.path)
    if data.source == "tfrecord":
        from mmfusion.data.tfrecord import read_tfrecord

        return read_tfrecord(data.path)
    from mmfusion.data.webdataset import read_webdataset

    return read_webdataset(data.path)
