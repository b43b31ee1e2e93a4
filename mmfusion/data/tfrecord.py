"""Reads and writes TFRecord files of `tf.train.Example`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from mmfusion.data.example import ImageReference
from mmfusion.data.file_patterns import matching_files
from mmfusion.data.source import Source
from mmfusion.data.source_builder import SourceBuilder
from mmfusion.data.split_names import split_of_file
from mmfusion.errors import DataError

IMAGE_KEYS = ("image", "image/encoded", "image_bytes", "jpg", "png")
CAPTION_KEYS = ("captions", "caption", "image/caption", "captions/text", "text")
_HEADER, _FOOTER = 12, 4  # length and its checksum before the data of a record, the checksum of the data after it


class Record(NamedTuple):
    """A record of a TFRecord file.

    Attributes:
        number: From 0.
        offset: Where its data begins in the file.
        data: Its data.
    """

    number: int
    offset: int
    data: bytes


def read_tfrecord(
    path: str | Path, *, image_keys: Sequence[str] = IMAGE_KEYS, caption_keys: Sequence[str] = CAPTION_KEYS
) -> Source:
    """Reads TFRecord files whose records are `tf.train.Example` with an encoded picture, or several, and captions.

    The files are read once for an index; pictures are then read at random from where they lie. The split is what a
    file's name says (``train-00000-of-00004.tfrecord``; ``validation`` and ``dev`` are ``val``), or a feature
    ``split``; else ``train``.

    Args:
        path: A file, a folder with ``*.tfrecord*`` files, or a pattern.
        image_keys: Features that may hold the picture; the first that a record has counts. Default `IMAGE_KEYS`.
        caption_keys: Features that may hold the captions. Default `CAPTION_KEYS`.

    Returns:
        The source. Records without these features, and damaged records, are in its `bad_rows`; what follows a damaged
        record in its file cannot be read.

    Raises:
        DataError: If there are no such files, one is compressed, or there is no usable record.

    Example:
        >>> import pathlib, tempfile
        >>> from mmfusion.data import Example, ImageReference, Source, read_tfrecord, write_tfrecord
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = folder.joinpath("1.jpg").write_bytes(b"picture")
        >>> rows = [Example(ImageReference(str(folder / "1.jpg")), ("a dog",), 0, "row 1")]
        >>> _ = write_tfrecord(Source("dogs", {"val": rows}), folder / "records")
        >>> example = read_tfrecord(folder / "records").splits["val"][0]
        >>> example.captions, example.image.read()
        (('a dog',), b'picture')
    """
    builder = SourceBuilder(str(path))
    for file in matching_files(path, _suffixes(path)):
        add_records(builder, file, split_of_file(file.name), image_keys, caption_keys)
    return builder.build()


def write_tfrecord(source: Source, folder: str | Path, *, shard_size: int = 2000) -> list[Path]:
    """Writes a source as TFRecord files, pictures as they are and captions as a list of strings.

    Args:
        source: The source.
        folder: Where ``train-00000-of-00004.tfrecord`` and so on go.
        shard_size: Pictures a file. Default 2000.

    Returns:
        The files.

    Raises:
        DataError: If a picture cannot be read.

    Example: see `read_tfrecord`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for split, examples in source.splits.items():
        shards = -(-len(examples) // shard_size)
        for shard in range(shards):
            file = folder / f"{split}-{shard:05d}-of-{shards:05d}.tfrecord"
            with tf.io.TFRecordWriter(str(file)) as writer:
                for example in examples[shard * shard_size : (shard + 1) * shard_size]:
                    features = {
                        "image": [image.read() for image in example.images],
                        "captions": [caption.encode("utf-8") for caption in example.captions],
                        "split": [split.encode("utf-8")],
                        "name": [example.name.encode("utf-8")],
                    }
                    writer.write(_to_proto(features).SerializeToString())
            files.append(file)
    return files


def add_records(
    builder: SourceBuilder,
    file: Path,
    split: str | None,
    image_keys: Sequence[str] = IMAGE_KEYS,
    caption_keys: Sequence[str] = CAPTION_KEYS,
) -> None:
    """Adds the records of one file to a builder.

    Args:
        builder: Collects the rows.
        file: The file.
        split: The split of its records; None takes their own feature ``split``, or ``train``.
        image_keys: Features that may hold the picture.
        caption_keys: Features that may hold the captions.

    Raises:
        DataError: If the file is compressed or cannot be opened.
    """
    for record in _records(builder, file):
        name = f"{file.name}:{record.number}"
        try:
            features = tf.train.Example.FromString(record.data).features.feature
        except Exception as error:  # The protobuf implementations differ in what they raise.
            builder.bad(name, f"not a tf.train.Example: {error}"[:200])
            continue
        image = next((features[key].bytes_list.value for key in image_keys if key in features), None)
        captions = next((features[key].bytes_list.value for key in caption_keys if key in features), None)
        if not image or captions is None:
            builder.bad(
                name,
                f"expected one of {', '.join(image_keys)} and one of {', '.join(caption_keys)} as bytes, "
                f"found {', '.join(sorted(features)) or 'no features'}"[:300],
            )
            continue
        # Wherever these bytes occur first in the record, they are the picture.
        references = [ImageReference(str(file), record.offset + record.data.find(content), len(content)) for content in image]
        texts = [caption.decode("utf-8", "surrogateescape") for caption in captions]
        own = features["split"].bytes_list.value if "split" in features else []
        own_split = own[0].decode("utf-8", "replace") if own else "train"
        builder.add(name, name, references, texts, split or own_split)


def _records(builder: SourceBuilder, file: Path) -> Iterator[Record]:
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise DataError("cannot read the data", where=file, found=error.strerror) from error
    if start == b"\x1f\x8b":
        raise DataError("a compressed TFRecord has no random access", where=file, fix="decompress it with gunzip")
    offset = 0
    number = 0
    records = iter(tf.data.TFRecordDataset(str(file)))
    while True:
        try:
            data = next(records).numpy()
        except StopIteration:
            if offset != size:
                # TensorFlow takes a file that ends inside the first bytes of a record for a whole one.
                builder.bad(f"{file.name}:{number}", f"truncated: {size - offset} bytes at the end are no record")
            return
        except tf.errors.OpError as error:
            reason = re.sub(r"\{\{.*?\}\} |\[Op:.*?\]|name: *$", "", error.message).strip()
            builder.bad(f"{file.name}:{number}", f"damaged or truncated, the rest is not read: {reason}"[:200])
            return
        yield Record(number, offset + _HEADER, data)
        offset += _HEADER + len(data) + _FOOTER
        number += 1


def _suffixes(path: str | Path) -> tuple[str, ...]:
    shards = {file.name.rpartition(".tfrecord")[2] for file in Path(path).iterdir()} if Path(path).is_dir() else set()
    return tuple(f".tfrecord{rest}" for rest in sorted(shards)) or (".tfrecord",)


def _to_proto(features: dict[str, list[bytes]]) -> tf.train.Example:
    feature = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=value)) for key, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature))
