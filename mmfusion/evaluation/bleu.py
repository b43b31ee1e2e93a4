"""BLEU of captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.evaluation.caption_inputs import Tokens, check_token_lists

# The constants by which the reference program avoids 0/0; they show in the scores of hopeless captions only.
_TINY, _SMALL = 1e-15, 1e-9


class BleuScore(NamedTuple):
    """BLEU-1 to BLEU-n.

    Attributes:
        corpus: Of all captions together, one figure an order: the ones that papers print (times 100).
        captions: ``float64[N, n]``, of each caption alone.
    """

    corpus: tuple[float, ...]
    captions: npt.NDArray[np.float64]


class _Matches(NamedTuple):
    length: int
    reference_length: int
    correct: npt.NDArray[np.float64]
    possible: npt.NDArray[np.float64]


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], *, max_order: int = 4) -> BleuScore:
    """Scores captions by the n-grams that they share with their references.

    ``BLEU-n = min(1, exp(1 - r/c)) * (p_1 * ... * p_n) ** (1/n)`` with ``p_k`` the share of the candidates' k-grams
    that occur in a reference (no more often than there), ``c`` the candidates' length, and ``r`` the length of the
    references closest to them in length (the shorter one of two equally close).

    Args:
        candidates: The words of one caption an image.
        references: The words of each reference of each image, any number of references.
        max_order: The longest n-grams. Default 4.

    Returns:
        The `BleuScore`, in 0..1; equal to ``pycocoevalcap.bleu`` on the same words.

    Raises:
        DataError: If the lists are unequal or empty, or a caption is not split into words.

    Example:
        >>> score = bleu([["a", "dog", "runs"]], [[["a", "dog", "sits"], ["the", "dog", "runs"]]], max_order=2)
        >>> [round(figure, 4) for figure in score.corpus]
        [1.0, 1.0]

    References:
        Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation"; Chen et al. 2015, the
        COCO caption evaluation server.
    """
    check_token_lists(candidates, references)
    matches = [_match(*pair, max_order) for pair in zip(candidates, references, strict=True)]
    total = _Matches(
        sum(match.length for match in matches),
        sum(match.reference_length for match in matches),
        np.sum([match.correct for match in matches], axis=0),
        np.sum([match.possible for match in matches], axis=0),
    )
    corpus = tuple(float(figure) for figure in _score(total))
    return BleuScore(corpus, np.stack([_score(match) for match in matches]))


def _match(candidate: Tokens, references: Sequence[Tokens], max_order: int) -> _Matches:
    length = len(candidate)
    correct = np.zeros(max_order)
    for order in range(1, max_order + 1):
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _ngrams(reference, order)
        correct[order - 1] = (_ngrams(candidate, order) & most).total()
    possible = np.maximum(0, length - np.arange(max_order)).astype(np.float64)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return _Matches(length, closest, correct, possible)


def _ngrams(tokens: Tokens, order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def _score(matches: _Matches) -> npt.NDArray[np.float64]:
    precision = np.cumprod((matches.correct + _TINY) / (matches.possible + _SMALL))
    score = precision ** (1.0 / np.arange(1, len(precision) + 1))
    ratio = (matches.length + _TINY) / (matches.reference_length + _SMALL)
    return score * math.exp(1 - 1 / ratio) if ratio < 1 else score
