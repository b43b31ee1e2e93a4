"""A data set as a table in memory: its splits, and the rows that were left out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mmfusion.data.example import BadRow, Example
from mmfusion.data.stateless import hash64
from mmfusion.errors import DataError


@dataclass
class Source:
    """Splits of examples. Pictures stay where they are (`ImageReference`), so a table of millions of rows is light.

    Attributes:
        name: What messages call it: the path or the data set's name.
        splits: Examples by split, in the order of the files. The name ``"all"`` is taken: it is all splits together.
        bad_rows: What the reader left out.

    Example:
        >>> from mmfusion.data import Example, ImageReference, Source
        >>> rows = [Example(ImageReference(f"{i}.jpg"), ("a dog",), i, f"row {i}") for i in range(10)]
        >>> source = Source("dogs", {"train": rows}).with_validation_share(0.2, seed=0)
        >>> {name: len(examples) for name, examples in source.splits.items()}
        {'train': 8, 'val': 2}
        >>> len(source.examples("all"))
        10
    """

    name: str
    splits: dict[str, list[Example]]
    bad_rows: list[BadRow] = field(default_factory=list)

    def examples(self, split: str) -> list[Example]:
        """The examples of a split; ``"all"`` is all of them, split by split in the order of their names.

        Raises:
            DataError: If there is no such split.
        """
        if split in self.splits:
            return self.splits[split]
        if split == "all":
            return [example for name in sorted(self.splits) for example in self.splits[name]]
        raise DataError("no such split", where=self.name, expected=", ".join([*sorted(self.splits), "all"]), found=repr(split))

    def with_validation_share(self, share: float, seed: int, *, split: str = "train", validation: str = "val") -> Source:
        """Moves a random share of the pictures of one split into a validation split.

        Whole pictures move, with all their captions. Which ones depends on the seed and `image_id` only.

        Args:
            share: Share of the split that moves, in (0, 1); at least one picture moves and one stays.
            seed: Seed of the choice.
            split: The split that is divided. Default ``"train"``.
            validation: Name of the new split. Default ``"val"``.

        Returns:
            A new source.

        Raises:
            DataError: If the validation split exists already, or there are fewer than two pictures.
        """
        if not 0.0 < share < 1.0:
            raise DataError("impossible share", where=self.name, expected="0 < share < 1", found=share)
        if validation in self.splits:
            raise DataError("the split exists already", where=self.name, found=validation)
        examples = self.examples(split)
        if len(examples) < 2:
            raise DataError("too few pictures to divide", where=f"{self.name}: {split}", found=len(examples))
        count = min(max(round(share * len(examples)), 1), len(examples) - 1)
        ranks = hash64(seed, np.asarray([example.image_id for example in examples], np.int64))
        chosen = set(np.argsort(ranks, kind="stable")[:count].tolist())
        kept = [example for index, example in enumerate(examples) if index not in chosen]
        moved = [example for index, example in enumerate(examples) if index in chosen]
        return replace(self, splits={**self.splits, split: kept, validation: moved})

    def limited(self, split: str, limit: int) -> Source:
        """The source with only the first `limit` examples of a split."""
        return replace(self, splits={**self.splits, split: self.examples(split)[:limit]})
