"""How spread out attention is, and how much it tells tokens apart: pure measures of score matrices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


class AttentionHealth(NamedTuple):
    """Means over examples and real queries, one a head.

    Attributes:
        entropy: ``float[H]``, 0 (one key gets everything) to 1 (all allowed keys get the same).
        rank: ``float[H]``, effective rank over the highest possible; near 0 where all queries look alike, 1 where all differ.
        stable_rank: ``float[H]``, ``‖A‖²_F / ‖A‖²_2``, at least 1.
    """

    entropy: Array
    rank: Array
    stable_rank: Array


def attention_entropy(scores: npt.ArrayLike, allowed: npt.ArrayLike | None = None) -> Array:
    """The entropy of each row, ``-Σ_s a[s] · log a[s] / log n``, over the logarithm of its n allowed keys.

    Args:
        scores: ``float[..., T, S]``, rows summing to 1, or to 0 where there was nothing to attend to.
        allowed: ``bool``, broadcasts to the scores: the keys that a query may attend to. Default: all.

    Returns:
        ``float[..., T]`` from 0 to 1; NaN where there is no choice (fewer than two keys, or a row of zeros).

    Example:
        >>> from mmfusion.training.diagnostics import attention_entropy
        >>> attention_entropy([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]).tolist()
        [0.5, 0.0]
    """
    scores = np.asarray(scores, "float64")
    allowed = np.broadcast_to(True if allowed is None else np.asarray(allowed, bool), scores.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.sum(np.where(scores > 0.0, scores * np.log(scores), 0.0), axis=-1)
        count = allowed.sum(axis=-1)
        share = entropy / np.log(count)
    # Adding 0 makes -0 plain.
    return np.where((count > 1) & (scores.sum(axis=-1) > 0.0), np.clip(share, 0.0, 1.0) + 0.0, np.nan)


def effective_rank(matrices: npt.ArrayLike) -> Array:
    """``exp(H(σ / Σ σ))``, the exponential of the entropy of the singular values: how many directions a matrix uses.

    Args:
        matrices: ``float[..., T, S]``.

    Returns:
        ``float[...]``, from 1 to min(T, S); 0 for a matrix of zeros.

    Example:
        >>> import numpy as np
        >>> from mmfusion.training.diagnostics import effective_rank
        >>> round(float(effective_rank(np.eye(4))), 6), round(float(effective_rank(np.ones((4, 4)))), 6)
        (4.0, 1.0)

    Source: Roy and Vetterli, 2007, The effective rank.
    """
    values = np.linalg.svd(np.asarray(matrices, "float64"), compute_uv=False)
    total = values.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = values / total
        entropy = -np.sum(np.where(share > 0.0, share * np.log(share), 0.0), axis=-1)
    return np.where(total[..., 0] > 0.0, np.exp(entropy), 0.0)


def stable_rank(matrices: npt.ArrayLike) -> Array:
    """``‖A‖²_F / ‖A‖²_2``, the squared singular values over the largest of them.

    Args:
        matrices: ``float[..., T, S]``.

    Returns:
        ``float[...]``, from 1 to the rank; 0 for a matrix of zeros.

    Example:
        >>> import numpy as np
        >>> from mmfusion.training.diagnostics import stable_rank
        >>> float(stable_rank(np.diag([2.0, 1.0]))), float(stable_rank(np.zeros((2, 2))))
        (1.25, 0.0)
    """
    squares = np.linalg.svd(np.asarray(matrices, "float64"), compute_uv=False) ** 2
    largest = squares.max(axis=-1)
    return np.where(largest > 0.0, squares.sum(axis=-1) / np.where(largest > 0.0, largest, 1.0), 0.0)


def attention_health(
    scores: npt.ArrayLike, allowed: npt.ArrayLike | None = None, queries: npt.ArrayLike | None = None
) -> AttentionHealth:
    """Entropy and rank of each head of one layer.

    Args:
        scores: ``float[B, H, T, S]``.
        allowed: ``bool``, broadcasts to the scores. Default: all.
        queries: ``bool[B, T]``, ``True`` = real query; others count nowhere. Default: all real.

    Returns:
        The `AttentionHealth`, NaN where no query had a choice.

    Example:
        >>> import numpy as np
        >>> from mmfusion.training.diagnostics import attention_health
        >>> health = attention_health(np.stack([np.eye(4), np.full((4, 4), 0.25)])[None])
        >>> [[round(float(x), 4) for x in part] for part in health]
        [[0.0, 1.0], [1.0, 0.25], [4.0, 1.0]]

    Source: entropy: Zhai et al., 2023 (arXiv:2303.06296); rank: Dong et al., 2021 (arXiv:2103.03404).
    """
    scores = np.asarray(scores, "float64")
    batch, _, length, _ = scores.shape
    real = np.ones((batch, length), bool) if queries is None else np.asarray(queries, bool)
    allowed = np.broadcast_to(True if allowed is None else np.asarray(allowed, bool), scores.shape)
    real_rows = np.broadcast_to(real[:, None, :], scores.shape[:3])
    entropy = np.where(real_rows, attention_entropy(scores, allowed), np.nan)
    matrices = np.where(real_rows[..., None], scores, 0.0)
    keys = np.any(allowed & real_rows[..., None], axis=2).sum(axis=-1)
    highest = np.minimum(real.sum(axis=-1)[:, None], keys)
    some = highest > 1
    rank = np.where(some, effective_rank(matrices) / np.maximum(highest, 1), np.nan)
    stable = np.where(some, stable_rank(matrices), np.nan)
    return AttentionHealth(_mean(entropy, (0, 2)), _mean(rank, 0), _mean(stable, 0))


def _mean(values: Array, axis: int | tuple[int, ...]) -> Array:
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
