"""Pairs of images and texts, by their images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GROUP = 16
"""Texts of an image at a time: few enough that little is filled up, enough that what is read of an image once pays."""


def grouped(images: npt.NDArray[np.int64], size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Puts pairs into groups of one size, each about one image.

    Args:
        images: ``int64[N]``, the image of each pair.
        size: C, pairs a group.

    Returns:
        The image of each group, ``int64[G]``, and the places of its pairs, ``int64[G, C]``: each place at least once, the last
        one of a group again and again where it is not full.

    Example:
        >>> import numpy as np
        >>> owners, members = grouped(np.array([7, 7, 7, 9]), 2)
        >>> owners.tolist(), members.tolist()
        ([7, 7, 9], [[0, 1], [2, 2], [3, 3]])
    """
    order = np.argsort(images, kind="stable")
    owners, starts, counts = np.unique(images[order], return_index=True, return_counts=True)
    groups = [
        (owner, order[np.minimum(np.arange(first, first + size), start + count - 1)])
        for owner, start, count in zip(owners, starts, counts, strict=True)
        for first in range(start, start + count, size)
    ]
    return np.array([owner for owner, _ in groups], images.dtype), np.stack([members for _, members in groups])
