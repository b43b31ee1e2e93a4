"""Reads and writes tar files in the WebDataset layout: ``000017.jpg`` next to ``000017.txt`` or ``000017.json``."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from mmfusion.data.example import ImageReference
from mmfusion.data.file_patterns import matching_files
from mmfusion.data.folder import IMAGE_SUFFIXES
from mmfusion.data.source import Source
from mmfusion.data.source_builder import SourceBuilder
from mmfusion.data.split_names import split_of_file
from mmfusion.errors import DataError

_FORMATS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp"}
_COMPRESSED = (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


def read_webdataset(path: str | Path) -> Source:
    """Reads tar files whose members share a key up to the first dot: a picture and its captions.

    Captions are ``captions``, ``caption`` or ``text`` of ``.json`` (with ``split``, if it has it), else the lines of
    ``.txt``. Of several pictures of a key, that with the shortest ending counts: ``1.jpg``, not ``1.seg.png``. The
    archives are read once for an index; pictures are then read at random from inside them. The split is what a file's
    name says (``cc3m-train-0003.tar``; ``validation`` and ``dev`` are ``val``); else ``train``.

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
        DataError: If a picture cannot be read, or a row has several (a TFRecord can hold them).

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
                    if example.more_images:
                        raise DataError(
                            "a tar file has one picture a row",
                            where=example.name,
                            found=len(example.images),
                            fix="write a TFRecord",
                        )
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
    texts: dict[str, dict[str, tuple[str, bytes]]] = {}
    try:
        size = file.stat().st_size
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
                    key, suffix = f"{folder}/{key}" if folder else key, suffix.lower()
                    if f".{suffix}".endswith(IMAGE_SUFFIXES):
                        known = images.get(key)
                        if known is None or suffix.count(".") < known[0].rpartition("/")[2].count(".") - 1:
                            images[key] = (member.name, ImageReference(str(file), member.offset_data, member.size))
                    elif suffix in ("txt", "json"):
                        content = archive.extractfile(member)
                        texts.setdefault(key, {})[suffix] = (member.name, content.read() if content else b"")
                fault = _fault_at_the_end(file, archive.offset)
                if fault:
                    builder.bad(f"{file.name}:{archive.offset}", fault)
            except (tarfile.TarError, OSError, EOFError) as error:
                builder.bad(f"{file.name}:{archive.offset}", f"the archive breaks off, the rest is not read: {error}")
    except OSError as error:
        raise DataError("cannot read the data", where=file, found=error.strerror or error) from error
    except (tarfile.TarError, EOFError) as error:
        with open(file, "rb") as stream:
            compressed = stream.read(4).startswith(_COMPRESSED)
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
            for name, _ in texts[key].values():
                builder.bad(f"{file.name}:{name}", "no picture with this key in the archive")
        else:
            _add_pair(builder, file, images[key], texts[key])


def _fault_at_the_end(file: Path, offset: int) -> str | None:
    """What is wrong where the archive ended: `tarfile` takes any unreadable header for the end."""
    with open(file, "rb") as stream:
        stream.seek(offset)
        block = stream.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            return "the archive breaks off: its end is missing"
        if any(block):
            return "the archive is damaged here, the rest is not read"
        while block:
            block = stream.read(1 << 20)
            if any(block):
                return "more data follows the end of the archive and is not read; write it as an archive of its own"
    return None


def _add_pair(builder: SourceBuilder, file: Path, image: tuple[str, ImageReference], texts: dict[str, tuple[str, bytes]]) -> None:
    name = f"{file.name}:{image[0]}"
    split = split_of_file(file.name)
    captions: object = None
    fault = ""
    if "json" in texts:
        member, content = texts["json"]
        try:
            values = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            fault = f"{member} cannot be read: {error}"
        else:
            if isinstance(values, dict):
                captions = next((values[key] for key in ("captions", "caption", "text") if values.get(key) is not None), None)
                split = split or values.get("split")
                fault = f"{member} has none of the keys captions, caption and text"
            else:
                fault = f"{member}: expected a JSON object, found {type(values).__name__}"
    if captions is None and "txt" in texts:
        member, content = texts["txt"]
        try:
            captions = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError:
            fault = f"{member} is not UTF-8"
    if captions is None:
        builder.bad(name, fault[:200])
    else:
        builder.add(name, name, image[1], captions, split or "train")
