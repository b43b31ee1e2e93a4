"""One row of a data set: a picture, its captions, and the name that messages give it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from mmfusion.errors import DataError


class ImageReference(NamedTuple):
    """Where the encoded bytes of a picture lie: a whole file, or a range of a tar's or a TFRecord's bytes.

    Every reader makes these, so that every source is random access, whatever holds its pictures.

    Attributes:
        path: The file.
        offset: First byte. Default 0.
        length: Number of bytes; -1 is the rest of the file. Default -1.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "two.tar"
        >>> _ = path.write_bytes(b"headerPICTUREtail")
        >>> ImageReference(str(path), offset=6, length=7).read()
        b'PICTURE'
    """

    path: str
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        """The bytes.

        Raises:
            DataError: If the file is missing, cannot be read, or ends before the range does.
        """
        try:
            if "://" in self.path:
                content = self._read_remote()
            else:
                with open(self.path, "rb") as file:
                    if self.offset:
                        file.seek(self.offset)
                    content = file.read(self.length)
        except OSError as error:
            raise DataError("cannot read the image", where=self.path, found=error.strerror or str(error)) from error
        if self.length >= 0 and len(content) != self.length:
            raise DataError(
                "the file ends inside the image",
                where=self.path,
                expected=f"{self.length} bytes at {self.offset}",
                found=len(content),
            )
        return content

    def _read_remote(self) -> bytes:
        import tensorflow as tf

        try:
            with tf.io.gfile.GFile(self.path, "rb") as file:
                if self.offset:
                    file.seek(self.offset)
                return bytes(file.read(self.length))
        except tf.errors.OpError as error:
            raise OSError(error.message) from error

    def __str__(self) -> str:
        name = os.path.basename(self.path)
        return name if self.length < 0 else f"{name}@{self.offset}"


@dataclass(frozen=True, slots=True)
class Example:
    """A picture, a clip or several pictures, with captions.

    Attributes:
        image: Where its bytes are.
        captions: At least one caption, cleaned.
        image_id: Unique over all splits of a source; captions with one `image_id` are positives of each other.
        name: File and row, for messages: ``"captions.jsonl:12"``.
        more_images: Further pictures of an example that has several, in their order. Default none.
        source_text: The sentence that the captions translate, its first word the language to translate into; None where they
            are captions of the picture alone. Default None.

    Example:
        >>> Example(ImageReference("a.jpg"), ("a red bus",), 0, "captions.jsonl:1").captions
        ('a red bus',)
    """

    image: ImageReference
    captions: tuple[str, ...]
    image_id: int
    name: str
    more_images: tuple[ImageReference, ...] = ()
    source_text: str | None = None

    @property
    def images(self) -> tuple[ImageReference, ...]:
        """All its pictures, in their order."""
        return self.image, *self.more_images


class BadRow(NamedTuple):
    """A row that was left out, and why.

    Attributes:
        name: File and row: ``"captions.jsonl:12"``.
        reason: What is wrong with it.
    """

    name: str
    reason: str
