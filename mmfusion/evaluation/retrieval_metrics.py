"""Recall and median rank of retrieval in both directions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.evaluation.retrieval_inputs import search_directions

RECALL_AT = (1, 5, 10)


class RetrievalRanks(NamedTuple):
    """The rank of the best right item of each query, from 1.

    Attributes:
        i2t: ``int64[q]``, for the images that are asked about, in their order: the best of their texts.
        t2i: ``int64[q]``, for the texts that are asked about, in their order: their image.
    """

    i2t: npt.NDArray[np.int64]
    t2i: npt.NDArray[np.int64]


def retrieval_metrics(
    similarity: npt.ArrayLike,
    image_id: npt.ArrayLike,
    text_image_id: npt.ArrayLike,
    *,
    image_query: npt.ArrayLike | None = None,
    text_query: npt.ArrayLike | None = None,
    chunk_size: int = 256,
) -> dict[str, float]:
    """Measures retrieval of texts by images (``i2t``) and of images by texts (``t2i``).

    Recall at k is the share of queries of which a right item is among the first k, in percent; an image that has
    several captions counts by the best of them, each caption is a query of its own. Ties count against the model: of
    equal scores, the wrong items come first, so that a constant similarity does not look good.

    Args:
        similarity: ``float[I, T]``, higher is closer. Infinities are allowed, NaN is not.
        image_id: ``int[I]``, which image each row is.
        text_image_id: ``int[T]``, which image each text belongs to; any number of texts an image.
        image_query: ``bool[I]``, the images that are asked about; the others are only there to be confused with.
            Default all.
        text_query: ``bool[T]``, the texts that are asked about. Default all.
        chunk_size: Queries at a time; memory is ``chunk_size * (I or T)``. Default 256.

    Returns:
        ``i2t_r1``, ``i2t_r5``, ``i2t_r10``, ``i2t_median_rank``, the same four of ``t2i``, and ``rsum``, the sum of the
        six recalls. Recalls are in 0..100; ranks count from 1, and the median of an even number of ranks may end in .5.

    Raises:
        DataError: If shapes do not fit, the similarity holds NaN, or a query has nothing right in the gallery.

    Example:
        >>> similarity = [[0.9, 0.2, 0.3], [0.1, 0.8, 0.7]]
        >>> metrics = retrieval_metrics(similarity, image_id=[0, 1], text_image_id=[0, 0, 1])
        >>> metrics["i2t_r1"], round(metrics["t2i_r1"], 1), metrics["t2i_median_rank"]
        (50.0, 66.7, 1.0)

    References:
        Faghri et al. 2018, "VSE++: improving visual-semantic embeddings with hard negatives", section 4.
    """
    return metrics_of_ranks(
        retrieval_ranks(
            similarity, image_id, text_image_id, image_query=image_query, text_query=text_query, chunk_size=chunk_size
        )
    )


def retrieval_ranks(
    similarity: npt.ArrayLike,
    image_id: npt.ArrayLike,
    text_image_id: npt.ArrayLike,
    *,
    image_query: npt.ArrayLike | None = None,
    text_query: npt.ArrayLike | None = None,
    chunk_size: int = 256,
) -> RetrievalRanks:
    """Finds the rank of the best right item of each query: 1 + the number of wrong items that score at least as high.

    Args:
        similarity: As in `retrieval_metrics`, and so are the others.
        image_id: ``int[I]``.
        text_image_id: ``int[T]``.
        image_query: ``bool[I]``. Default all.
        text_query: ``bool[T]``. Default all.
        chunk_size: Queries at a time. Default 256.

    Returns:
        The `RetrievalRanks`.

    Raises:
        DataError: As in `retrieval_metrics`.

    Example:
        >>> retrieval_ranks([[0.9, 0.2, 0.3], [0.1, 0.8, 0.7]], [0, 1], [0, 0, 1])
        RetrievalRanks(i2t=array([1, 2]), t2i=array([1, 2, 1]))
    """
    directions = search_directions(similarity, image_id, text_image_id, image_query, text_query)
    return RetrievalRanks(
        *(
            np.concatenate([pessimistic_ranks(scores, right) for _, scores, right in direction.chunks(chunk_size)])
            for direction in directions
        )
    )


def metrics_of_ranks(ranks: RetrievalRanks) -> dict[str, float]:
    """Turns ranks into the figures of `retrieval_metrics`.

    Args:
        ranks: Ranks from 1.

    Returns:
        The figures.

    Example:
        >>> metrics_of_ranks(RetrievalRanks(np.array([1, 7]), np.array([1, 2, 3, 99])))["t2i_r5"]
        75.0
    """
    metrics: dict[str, float] = {}
    for name, rank in ranks._asdict().items():
        metrics |= {f"{name}_r{k}": recall_at(rank, k) for k in RECALL_AT}
        metrics[f"{name}_median_rank"] = float(np.median(rank))
    metrics["rsum"] = sum(metrics[f"{name}_r{k}"] for name in ranks._fields for k in RECALL_AT)
    return metrics


def recall_at(ranks: npt.NDArray[np.int64], k: int) -> float:
    """The share of queries whose rank is at most `k`, in percent.

    Args:
        ranks: ``int[q]``, from 1.
        k: How many items are looked at.

    Returns:
        0..100.

    Example:
        >>> recall_at(np.array([1, 2, 3, 9]), 3)
        75.0
    """
    return 100.0 * int(np.count_nonzero(ranks <= k)) / len(ranks)


def pessimistic_ranks(scores: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The rank of the best right item of each row: 1 + the number of wrong items that score at least as high.

    Args:
        scores: ``float[Q, N]`` without NaN.
        right: ``bool[Q, N]``; a row without a right item gets the last rank.

    Returns:
        ``int64[Q]``.

    Example:
        >>> pessimistic_ranks(np.array([[0.5, 0.5, 0.1]]), np.array([[True, False, False]]))
        array([2])
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    # Counting what is at least as good takes one pass; sorting everything would take many.
    ahead: npt.NDArray[np.int64] = np.count_nonzero((scores >= best) & ~right, axis=1).astype(np.int64)
    return ahead + 1
