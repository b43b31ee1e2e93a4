"""Looks at every row of a data set before a run does."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from mmfusion.data.decoding import decode_image
from mmfusion.data.example import BadRow, Example
from mmfusion.data.frames import decode_frames
from mmfusion.data.image_loader import bad_image_reason
from mmfusion.data.source import Source
from mmfusion.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table


class Duplicate(NamedTuple):
    """Rows that are exactly equal.

    Attributes:
        what: ``"image"`` (the same bytes), ``"caption"`` (the same caption twice on one picture).
        names: The rows, as ``"split: file:row"``.
        crosses_splits: Whether they are in different splits: a model is then tested on what it has seen.
    """

    what: str
    names: tuple[str, ...]
    crosses_splits: bool


@dataclass
class SplitReport:
    """Figures of one split.

    Attributes:
        images: Number of pictures.
        captions: Number of captions.
        bad_images: Number of pictures that cannot be decoded.
        sizes: How often each (height, width) occurs.
        words: Number of words of each caption, by white space.
        frames: How often each number of pictures in a row occurs: frames of a moving picture, or files.
    """

    images: int = 0
    captions: int = 0
    bad_images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)
    frames: Counter[int] = field(default_factory=Counter)


@dataclass
class SourceReport:
    """What `check_source` found.

    Attributes:
        name: Name of the source.
        splits: Figures by split.
        bad_rows: Every row that a run would skip: the reader's, and pictures that cannot be decoded.
        duplicates: Pictures with the same bytes, and captions that occur twice on one picture.
        shared_captions: Number of captions that more than one picture has; between them, retrieval cannot tell.
    """

    name: str
    splits: dict[str, SplitReport]
    bad_rows: list[BadRow]
    duplicates: list[Duplicate]
    shared_captions: int

    @property
    def is_clean(self) -> bool:
        """Whether no row is bad and no picture is in two splits."""
        return not self.bad_rows and not any(duplicate.crosses_splits for duplicate in self.duplicates)

    def table(self) -> Table:
        """The figures as a table for `rich`."""
        from rich.table import Table

        table = Table(title=self.name, caption=self._caption(), caption_justify="left")
        table.add_column("")
        for split in self.splits:
            table.add_column(split, justify="right")
        reports = list(self.splits.values())
        table.add_row("images", *(f"{report.images:,}" for report in reports))
        table.add_row("unreadable images", *(f"{report.bad_images:,}" for report in reports))
        table.add_row("captions", *(f"{report.captions:,}" for report in reports))
        table.add_row("words a caption: median (5 % – 95 %)", *(_quantiles(report.words) for report in reports))
        table.add_row("sizes, most common", *("\n".join(_common(report.sizes)) for report in reports))
        table.add_row("smallest and largest side", *(_sides(report.sizes) for report in reports))
        if any(count > 1 for report in reports for count in report.frames):
            table.add_row("frames, or pictures a row", *("\n".join(_ranges(report.frames)) for report in reports))
        return table

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {
            "name": self.name,
            "splits": {
                name: {
                    "images": report.images,
                    "captions": report.captions,
                    "bad_images": report.bad_images,
                    "sizes": {f"{height}x{width}": count for (height, width), count in report.sizes.most_common()},
                    "frames": {str(count): rows for count, rows in sorted(report.frames.items())},
                    "words": {str(words): count for words, count in sorted(Counter(report.words).items())},
                }
                for name, report in self.splits.items()
            },
            "bad_rows": [row._asdict() for row in self.bad_rows],
            "duplicates": [duplicate._asdict() for duplicate in self.duplicates],
            "shared_captions": self.shared_captions,
        }

    def _caption(self) -> str:
        images = [duplicate for duplicate in self.duplicates if duplicate.what == "image"]
        crossing = sum(duplicate.crosses_splits for duplicate in images)
        return (
            f"{len(self.bad_rows):,} bad rows; {len(images):,} groups of equal pictures, {crossing:,} of them across "
            f"splits; {len(self.duplicates) - len(images):,} pictures with the same caption twice; "
            f"{self.shared_captions:,} captions on more than one picture"
        )


def check_source(
    source: Source, *, decode: bool = True, progress: Callable[[int, int], None] | None = None, threads: int = 4
) -> SourceReport:
    """Reads every row as a run would, and reports what it will meet.

    Args:
        source: The data.
        decode: Whether to decode the pictures; without, only their bytes are compared. Default True.
        progress: Called with the numbers of pictures done and of all.
        threads: Pictures at a time. Default 4.

    Returns:
        The `SourceReport`.

    Example:
        >>> import pathlib, tempfile, tensorflow as tf
        >>> from mmfusion.data import check_source, read_folder
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "1.png").write_bytes(tf.io.encode_png(tf.zeros([4, 6, 3], tf.uint8)).numpy())
        >>> _ = (folder / "2.png").write_bytes(b"no picture")
        >>> for number in (1, 2): _ = (folder / f"{number}.txt").write_text("a dot")
        >>> report = check_source(read_folder(folder))
        >>> dict(report.splits["train"].sizes), [row.name for row in report.bad_rows], report.shared_captions
        ({(4, 6): 1}, ['2.png'], 1)
    """
    rows = [(split, example) for split, examples in source.splits.items() for example in examples]
    splits = {split: SplitReport() for split in source.splits}
    bad_rows = list(source.bad_rows)
    pictures: dict[bytes, list[tuple[str, Example]]] = {}
    captions: Counter[str] = Counter()
    duplicates: list[Duplicate] = []
    with ThreadPoolExecutor(threads) as pool:
        looked = pool.map(lambda row: _look(row[1], decode), rows)
        for done, ((split, example), (digest, size, frames, reason)) in enumerate(zip(rows, looked, strict=True), start=1):
            report = splits[split]
            report.images += 1
            report.captions += len(example.captions)
            report.words += [len(caption.split()) for caption in example.captions]
            captions.update(set(example.captions))
            if len(set(example.captions)) < len(example.captions):
                duplicates.append(Duplicate("caption", (f"{split}: {example.name}",), False))
            if reason is not None:
                report.bad_images += 1
                bad_rows.append(BadRow(example.name, reason))
            if size is not None:
                report.sizes[size] += 1
                report.frames[frames] += 1
            if digest is not None:
                pictures.setdefault(digest, []).append((split, example))
            if progress is not None:
                progress(done, len(rows))
    for group in pictures.values():
        if len(group) > 1:
            names = tuple(f"{split}: {example.name}" for split, example in group)
            duplicates.append(Duplicate("image", names, len({split for split, _ in group}) > 1))
    shared = sum(count > 1 for count in captions.values())
    return SourceReport(source.name, splits, bad_rows, duplicates, shared)


def _look(example: Example, decode: bool) -> tuple[bytes | None, tuple[int, int] | None, int, str | None]:
    """Digest, size of the first picture, number of pictures, and fault of a row."""
    try:
        contents = [image.read() for image in example.images]
    except DataError as error:
        return None, None, 0, str(error)
    # Of several pictures, their lengths too: the bytes alone do not say where one ends.
    mark = b"".join(contents) if len(contents) == 1 else b"".join(len(one).to_bytes(8, "big") + one for one in contents)
    digest = hashlib.blake2b(mark, digest_size=16).digest() if mark else None
    if not decode:
        return digest, None, 0, None
    try:
        with tf.device("CPU:0"):
            pictures = [_decoded(content) for content in contents]
    except (tf.errors.OpError, MemoryError) as error:
        return digest, None, 0, bad_image_reason(example, error)
    frames = sum(picture.shape[0] for picture in pictures)
    if len(pictures) > 1 and frames > len(pictures):
        return digest, None, 0, f"{len(pictures)} files with {frames} frames: expected still pictures, or one that moves"
    _, height, width, _ = pictures[0].shape
    return digest, (height, width), frames, None


def _decoded(content: bytes) -> tf.Tensor:
    """All frames; of an animated WebP the first, which is all that a still picture needs."""
    picture = tf.constant(content)
    return decode_frames(picture) if content.startswith(b"GIF") else decode_image(picture)[None]


def _quantiles(words: Sequence[int]) -> str:
    if not words:
        return "–"
    low, middle, high = np.quantile(words, [0.05, 0.5, 0.95])
    return f"{middle:.0f} ({low:.0f} – {high:.0f})"


def _common(sizes: Counter[tuple[int, int]]) -> list[str]:
    lines = [f"{height} × {width}: {count:,}" for (height, width), count in sizes.most_common(3)]
    return [*lines, f"{len(sizes) - 3:,} more"] if len(sizes) > 3 else lines or ["–"]


def _ranges(frames: Counter[int]) -> list[str]:
    if len(frames) > 3:
        return [f"{min(frames)} – {max(frames)}"]
    return [f"{count}: {rows:,}" for count, rows in sorted(frames.items())] or ["–"]


def _sides(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "–"
    return f"{min(min(size) for size in sizes)} and {max(max(size) for size in sizes)}"
