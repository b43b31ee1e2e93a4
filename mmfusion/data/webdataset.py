"""Reads and writes tar files in the WebDataset layout: ``000017.jpg`` next to ``000017.txt`` or ``000017.json``."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

from mmfusion.data.example import ImageReference
from mmfusion.data.file_patterns import matching_files
from mmfusion.data.folder import IMAGE_SUFFIXES
from mmfusion.data.source import Source
from mmfusion.data.source_builder import SourceBuilder
from mmfusion.data.split_names import split_of
from mmfusion.errors import DataError

_FORMATS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp"}


def read_webdataset(path: str | Path) -> Source:
    """Reads tar files whose members share a key up to the first dot: a picture and its captions.

    Captions are the lines of ``.txt``, or ``captions``, ``caption`` or ``text`` of ``.json`` (with ``split``, if it has
    it). The archives are read once for an index; pictures are then read at random from inside them. The split is what
    a file's name begins with (``train-0003.tar``; ``validation`` and ``dev`` are ``val``); else ``train``.

    Args:
        path: A tar file, a folder with ``*.tar`` files, a pattern, or a range ``train-{0000..0011}.tar``.

    Returns:
        The source. Members without a partner, bad captions, and the place where an archive breaks off are in its
        `bad_rows`.

    Raises:
        DataError: If there are no such files, one is compressed or no tar, or there is no usable picture.

    Example:
        >>> import pathlib, tempfile
        >>> from mmfusion.data import Example, ImageReference, Source, read_webdataset, write_webdataset
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = folder.joinpath("1.jpg").write_bytes(b"picture")
        >>> rows = [Example(ImageReference(str(folder / "1.jpg")), ("a dog",), 0, "row 1")]
        >>> _ = write_webdataset(Source("dogs", {"val": rows}), folder / "tars")
        >>> example = read_webdataset(folder / "tars").splits["val"][0]
        >>> example.captions, example.image.read()
        (('a dog',), b'picture')
    """
    builder = SourceBuilder(str(path))
    for file in matching_files(path, (".tar",)):
        _add_archive(builder, file)
    return builder.build()


def write_webdataset(source: Source, folder: str | Path, *, shard_size: int = 2000) -> list[Path]:
    """Writes a source as tar files, pictures as they are and captions as JSON.

    Args:
        source: The source.
        folder: Where ``train-00000.tar`` and so on go.
        shard_size: Pictures an archive. Default 2000.

    Returns:
        The files.

    Raises:
        DataError: If a picture cannot be read.

    Example: see `read_webdataset`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for split, examples in source.splits.items():
        for shard, start in enumerate(range(0, len(examples), shard_size)):
            file = folder / f"{split}-{shard:05d}.tar"
            with tarfile.open(file, "w") as archive:
                for number, example in enumerate(examples[start : start + shard_size], start=start):
                    content = example.image.read()
                    suffix = _FORMATS.get(content[:2], "jpg")
                    row = {"captions": example.captions, "split": split, "name": example.name}
                    _write_member(archive, f"{number:08d}.{suffix}", content)
                    _write_member(archive, f"{number:08d}.json", json.dumps(row, ensure_ascii=False).encode("utf-8"))
            files.append(file)
    return files


def _write_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _add_archive(builder: SourceBuilder, file: Path) -> None:
    images: dict[str, tuple[str, ImageReference]] = {}
    texts: dict[str, tuple[str, bytes]] = {}
    size = os.path.getsize(file)
    try:
        # Uncompressed only: nothing inside a compressed archive has an address.
        with tarfile.open(file, "r:") as archive:
            try:
                for member in archive:
                    if not member.isfile():
                        continue
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    folder, _, base = member.name.rpartition("/")
                    key, _, suffix = base.partition(".")
                    key = f"{folder}/{key}" if folder else key
                    if f".{suffix.lower()}".endswith(IMAGE_SUFFIXES):
                        images[key] = (member.name, ImageReference(str(file), member.offset_data, member.size))
                    elif suffix.lower() in ("txt", "json"):
                        content = archive.extractfile(member)
                        texts[key] = (member.name, content.read() if content else b"")
            except (tarfile.TarError, OSError, EOFError) as error:
                builder.bad(f"{file.name}:{archive.offset}", f"the archive breaks off, the rest is not read: {error}")
    except (tarfile.TarError, EOFError, OSError) as error:
        compressed = file.read_bytes()[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7") if file.is_file() else False
        raise DataError(
            "a compressed archive has no random access" if compressed else "not a tar archive",
            where=file,
            found=None if compressed else str(error),
            fix="decompress it" if compressed else None,
        ) from error
    for key in {**images, **texts}:
        if key not in texts:
            builder.bad(f"{file.name}:{images[key][0]}", f"no {key}.txt or {key}.json in the archive")
        elif key not in images:
            builder.bad(f"{file.name}:{texts[key][0]}", "no picture with this key in the archive")
        else:
            _add_pair(builder, file, images[key], texts[key])


def _add_pair(builder: SourceBuilder, file: Path, image: tuple[str, ImageReference], text: tuple[str, bytes]) -> None:
    name = f"{file.name}:{image[0]}"
    split = split_of(file.name)
    captions: object
    try:
        content = text[1].decode("utf-8-sig")
        if text[0].endswith(".txt"):
            captions = [line for line in content.splitlines() if line.strip()]
        else:
            values = json.loads(content)
            captions = next((values[key] for key in ("captions", "caption", "text") if key in values), None)
            split = split or values.get("split")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        builder.bad(name, f"{text[0]} cannot be read: {error}"[:200])
        return
    if captions is None:
        builder.bad(name, f"{text[0]} has none of the keys captions, caption and text")
        return
    builder.add(name, name, image[1], captions, split or "train")
