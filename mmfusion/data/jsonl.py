"""Reads JSON lines: one picture a line."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mmfusion.data.captions import clean_captions
from mmfusion.data.example import ImageReference
from mmfusion.data.source import Source
from mmfusion.data.source_builder import SourceBuilder
from mmfusion.errors import DataError

FILE_NAME = "captions.jsonl"


def read_jsonl(path: str | Path, *, translation: bool = False) -> Source:
    r"""Reads a file of JSON lines, ``{"image": "images/1.jpg", "captions": ["…", …], "split": "train"}``.

    ``images`` with a list of still pictures may stand for ``image`` (set ``data.frames`` to as many as a line has at most).
    ``caption`` with one string may stand for ``captions``; a line without ``split`` is in ``train``; other keys are
    ignored. Pictures are relative to the file's folder. Lines of the same picture are joined.

    Args:
        path: The file, or a folder with a ``captions.jsonl``.
        translation: Whether each line also has ``source``, the sentence that its captions translate (its first word may say the
            language to translate into). Lines of one picture are joined only where their sources are the same. Default False.

    Returns:
        The source. Lines that are no JSON, lack a key or have a wrong type are in its `bad_rows`.

    Raises:
        DataError: If there is no such file, or no usable line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "captions.jsonl"
        >>> _ = path.write_text('{"image": "1.jpg", "captions": ["a dog", "a brown dog"]}\n{"image": 3}\n')
        >>> source = read_jsonl(path)
        >>> len(source.splits["train"]), source.bad_rows
        (1, [BadRow(name='captions.jsonl:2', reason='image: expected a file name, found 3')])
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    builder = SourceBuilder(str(path))
    try:
        # Bytes, so that one line of broken UTF-8 costs that line only.
        with open(path, "rb") as file:
            for row, line in enumerate(file, start=1):
                if line.strip():
                    _add_line(builder, path, row, line, translation)
    except OSError as error:
        raise DataError(
            "cannot read the data",
            where=path,
            found=error.strerror,
            fix="set data.path to a file of JSON lines, or to a folder with a captions.jsonl",
        ) from error
    return builder.build()


def _add_line(builder: SourceBuilder, path: Path, row: int, line: bytes, translation: bool) -> None:
    name = f"{path.name}:{row}"
    try:
        values = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        builder.bad(name, f"not a line of JSON: {error}")
        return
    if not isinstance(values, dict):
        builder.bad(name, f"expected a JSON object, found {type(values).__name__}")
        return
    images = _images_of(values)
    if isinstance(images, str):
        builder.bad(name, images)
        return
    if "captions" not in values and "caption" not in values:
        builder.bad(name, f"no key 'captions', found {', '.join(map(repr, values))}")
        return
    source_text = None
    if translation:
        sources, reasons = clean_captions([values.get("source")])
        if not sources:
            builder.bad(name, f"source: expected the sentence to translate; {reasons[0].replace('caption 1', 'it')}")
            return
        source_text = sources[0]
    captions = values["captions"] if "captions" in values else values["caption"]
    references = [ImageReference(image if "://" in image else str(path.parent / image)) for image in images]
    key = "\0".join(map(os.path.normpath, images))
    builder.add(name, key, references, captions, values.get("split", "train"), source_text)


def _images_of(values: dict[str, object]) -> list[str] | str:
    """The file names of a row, or what is wrong with them."""
    if "image" in values and "images" in values:
        return "expected 'image' or 'images', found both"
    if "images" not in values:
        if "image" not in values:
            return f"no key 'image', found {', '.join(map(repr, values)) or 'none'}"
        image = values["image"]
        return [str(image)] if _is_name(image) else f"image: expected a file name, found {image!r}"[:200]
    images = values["images"]
    if not isinstance(images, list) or not images or not all(map(_is_name, images)):
        return f"images: expected a list of one or more file names, found {images!r}"[:200]
    return images


def _is_name(image: object) -> bool:
    return isinstance(image, str) and bool(image) and "\0" not in image
