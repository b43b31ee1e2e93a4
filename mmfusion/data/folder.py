"""Reads a folder of pictures with a text file beside each."""

from __future__ import annotations

import os
from pathlib import Path

from mmfusion.data.example import ImageReference
from mmfusion.data.source import Source
from mmfusion.data.source_builder import SourceBuilder
from mmfusion.data.split_names import split_of
from mmfusion.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""Endings of the pictures that are looked for, in any case."""


def read_folder(path: str | Path) -> Source:
    r"""Reads pictures and the text files beside them: ``cat/1.jpg`` with ``cat/1.txt``, a caption a line.

    Subfolders are searched. A first-level subfolder called ``train``, ``val``, ``validation``, ``dev`` or ``test``
    is that split (``validation`` and ``dev`` are ``val``); all else is ``train``.

    Args:
        path: The folder.

    Returns:
        The source, in the order of the file names. Pictures without a text, texts without a picture, and texts that
        are not UTF-8 are in its `bad_rows`.

    Raises:
        DataError: If there is no such folder, or no usable picture.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> folder.joinpath("1.jpg").touch(); folder.joinpath("2.jpg").touch()
        >>> _ = folder.joinpath("1.txt").write_text("a dog\na brown dog\n")
        >>> source = read_folder(folder)
        >>> source.splits["train"][0].captions, source.bad_rows
        (('a dog', 'a brown dog'), [BadRow(name='2.jpg', reason='no 2.txt beside it')])
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError("no such folder", where=path, fix="set data.path to a folder of pictures")
    builder = SourceBuilder(str(path))
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        stems = {Path(file).stem for file in files if file.lower().endswith(IMAGE_SUFFIXES)}
        for file in sorted(files):
            location = Path(folder) / file
            if file.lower().endswith(IMAGE_SUFFIXES):
                _add_image(builder, path, location)
            elif file.endswith(".txt") and location.stem not in stems:
                builder.bad(str(location.relative_to(path)), "no picture beside it")
    return builder.build()


def _add_image(builder: SourceBuilder, root: Path, image: Path) -> None:
    name = str(image.relative_to(root))
    text = image.with_suffix(".txt")
    try:
        captions = [line for line in text.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        builder.bad(name, f"no {text.name} beside it")
    except UnicodeDecodeError:
        builder.bad(name, f"{text.name} is not UTF-8")
    except OSError as error:
        builder.bad(name, f"cannot read {text.name}: {error.strerror}")
    else:
        parts = image.relative_to(root).parts
        split = split_of(parts[0]) if len(parts) > 1 else None
        builder.add(name, name, ImageReference(str(image)), captions, split or "train")
