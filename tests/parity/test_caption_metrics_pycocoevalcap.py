"""Caption scores and tokenizer against pycocoevalcap, the program of the COCO evaluation server."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from mmfusion.evaluation import bleu, cider_d, rouge_l, tokenize_captions

pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")

WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "man",
    "woman",
    "runs",
    "sits",
    "on",
    "in",
    "red",
    "blue",
    "mat",
    "street",
    "with",
    "two",
    "is",
    "and",
]


def random_captions(seed: int, images: int, references: int | None) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions over few words, so that n-grams of all orders are shared; some candidates are empty, some very long."""
    rng = np.random.default_rng(seed)

    def caption(least: int = 1) -> list[str]:
        return [WORDS[index] for index in rng.zipf(1.6, rng.integers(least, 14)) % len(WORDS)]

    groups = [[caption() for _ in range(references or rng.integers(1, 6))] for _ in range(images)]
    candidates = [list(group[0]) if rng.random() < 0.3 else caption(0) for group in groups]
    candidates[0] = []
    candidates[-1] = caption() * 7
    return candidates, groups


def as_reference_inputs(candidates, references) -> tuple[dict, dict]:
    """What pycocoevalcap's scorers take: words joined by spaces, by image."""
    truth = {image: [" ".join(words) for words in group] for image, group in enumerate(references)}
    return truth, {image: [" ".join(words)] for image, words in enumerate(candidates)}


CORPORA = [
    pytest.param(random_captions(0, 40, None), id="any number of references"),
    pytest.param(random_captions(1, 25, 1), id="one reference"),
    pytest.param(random_captions(2, 60, 5), id="five references"),
    pytest.param(random_captions(3, 2, 2), id="two images"),
    pytest.param(([["a", "dog"]], [[["a", "dog"], ["one", "dog"]]]), id="one image"),
    pytest.param(([[], ["a"], ["a"]], [[[], ["a"]], [["a"]], [[]]]), id="empty references"),
]


@pytest.mark.parametrize(("candidates", "references"), [pytest.param(*p.values[0], id=p.id) for p in CORPORA])
class TestScores:
    def test_bleu(self, candidates, references) -> None:
        from pycocoevalcap.bleu.bleu import Bleu

        corpus, captions = Bleu(4).compute_score(*as_reference_inputs(candidates, references), verbose=0)
        ours = bleu(candidates, references)
        np.testing.assert_allclose(ours.corpus, corpus, rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.captions, np.transpose(captions), rtol=0, atol=1e-6)

    def test_rouge(self, candidates, references) -> None:
        from pycocoevalcap.rouge.rouge import Rouge

        corpus, captions = Rouge().compute_score(*as_reference_inputs(candidates, references))
        ours = rouge_l(candidates, references)
        np.testing.assert_allclose(ours, captions, rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.mean(), corpus, rtol=0, atol=1e-6)

    def test_cider(self, candidates, references) -> None:
        from pycocoevalcap.cider.cider import Cider

        corpus, captions = Cider().compute_score(*as_reference_inputs(candidates, references))
        ours = cider_d(candidates, references)
        np.testing.assert_allclose(ours, captions, rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.mean(), corpus, rtol=0, atol=1e-6)


@pytest.mark.skipif(shutil.which("java") is None, reason="PTBTokenizer is a Java program, and there is no java")
def test_tokenizer_equals_ptb_tokenizer() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = [
        "A man's dog doesn't bark, it can't.",
        'The sign says "NO PARKING!" (in red) - but they\'re parked there...',
        "Two 20-year-old women in T-shirts eat 3.5 pizzas at 10:30 a.m. on St. Mark's square",
        "the U.S. team vs. the U.K. team, no. 5 and #21",
        "I cannot see; gonna look @ www.example.com -- it's $1,000 & 50% off",
        "Rock 'n' roll in the '90s, o'clock, y'all, mother-in-law's black/white café",
        "Mr. and Mrs. Jones, Dr. Smith, e.g. people",
        "wow!!! really?? yes?! ok",
        "A woman wearing a net on her head cutting a cake. ",
        "A child holding a flowered umbrella and petting a yak.",
        "a black-and-white photo of a 1950's-style kitchen;the stove is off",
        "an end so that the last line above is not the last of the file",
    ]
    try:
        theirs = PTBTokenizer().tokenize({row: [{"caption": caption}] for row, caption in enumerate(captions)})
    except (OSError, PermissionError) as error:
        pytest.skip(f"PTBTokenizer cannot write beside itself: {error}")
    ours = tokenize_captions(captions)
    for row in range(len(captions) - 1):
        assert ours[row] == theirs[row][0].split(), captions[row]
