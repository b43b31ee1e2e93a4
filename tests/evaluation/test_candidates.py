"""The first candidates equal a full sort."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.errors import ConfigError
from mmfusion.evaluation import first_candidates


@pytest.mark.parametrize("k", [1, 3, 12, 40])
@pytest.mark.parametrize("decimals", [0, 8])
def test_equals_a_full_sort(k: int, decimals: int) -> None:
    rng = np.random.default_rng(k)
    scores = rng.normal(size=(9, 12)).round(decimals).astype("float32")
    right = rng.random((9, 12)) < 0.3
    plain = [sorted(range(12), key=lambda item: -row[item])[:k] for row in scores]
    careful = [sorted(range(12), key=lambda item: (-row[item], mark[item]))[:k] for row, mark in zip(scores, right, strict=True)]
    assert first_candidates(scores, k).tolist() == plain
    assert first_candidates(scores, k, right).tolist() == careful


def test_infinities_have_their_place() -> None:
    assert first_candidates(np.array([[-np.inf, 0.0, np.inf]]), 3).tolist() == [[2, 1, 0]]


def test_no_candidates_is_an_error() -> None:
    with pytest.raises(ConfigError, match="top_k"):
        first_candidates(np.zeros((1, 3)), 0)
