"""Reads data sets of TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfusion.data.source import Source
from mmfusion.data.source_builder import SourceBuilder
from mmfusion.data.split_names import split_named
from mmfusion.errors import DataError

_OURS = ("flickr8k", "flickr30k", "emoji_captions")


def read_tfds(
    name: str,
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
) -> Source:
    """Reads a data set of TensorFlow Datasets with pictures and captions, and prepares it if that was not done.

    Its TFRecord files are read once for an index; pictures are then read at random from where they lie. Split
    ``validation`` is called ``val``, as everywhere here.

    Args:
        name: Name, and config and version if wanted: ``"coco_captions"``, ``"emoji_captions/de"``. This package adds
            ``flickr8k`` and ``flickr30k`` (from files downloaded by hand) and ``emoji_captions`` (from installed
            packages).
        data_dir: Where prepared data sets are. Default that of TFDS, ``~/tensorflow_datasets``.
        manual_dir: Where files downloaded by hand are. Default ``downloads/manual`` in `data_dir`.
        image_key: Feature of the picture. Default the first `Image` feature.
        caption_key: Feature of the captions. Default the first text feature whose name has "caption", else "text".

    Returns:
        The source.

    Raises:
        DataError: If there is no such data set, it cannot be prepared, or it has no pictures with captions.

    Example:
        >>> source = read_tfds("emoji_captions/de", data_dir="data")  # doctest: +SKIP
        >>> source.splits["val"][0].captions  # doctest: +SKIP
        ('baby helle hautfarbe',)
    """
    builder = _prepared(name, data_dir, manual_dir)
    if builder.info.file_format is not None and builder.info.file_format.value != "tfrecord":
        raise DataError(
            "only data sets stored as TFRecord are random access",
            where=name,
            found=builder.info.file_format.value,
            fix='prepare it with file_format="tfrecord"',
        )
    images, captions = _keys(builder.info.features)
    image_keys = [image_key] if image_key else images
    caption_keys = [caption_key] if caption_key else captions
    if not image_keys or not caption_keys:
        raise DataError(
            "a data set without pictures and captions",
            where=name,
            expected="an Image feature and a Text feature called caption or text",
            found=", ".join(builder.info.features),
        )
    from mmfusion.data.tfrecord import add_records

    rows = SourceBuilder(f"tfds:{name}")
    for split, info in builder.info.splits.items():
        for file in info.filepaths:
            add_records(rows, Path(str(file)), split_named(split) or split, image_keys, caption_keys)
    return rows.build()


def _prepared(name: str, data_dir: str | Path | None, manual_dir: str | Path | None) -> Any:
    import tensorflow_datasets as tfds

    if name.partition("/")[0].partition(":")[0] in _OURS:
        import mmfusion.data.tfds  # noqa: F401  registers them
    try:
        builder = tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise DataError(
            "no such data set", where=name, found=str(error).strip().splitlines()[0][:200], fix="set data.name"
        ) from error
    if not Path(str(builder.data_path)).is_dir():
        if manual_dir is None and data_dir is not None:
            manual_dir = Path(data_dir) / "downloads" / "manual"
        config = tfds.download.DownloadConfig(manual_dir=None if manual_dir is None else str(manual_dir))
        try:
            builder.download_and_prepare(download_config=config)
        except DataError:
            raise
        except Exception as error:  # Whatever a builder, a server or a disk comes up with.
            raise DataError(
                "cannot prepare the data set", where=name, found=" ".join(str(error).split())[:400] or repr(error)
            ) from error
    return builder


def _is_string(feature: Any) -> bool:
    # ``coco_captions`` has its captions as plain tensors.
    return getattr(feature, "shape", None) == () and getattr(feature, "tf_dtype", None) == "string"


def _keys(features: Any) -> tuple[list[str], list[str]]:
    """Flat names of picture and caption features, in the order in which they are tried."""
    import tensorflow_datasets as tfds

    images: list[str] = []
    texts: list[str] = []

    def visit(prefix: str, feature: Any) -> None:
        inner = getattr(feature, "feature", None)
        if isinstance(feature, tfds.features.Image):
            images.append(prefix)
        elif isinstance(feature, tfds.features.Text) or _is_string(feature):
            texts.append(prefix)
        elif isinstance(feature, tfds.features.FeaturesDict):
            for key, value in feature.items():
                visit(f"{prefix}/{key}" if prefix else key, value)
        elif inner is not None:
            visit(prefix, inner)

    visit("", features)
    captions: Sequence[str] = [key for key in texts if "caption" in key.lower()]
    return images, [*captions, *(key for key in texts if key not in captions and "text" in key.lower())]
