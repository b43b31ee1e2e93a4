"""The first k items of each query."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmfusion.errors import ConfigError


def first_candidates(scores: npt.NDArray[Any], k: int, right: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int64]:
    """Finds the k items of highest score of each query, best first.

    Of equal scores the item that comes first is first; with `right`, wrong items come before right ones, as in
    `retrieval_metrics`, so that what is measured on the candidates is not luckier than what is measured on all.

    Args:
        scores: ``float[Q, N]``.
        k: How many; all if there are fewer.
        right: ``bool[Q, N]``, which items are right. Default: unknown.

    Returns:
        ``int64[Q, min(k, N)]``, columns of `scores`.

    Raises:
        ConfigError: If `k` is less than 1.

    Example:
        >>> first_candidates(np.array([[0.1, 0.9, 0.5, 0.5]]), 3).tolist()
        [[1, 2, 3]]
        >>> first_candidates(np.array([[0.1, 0.9, 0.5, 0.5]]), 3, np.array([[False, False, True, False]])).tolist()
        [[1, 3, 2]]
    """
    if k < 1:
        raise ConfigError("too few candidates", where="top_k", expected="at least 1", found=k)
    scores = np.asarray(scores)
    queries, items = scores.shape
    k = min(k, items)
    # The k-th best score bounds what needs sorting.
    bounds = np.partition(scores, items - k, axis=1)[:, items - k]
    chosen = np.empty((queries, k), np.int64)
    for row in range(queries):
        columns = np.flatnonzero(scores[row] >= bounds[row])
        ties = np.zeros(len(columns), bool) if right is None else right[row, columns]
        # The last key is the first criterion; lexsort is stable, so equal ones stay in order.
        order = np.lexsort((ties, -scores[row, columns].astype(np.float64)))
        chosen[row] = columns[order[:k]]
    return chosen
