"""Retrieval by a model that matches but does not embed: every pair of a small gallery is fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mmfusion.evaluation.evaluator import EncodedGallery, Evaluator
from mmfusion.evaluation.retrieval_metrics import retrieval_metrics


class MatchingResult(NamedTuple):
    """What a matching head makes of all pairs of a gallery.

    Attributes:
        metrics: What `retrieval_metrics` says of the scores, and ``matching_accuracy``, from 0 to 1: the mean of the share of
            right pairs that are told right and of the share of wrong pairs that are told wrong, so that chance is 0.5.
        encoded: The gallery.
        scores: ``float32[I, T]``, logits.
    """

    metrics: dict[str, float]
    encoded: EncodedGallery
    scores: np.ndarray


def retrieval_by_matching(
    evaluator: Evaluator, *, batch_size: int = 256, progress: Callable[[int, int], None] | None = None
) -> MatchingResult:
    """Scores every pair of image and text of an evaluator's gallery with the matching head.

    The cost grows with images times texts: keep the gallery small, and say its size beside the figures.

    Args:
        evaluator: The `Evaluator`.
        batch_size: Pairs at a time. Default 256.
        progress: Called with (pairs done, pairs in all) after each batch.

    Returns:
        The `MatchingResult`.
    """
    encoded = evaluator.encode(tokens=True)
    images, texts = len(encoded.image_id), len(encoded.text_image_id)
    flat = np.empty(images * texts, np.float32)
    for start in range(0, len(flat), batch_size):
        pairs = np.arange(start, min(start + batch_size, len(flat)))
        flat[pairs] = evaluator.match_pairs(encoded, pairs // texts, pairs % texts)
        if progress is not None:
            progress(int(pairs[-1]) + 1, len(flat))
    scores = flat.reshape(images, texts)
    metrics = retrieval_metrics(
        scores,
        encoded.image_id,
        encoded.text_image_id,
        image_query=encoded.image_query,
        text_query=encoded.text_query,
    )
    metrics["matching_accuracy"] = balanced_accuracy(scores, encoded.image_id[:, None] == encoded.text_image_id[None])
    return MatchingResult(metrics, encoded, scores)


def balanced_accuracy(scores: np.ndarray, right: np.ndarray) -> float:
    """The mean of the shares of right pairs above 0 and of wrong pairs below.

    Args:
        scores: ``float[I, T]``, logits.
        right: ``bool[I, T]``.

    Returns:
        0 to 1; of the right pairs alone where there is no wrong one.

    Example:
        >>> balanced_accuracy(np.array([[1.0, -1.0], [2.0, 3.0]]), np.eye(2, dtype=bool))
        0.75
    """
    shares = [np.mean(scores[right] > 0)] + ([np.mean(scores[~right] < 0)] if not right.all() else [])
    return float(np.mean(shares))
