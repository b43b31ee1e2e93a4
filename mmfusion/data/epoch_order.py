"""Which pictures and captions make up which batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmfusion.data.example import Example
from mmfusion.data.stateless import hash64, permutation
from mmfusion.errors import ConfigError

_ORDER, _CAPTION, _AUGMENTATION = 1, 2, 3  # what a random number is for


class Units(NamedTuple):
    """What one batch is made of.

    Attributes:
        row: ``int64[B]``, rows of the table.
        caption: ``int64[B]``, number of the caption within the row.
        seed: ``int64[B, 2]``, seeds of the augmentation.
    """

    row: np.ndarray
    caption: np.ndarray
    seed: np.ndarray


class EpochOrder:
    """The order of every epoch, as a pure function of the seed.

    Args:
        examples: The table.
        seed: Seed of the run.
        captions: ``"sample"``: a unit is a picture, whose captions take turns from epoch to epoch, beginning with a
            random one; ``"all"``: a unit is a pair of picture and caption. Default ``"sample"``.

    Attributes:
        size: Units in an epoch.

    Example:
        >>> from mmfusion.data import Example, ImageReference
        >>> rows = [Example(ImageReference("a.jpg"), ("a dog", "a pet"), i, f"row {i}") for i in range(4)]
        >>> order = EpochOrder(rows, seed=3)
        >>> batches = [order.batch(step, 2) for step in range(4)]
        >>> [sorted(row for batch in epoch for row in batch.row.tolist()) for epoch in (batches[:2], batches[2:])]
        [[0, 1, 2, 3], [0, 1, 2, 3]]
    """

    def __init__(self, examples: Sequence[Example], *, seed: int, captions: str = "sample") -> None:
        if captions not in ("sample", "all"):
            raise ConfigError("unknown choice of captions", expected="sample or all", found=repr(captions))
        self.seed = seed
        self.captions = captions
        self._counts = np.asarray([len(example.captions) for example in examples], np.int64)
        self._ends = np.cumsum(self._counts)
        self.size = len(examples) if captions == "sample" else int(self._counts.sum())
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def batch(self, step: int, batch_size: int) -> Units:
        """The units of a batch.

        Args:
            step: Number of the batch, counted over all epochs.
            batch_size: Units a batch.

        Returns:
            The `Units`.
        """
        epoch, place = divmod(step, self.size // batch_size)
        unit = self._order(epoch)[place * batch_size : (place + 1) * batch_size]
        if self.captions == "sample":
            row = unit
            caption = hash64(self.seed, _CAPTION, row).astype(np.int64) % self._counts[row] + epoch
            caption %= self._counts[row]
        else:
            row = np.searchsorted(self._ends, unit, side="right")
            caption = unit - (self._ends[row] - self._counts[row])
        seed = np.stack([hash64(self.seed, _AUGMENTATION, epoch, unit), hash64(self.seed, _AUGMENTATION, unit, epoch)], axis=1)
        return Units(row, caption, seed.view(np.int64))

    def _order(self, epoch: int) -> np.ndarray:
        # Threads work on neighbouring batches: the last two orders are all that is ever asked for.
        with self._lock:
            if epoch not in self._orders:
                self._orders = {key: value for key, value in self._orders.items() if key == epoch - 1}
                self._orders[epoch] = permutation(self.size, self.seed, _ORDER, epoch)
            return self._orders[epoch]
