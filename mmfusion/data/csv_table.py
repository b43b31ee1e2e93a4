"""Reads tables of comma- or tab-separated values."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from mmfusion.data.example import ImageReference
from mmfusion.data.source import Source
from mmfusion.data.source_builder import SourceBuilder
from mmfusion.errors import DataError


def read_csv(path: str | Path) -> Source:
    r"""Reads a table with the columns ``image`` and ``caption``, and ``split`` if there is one.

    Several rows of one picture are its several captions. Pictures are relative to the file's folder. Columns are told
    by the header, so their order is free and others are ignored. The separator is a tab if the header has one, a
    semicolon if it has one and no comma, else a comma.

    Args:
        path: The file, or a folder with a ``captions.csv``.

    Returns:
        The source. Rows with too few values or broken text are in its `bad_rows`.

    Raises:
        DataError: If there is no such file, the header lacks a column, or there is no usable row.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "table.csv"
        >>> _ = path.write_text('image,caption\n1.jpg,a dog\n1.jpg,"a brown, old dog"\n')
        >>> read_csv(path).splits["train"][0].captions
        ('a dog', 'a brown, old dog')
    """
    path = Path(path)
    if path.is_dir():
        path = path / "captions.csv"
    builder = SourceBuilder(str(path))
    try:
        # Undecodable bytes become lone surrogates, which the check of each caption finds.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline()
            file.seek(0)
            separator = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
            _add_rows(builder, path, csv.reader(file, delimiter=separator))
    except OSError as error:
        raise DataError(
            "cannot read the data",
            where=path,
            found=error.strerror,
            fix="set data.path to a CSV file, or to a folder with a captions.csv",
        ) from error
    return builder.build()


def _add_rows(builder: SourceBuilder, path: Path, reader: csv._reader) -> None:  # type: ignore[name-defined]
    header = [column.strip().lower() for column in next(reader, [])]
    if "image" not in header or "caption" not in header:
        found = ", ".join(header)[:200]
        raise DataError(
            "the header lacks a column",
            where=path,
            expected="image, caption and, optionally, split",
            found=(found if found.isprintable() else f"no UTF-8 text: {found[:40]!r}") or "an empty file",
        )
    places = {name: header.index(name) for name in ("image", "caption", "split") if name in header}
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            builder.bad(f"{path.name}:{reader.line_num}", f"not a row of CSV: {error}")
            continue
        if not values:
            continue
        name = f"{path.name}:{reader.line_num}"
        if len(values) <= max(places["image"], places["caption"]):
            builder.bad(name, f"expected {len(header)} values, found {len(values)}")
            continue
        image = values[places["image"]].strip()
        if not image or "\0" in image:
            builder.bad(name, f"image: expected a file name, found {image!r}")
            continue
        split = values[places["split"]] if "split" in places and len(values) > places["split"] else "train"
        location = image if "://" in image else str(path.parent / image)
        builder.add(name, os.path.normpath(image), ImageReference(location), values[places["caption"]], split.strip() or "train")
