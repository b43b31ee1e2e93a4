"""CIDEr-D of captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.evaluation.caption_inputs import Tokens, check_token_lists

_Ngram = tuple[str, ...]


class _Vector(NamedTuple):
    weights: list[dict[_Ngram, float]]
    norms: list[float]
    length: int


def cider_d(
    candidates: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    *,
    max_order: int = 4,
    sigma: float = 6.0,
) -> npt.NDArray[np.float64]:
    """Scores captions by the rare n-grams that they share with their references.

    For n-grams of each order, weighted by how often they occur in the caption times ``log(images / images whose
    references have it)``: ``CIDEr-D_n = 10 * mean_j exp(-(l_c - l_j)^2 / (2 sigma^2)) * min(g_c, g_j) . g_j / (|g_c|
    |g_j|)`` over the references ``j``, averaged over the orders. The document frequencies are those of the references
    given here, so that the score of an image depends on the set that it is evaluated in, and the score of a set of one
    image is 0.

    Args:
        candidates: The words of one caption an image.
        references: The words of each reference of each image, any number of references.
        max_order: The longest n-grams. Default 4.
        sigma: The width of the length penalty. Default 6.

    Returns:
        ``float64[N]`` in 0..10, one score an image; their mean is the corpus score (papers print it times 100). Equal
        to ``pycocoevalcap.cider`` on the same words.

    Raises:
        DataError: If the lists are unequal or empty, or a caption is not split into words.

    Example:
        >>> references = [[["a", "dog", "runs"], ["the", "dog", "runs"]], [["two", "cats"]], [["a", "red", "bus"]]]
        >>> cider_d([["a", "dog", "runs"], ["two", "cats"], ["a", "dog"]], references).round(3).tolist()
        [5.363, 5.0, 0.216]

    References:
        Vedantam, Zitnick and Parikh 2015, "CIDEr: consensus-based image description evaluation", section 5 (CIDEr-D).
    """
    check_token_lists(candidates, references)
    counted = [[_count(reference, max_order) for reference in captions] for captions in references]
    frequency = Counter(ngram for captions in counted for ngram in set().union(*captions))
    log_images = math.log(len(candidates))

    def vector(counts: Counter[_Ngram]) -> _Vector:
        weights: list[dict[_Ngram, float]] = [{} for _ in range(max_order)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, frequency[ngram])))
        norms = [math.sqrt(sum(weight**2 for weight in order.values())) for order in weights]
        # The reference program measures a caption's length in its bigrams; the penalty sees only differences of
        # lengths.
        return _Vector(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))

    scores = []
    for candidate, captions in zip(candidates, counted, strict=True):
        own = vector(_count(candidate, max_order))
        similarity = sum(_similarity(own, vector(counts), sigma) for counts in captions)
        scores.append(10.0 * similarity / len(captions))
    return np.array(scores)


def _count(tokens: Tokens, max_order: int) -> Counter[_Ngram]:
    return Counter(
        tuple(tokens[start : start + order]) for order in range(1, max_order + 1) for start in range(len(tokens) - order + 1)
    )


def _similarity(candidate: _Vector, reference: _Vector, sigma: float) -> float:
    total = 0.0
    for own, other, own_norm, other_norm in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        if own_norm and other_norm:
            product = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in own.items() if ngram in other)
            total += product / (own_norm * other_norm)
    penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * sigma**2))
    return penalty * total / len(candidate.weights)
