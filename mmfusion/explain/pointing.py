"""How well heat maps point at boxes of known objects."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.errors import DataError


class Pointing(NamedTuple):
    """Means over all maps, each in 0..1.

    Attributes:
        hits: Pointing game: share of the maps whose maximum lies in the box.
        energy: Share of the heat that lies in the box.
        iou: Intersection over union of the box and the hottest area of its size.
        chance: What an even map hits: the share of the picture that the boxes take.
        maps: How many maps.
    """

    hits: float
    energy: float
    iou: float
    chance: float
    maps: int


def pointing_game(heat: npt.ArrayLike, boxes: npt.ArrayLike, size: tuple[int, int]) -> Pointing:
    """Compares heat maps over patches with the boxes of what they should point at.

    A map's maximum is the middle of its hottest patch; where several are equally hot, the hit is the share of them that lies in
    the box, so that an even map scores chance. Heat spreads evenly over the pixels of its patch.

    Args:
        heat: ``float[N, rows, cols]``, not negative.
        boxes: ``float[N, 4]``: top, left, bottom, right in pixels, the last two one past the object.
        size: Height and width of the pictures in pixels.

    Returns:
        The `Pointing`.

    Raises:
        DataError: If the shapes do not fit, a map holds NaN or less than 0, or a box is empty or not in the picture.

    Example:
        >>> heat = np.zeros((1, 4, 4))
        >>> heat[0, 1, 2] = 1.0
        >>> pointing_game(heat, [[8, 16, 16, 24]], size=(32, 32))
        Pointing(hits=1.0, energy=1.0, iou=1.0, chance=0.0625, maps=1)

    Source: the pointing game: Zhang et al. 2016 (arXiv:1608.00507); energy in the box: Wang et al., Score-CAM, 2020
    (arXiv:1910.01279).
    """
    maps, corners = np.asarray(heat, np.float64), np.asarray(boxes, np.float64)
    if maps.ndim != 3 or not len(maps) or corners.shape != (len(maps), 4):
        found = f"{list(maps.shape)} and {list(corners.shape)}"
        raise DataError("maps and boxes do not fit", expected="[N, rows, cols] and [N, 4], N from 1", found=found)
    if not np.isfinite(maps).all() or (maps < 0).any():
        raise DataError("a map holds NaN or less than 0", expected="finite numbers from 0")
    top, left, bottom, right = corners.T
    inside = (top >= 0) & (left >= 0) & (bottom <= size[0]) & (right <= size[1]) & (top < bottom) & (left < right)
    if not inside.all():
        bad = int(np.argmin(inside))
        raise DataError("a box is empty or not in the picture", where=f"box {bad}", expected=size, found=corners[bad].tolist())
    rows, columns = maps.shape[1:]
    cell = size[0] / rows, size[1] / columns
    # How much of each patch the box covers, 0..1, and whether it holds the patch's middle.
    covers = _overlap(top, bottom, rows, cell[0])[:, :, None] * _overlap(left, right, columns, cell[1])[:, None, :]
    holds = _holds(top, bottom, rows, cell[0])[:, :, None] & _holds(left, right, columns, cell[1])[:, None, :]
    hottest = maps == maps.max(axis=(1, 2), keepdims=True)
    total = maps.sum(axis=(1, 2))
    even = covers.mean(axis=(1, 2))
    energy = np.divide((maps * covers).sum(axis=(1, 2)), total, out=even.copy(), where=total > 0)
    iou = [_iou(one, cover) for one, cover in zip(maps, covers, strict=True)]
    hits = (hottest & holds).sum(axis=(1, 2)) / hottest.sum(axis=(1, 2))
    return Pointing(float(hits.mean()), float(energy.mean()), float(np.mean(iou)), float(even.mean()), len(maps))


def _overlap(start: Any, end: Any, count: int, cell: float) -> npt.NDArray[np.float64]:
    edges = np.arange(count + 1) * cell
    shared = np.minimum(end[:, None], edges[1:]) - np.maximum(start[:, None], edges[:-1])
    return np.maximum(shared, 0.0) / cell


def _holds(start: Any, end: Any, count: int, cell: float) -> npt.NDArray[np.bool_]:
    middles = (np.arange(count) + 0.5) * cell
    found: npt.NDArray[np.bool_] = (start[:, None] <= middles) & (middles < end[:, None])
    return found


def _iou(heat: npt.NDArray[np.float64], covers: npt.NDArray[np.float64]) -> float:
    """Of the box and as many of the hottest patches as it covers; patches count by the share that the box covers."""
    count = max(1, round(covers.sum()))
    chosen = np.argsort(-heat.ravel(), kind="stable")[:count]
    shared = covers.ravel()[chosen].sum()
    return float(shared / (count + covers.sum() - shared))
