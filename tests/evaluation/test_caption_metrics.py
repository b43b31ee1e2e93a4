"""Caption scores: answers worked out by hand, edges, and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmfusion.errors import DataError
from mmfusion.evaluation import bleu, caption_metrics, cider_d, rouge_l

DOG = ["a", "dog", "runs"]


def test_bleu_by_hand() -> None:
    candidate = ["the", "the", "the", "cat"]
    references = [["the", "cat", "sat", "on", "the", "mat"], ["a", "cat"]]
    score = bleu([candidate], [references], max_order=2)
    # Of 4 words, "the" counts twice and "cat" once; of 3 bigrams "the cat" is right. |4-6| = |4-2|: the shorter
    # reference counts.
    assert score.corpus == pytest.approx((3 / 4, math.sqrt(3 / 4 * 1 / 3)), abs=1e-8)
    short = bleu([["the", "cat"]], [[["the", "cat", "sat"]]], max_order=1)
    assert short.corpus[0] == pytest.approx(math.exp(1 - 3 / 2), abs=1e-8)


def test_corpus_bleu_is_not_the_mean_of_captions() -> None:
    score = bleu([DOG, ["cats"]], [[DOG], [["two", "cats"]]], max_order=1)
    assert score.captions[:, 0] == pytest.approx([1.0, math.exp(-1)], abs=1e-6)
    assert score.corpus[0] == pytest.approx(math.exp(1 - 5 / 4), abs=1e-6)


def test_rouge_by_hand() -> None:
    candidate = ["a", "dog", "on", "a", "mat"]
    # Subsequences "a dog mat" and "on a mat": P = 3/5 for both, R = 3/4 at best.
    score = rouge_l([candidate], [[["a", "dog", "the", "mat"], ["on", "top", "of", "a", "red", "mat"]]])
    assert score == pytest.approx([(1 + 1.44) * 0.6 * 0.75 / (0.75 + 1.44 * 0.6)])


def test_cider_by_hand() -> None:
    # Two images, unigrams only: "a" is in the references of both and weighs nothing, every other word weighs log 2.
    references = [["a", "red", "dog"]], [["a", "cat"]]
    scores = cider_d([["a", "red", "cat"], ["a", "cat"]], references, max_order=1)
    # Image 0: the candidate is (red, cat), the reference (red, dog): cosine 1/2, of equal length. No bigrams are
    # counted.
    assert scores == pytest.approx([10 * 0.5, 10.0])


def test_cider_clips_repeats_and_penalises_length() -> None:
    references = [[["red", "dog"]], [["cat"]]]
    once = cider_d([["red", "dog"], ["cat"]], references)[0]
    repeated = cider_d([["red", "dog"] * 6, ["cat"]], references)[0]
    assert once == pytest.approx(5.0)  # unigrams and bigrams agree, there are no longer ones
    # Unigrams: min(6, 1) * 1 a word, norms 6 and 1 times larger: 1/6; bigrams: "red dog" six times beside "dog red"
    # five times.
    penalty = math.exp(-(10**2) / (2 * 6.0**2))
    assert repeated == pytest.approx(10 * penalty * (1 / 6 + 1 / math.hypot(6, 5)) / 4)


def test_cider_depends_on_the_evaluated_set_and_is_zero_for_one_image() -> None:
    assert cider_d([DOG], [[DOG]]) == pytest.approx([0.0])
    two = cider_d([DOG, ["cat"]], [[DOG], [["cat"]]])[0]
    common = cider_d([DOG, ["cat"], ["x"]], [[DOG], [["cat"]], [["a", "dog", "sits"]]])[0]
    # Identical captions have cosine 1 however their words are weighed, for the three orders that they have.
    assert two == pytest.approx(7.5)
    assert common == pytest.approx(7.5)


def test_edges_are_finite_and_worst() -> None:
    references = [[DOG], [["two", "cats"], ["some", "cats", "on", "a", "mat"]], [["x"]]]
    empty = [[], [], []]
    assert bleu(empty, references).corpus == (0.0, 0.0, 0.0, 0.0)
    assert rouge_l(empty, references).tolist() == [0.0, 0.0, 0.0]
    assert cider_d(empty, references).tolist() == [0.0, 0.0, 0.0]
    long = [[*DOG, *(["and", "then", "some", "more", "words", "than", "anybody", "asked", "for"])]] * 3
    for scores in (bleu(long, references).captions, rouge_l(long, references), cider_d(long, references)):
        assert np.isfinite(scores).all()
    assert bleu(long, references).corpus[0] < 0.5


def test_same_captions_are_perfect() -> None:
    captions = ["A man rides a brown horse.", "Two dogs play in the deep snow!", "Some people eat at a table"]
    metrics = caption_metrics(captions, [[caption] for caption in captions])
    assert metrics == pytest.approx(
        {"bleu_1": 1.0, "bleu_2": 1.0, "bleu_3": 1.0, "bleu_4": 1.0, "rouge_l": 1.0, "cider_d": 10.0}, abs=1e-6
    )
    assert caption_metrics([caption.upper() for caption in captions], [[caption] for caption in captions]) == metrics
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 candidates, 2 lists of references"),
        ([], [], "no captions to score"),
        (["a", "b"], [["a"], []], r"without references \[row 1\]"),
        (["a"], ["a"], r"references of an image are a list \[row 0\]"),
        ("a", [["a"]], "candidates are a list"),
        (["a"], "a", "references are a list"),
    ],
)
def test_unequal_or_missing_lists_are_refused(candidates, references, message: str) -> None:
    with pytest.raises(DataError, match=message):
        caption_metrics(candidates, references)


@pytest.mark.parametrize("score", [bleu, rouge_l, cider_d])
def test_scores_on_tokens_refuse_text(score) -> None:
    with pytest.raises(DataError, match=r"not split into words \[row 0\].*tokenize_captions"):
        score(["a dog"], [[["a", "dog"]]])
    with pytest.raises(DataError, match="not split into words"):
        score([["a", "dog"]], [["a dog"]])
    with pytest.raises(DataError, match="differ in number"):
        score([["a"]], [])
