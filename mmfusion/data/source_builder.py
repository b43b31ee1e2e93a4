"""Collects the rows of a reader into a source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmfusion.data.captions import clean_captions
from mmfusion.data.example import BadRow, Example, ImageReference
from mmfusion.data.source import Source
from mmfusion.errors import DataError


class SourceBuilder:
    """Collects rows into a `Source`: joins rows of one picture, cleans captions, gives out ids, notes bad rows.

    Args:
        name: Name of the source.

    Example:
        >>> from mmfusion.data import ImageReference
        >>> builder = SourceBuilder("table.csv")
        >>> builder.add("table.csv:2", "a.jpg", ImageReference("a.jpg"), "a dog")
        >>> builder.add("table.csv:3", "a.jpg", ImageReference("a.jpg"), "a brown dog")
        >>> builder.add("table.csv:4", "b.jpg", ImageReference("b.jpg"), " ")
        >>> source = builder.build()
        >>> source.splits["train"][0].captions, source.bad_rows[0].reason
        (('a dog', 'a brown dog'), 'caption 1 is empty')
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._rows: dict[str, tuple[str, str, Sequence[ImageReference], list[str], str | None]] = {}
        self._bad: list[BadRow] = []

    def bad(self, name: str, reason: str) -> None:
        """Notes a row that cannot be used."""
        self._bad.append(BadRow(name, reason))

    def add(
        self,
        name: str,
        key: str,
        image: ImageReference | Sequence[ImageReference],
        captions: object,
        split: object = "train",
        source_text: str | None = None,
    ) -> None:
        """Adds a row.

        Args:
            name: File and row.
            key: What tells pictures apart; rows with the same key are one picture. Of several, theirs joined by NUL.
            image: Where the picture is, or the pictures, in their order.
            captions: A caption or a list of them, as found in the file.
            split: The split, as found in the file. Default ``"train"``.
            source_text: The sentence that the captions translate, if they do; part of what tells rows apart. Default None.
        """
        if not isinstance(split, str) or not split.strip() or split.strip() == "all":
            self.bad(name, f"split: expected a name other than 'all', found {split!r}")
            return
        split = split.strip()
        good, reasons = clean_captions(captions)
        for reason in reasons:
            self.bad(name, reason)
        if not good:
            return
        known = self._rows.get(row := key if source_text is None else f"{key}\0\0{source_text}")
        if known is None:
            images = [image] if isinstance(image, ImageReference) else list(image)
            self._rows[row] = (split, name, images, list(good), source_text)
        elif known[0] != split:
            # Taken twice, the picture would be trained on and validated with.
            pictures = key.replace("\0", " + ")
            self.bad(name, f"{pictures} is in split {known[0]!r} already ({known[1]})")
        else:
            known[3].extend(good)

    def build(self, splits: Iterable[str] = ()) -> Source:
        """The source.

        Args:
            splits: Splits that exist even when empty.

        Raises:
            DataError: If there is not one usable row.
        """
        tables: dict[str, list[Example]] = {split: [] for split in splits}
        for image_id, (split, name, images, captions, source_text) in enumerate(self._rows.values()):
            example = Example(images[0], tuple(captions), image_id, name, tuple(images[1:]), source_text)
            tables.setdefault(split, []).append(example)
        if not self._rows:
            first = f"{self._bad[0].name}: {self._bad[0].reason}" if self._bad else "no rows"
            more = f"; {len(self._bad) - 1:,} more bad rows" if len(self._bad) > 1 else ""
            raise DataError("no usable row", where=self.name, found=first + more)
        return Source(self.name, tables, self._bad)
