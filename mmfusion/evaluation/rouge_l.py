"""ROUGE-L of captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmfusion.evaluation.caption_inputs import Tokens, check_token_lists


def rouge_l(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], *, beta: float = 1.2
) -> npt.NDArray[np.float64]:
    """Scores captions by the longest common subsequence with their references.

    ``ROUGE-L = (1 + beta^2) P R / (R + beta^2 P)`` with ``P`` the highest share of the candidate's words, and ``R`` the
    highest share of a reference's words, that stand in the common subsequence; each over all references of the image.

    Args:
        candidates: The words of one caption an image.
        references: The words of each reference of each image, any number of references.
        beta: The weight of recall. Default 1.2, as on the COCO evaluation server.

    Returns:
        ``float64[N]`` in 0..1, one score an image; their mean is the corpus score. Equal to ``pycocoevalcap.rouge`` on
        the same words, also in this: an empty candidate scores 0, unless a reference is empty too.

    Raises:
        DataError: If the lists are unequal or empty, or a caption is not split into words.

    Example:
        >>> rouge_l([["a", "dog", "runs"]], [[["a", "brown", "dog", "runs"]]]).round(4).tolist()
        [0.8356]

    References:
        Lin 2004, "ROUGE: a package for automatic evaluation of summaries", equations 2 to 4.
    """
    check_token_lists(candidates, references)
    return np.array([_score(*pair, beta) for pair in zip(candidates, references, strict=True)])


def _score(candidate: Tokens, references: Sequence[Tokens], beta: float) -> float:
    # The reference program sees an empty caption as one empty word.
    words = list(candidate) or [""]
    precision = recall = 0.0
    for reference in references:
        others = list(reference) or [""]
        common = longest_common_subsequence(words, others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if precision == 0.0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """The length of the longest sequence of words that stands in both captions in this order, with any words between.

    Args:
        first: Words.
        second: Words.

    Returns:
        Its length.

    Example:
        >>> longest_common_subsequence("a dog on a red mat".split(), "the dog sits on the mat".split())
        3
    """
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if word == other else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]
