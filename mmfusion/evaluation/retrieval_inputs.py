"""What the retrieval protocol asks of a similarity matrix and its ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.errors import DataError


class Direction(NamedTuple):
    """One way to search: every row of `scores` is a query, every column an item of the gallery.

    Attributes:
        name: ``"i2t"`` or ``"t2i"``.
        scores: ``[Q, N]``, a view of the similarity.
        query_id: ``int[Q]``, the image that a query is or belongs to.
        item_id: ``int[N]``, the image that an item is or belongs to.
        queries: ``int[q]``, the rows that are asked about.
    """

    name: str
    scores: npt.NDArray[Any]
    query_id: npt.NDArray[np.int64]
    item_id: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]

    def chunks(self, rows: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[np.bool_]]]:
        """Yields `rows` queries at a time: their rows, scores ``[c, N]`` and which items are right ``bool[c, N]``."""
        for start in range(0, len(self.queries), rows):
            chosen = self.queries[start : start + rows]
            # A copy: the columns of a row-major matrix are slow to walk through more than once.
            yield chosen, np.ascontiguousarray(self.scores[chosen]), self.query_id[chosen, None] == self.item_id[None]


def search_directions(
    similarity: npt.ArrayLike,
    image_id: npt.ArrayLike,
    text_image_id: npt.ArrayLike,
    image_query: npt.ArrayLike | None = None,
    text_query: npt.ArrayLike | None = None,
) -> tuple[Direction, Direction]:
    """Checks the inputs of a retrieval evaluation and turns them into its two directions.

    Args:
        similarity: ``float[I, T]``.
        image_id: ``int[I]``.
        text_image_id: ``int[T]``.
        image_query: ``bool[I]``, or None for all.
        text_query: ``bool[T]``, or None for all.

    Returns:
        Image to text, and text to image.

    Raises:
        DataError: If shapes do not fit, the similarity holds NaN, or a query has nothing to be found.

    Example:
        >>> [direction.name for direction in search_directions([[0.5]], [7], [7])]
        ['i2t', 't2i']
    """
    scores = np.asarray(similarity)
    if scores.ndim != 2 or scores.dtype.kind not in "fiu":
        raise DataError(
            "a similarity matrix is needed",
            expected="float[images, texts]",
            found=f"{scores.dtype}{list(scores.shape)}",
        )
    images, texts = scores.shape
    image_ids = _vector(image_id, images, "image_id", "iu").astype(np.int64)
    text_ids = _vector(text_image_id, texts, "text_image_id", "iu").astype(np.int64)
    _check_numbers(scores)
    directions = (
        Direction("i2t", scores, image_ids, text_ids, _rows(image_query, images, "image_query")),
        Direction("t2i", scores.T, text_ids, image_ids, _rows(text_query, texts, "text_query")),
    )
    for direction, asked, sought in zip(directions, ("image", "text"), ("text", "image"), strict=True):
        ids = direction.query_id[direction.queries]
        lost = np.flatnonzero(~np.isin(ids, direction.item_id))
        if len(lost):
            raise DataError(
                f"{len(lost)} of {len(ids)} {asked} queries have no {sought} in the gallery",
                where=f"{asked} {direction.queries[lost[0]]}",
                expected=f"at least one {sought} of image {ids[lost[0]]}",
                fix=f"leave such {asked}s out of {asked}_query",
            )
    return directions


def _vector(values: npt.ArrayLike, length: int, name: str, kinds: str) -> npt.NDArray[Any]:
    vector = np.asarray(values)
    if vector.shape != (length,) or vector.dtype.kind not in kinds:
        kind = "bool" if kinds == "b" else "int"
        raise DataError(
            f"{name} does not fit the similarity",
            expected=f"{kind}[{length}]",
            found=f"{vector.dtype}{list(vector.shape)}",
        )
    return vector


def _rows(mask: npt.ArrayLike | None, length: int, name: str) -> npt.NDArray[np.int64]:
    rows = np.arange(length) if mask is None else np.flatnonzero(_vector(mask, length, name, "b"))
    if not len(rows):
        raise DataError("no queries to evaluate", where=name, expected="at least one True", found=f"none of {length}")
    return rows


def _check_numbers(scores: npt.NDArray[Any], rows: int = 1024) -> None:
    if scores.dtype.kind != "f":
        return
    count = 0
    first: tuple[int, int] | None = None
    for start in range(0, len(scores), rows):
        bad = np.isnan(scores[start : start + rows])
        count += int(np.count_nonzero(bad))
        if count and first is None:
            row, column = np.argwhere(bad)[0]
            first = (start + int(row), int(column))
    if first is not None:
        raise DataError(
            f"the similarity holds {count} NaN",
            where=f"first at image {first[0]}, text {first[1]}",
            expected="numbers",
            fix="look for NaN in the embeddings",
        )
