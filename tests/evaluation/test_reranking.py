"""Reranking: an oracle reaches the ceiling, brute force agrees, what is not a candidate keeps its place."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.errors import ConfigError, DataError
from mmfusion.evaluation import first_candidates, rerank, retrieval_metrics

IMAGES, TEXTS = 24, 70


@pytest.fixture
def data() -> dict:
    rng = np.random.default_rng(3)
    text_image_id = np.concatenate([np.arange(IMAGES), rng.integers(0, IMAGES, TEXTS - IMAGES)])
    right = np.arange(IMAGES)[:, None] == text_image_id
    # Rounded, so that there are ties, also at the border of the candidates.
    similarity = (rng.normal(size=(IMAGES, TEXTS)) + right).round(1)
    match = rng.normal(size=(IMAGES, TEXTS)).round(1) + right
    return {
        "similarity": similarity,
        "image_id": np.arange(IMAGES),
        "text_image_id": text_image_id,
        "right": right,
        "match": match,
    }


def brute_force(data: dict, top_k: int, fuse: float) -> dict[str, float]:
    """Scores that put the candidates before all others, in one matrix a direction."""
    metrics: dict[str, float] = {}
    for name, turn in (("i2t", lambda x: x), ("t2i", np.transpose)):
        similarity, match, right = (turn(data[key]) for key in ("similarity", "match", "right"))
        ranks, hits = [], []
        for row in range(len(similarity)):
            order = sorted(range(similarity.shape[1]), key=lambda item: (-similarity[row, item], right[row, item]))
            head = sorted(order[:top_k], key=lambda item: (-(match[row, item] + fuse * similarity[row, item]), right[row, item]))
            final = head + order[top_k:]
            ranks.append(1 + next(place for place, item in enumerate(final) if right[row, item]))
            hits.append(any(right[row, item] for item in head))
        for k in (1, 5, 10):
            metrics[f"{name}_r{k}"] = 100.0 * np.mean(np.array(ranks) <= k)
        metrics[f"{name}_median_rank"] = float(np.median(ranks))
        metrics[f"{name}_ceiling"] = 100.0 * np.mean(hits)
    metrics["rsum"] = sum(metrics[f"{name}_r{k}"] for name in ("i2t", "t2i") for k in (1, 5, 10))
    return metrics


def run(data: dict, **options) -> dict[str, float]:
    options.setdefault("match_fn", lambda images, texts: data["match"][images, texts])
    return rerank(data["similarity"], data["image_id"], data["text_image_id"], **options)


@pytest.mark.parametrize("top_k", [1, 4, 16, 500])
@pytest.mark.parametrize("fuse", [0.0, 0.7])
def test_equals_brute_force(data: dict, top_k: int, fuse: float) -> None:
    assert run(data, top_k=top_k, fuse=fuse, batch_size=7, chunk_size=5) == pytest.approx(brute_force(data, top_k, fuse))


@pytest.mark.parametrize("top_k", [1, 5, 10])
def test_an_oracle_reaches_the_ceiling_which_is_recall_at_k(data: dict, top_k: int) -> None:
    first = retrieval_metrics(data["similarity"], data["image_id"], data["text_image_id"])
    metrics = run(data, top_k=top_k, match_fn=lambda images, texts: data["right"][images, texts].astype("float32"))
    for name in ("i2t", "t2i"):
        assert metrics[f"{name}_ceiling"] == pytest.approx(first[f"{name}_r{top_k}"])
        assert metrics[f"{name}_r1"] == pytest.approx(metrics[f"{name}_ceiling"])
    assert 0.0 < metrics["t2i_ceiling"]


def test_matching_by_the_similarity_changes_nothing(data: dict) -> None:
    first = retrieval_metrics(data["similarity"], data["image_id"], data["text_image_id"])
    again = run(data, top_k=6, match_fn=lambda images, texts: data["similarity"][images, texts])
    assert {name: again[name] for name in first} == pytest.approx(first)


def test_a_constant_match_with_fusion_is_the_first_stage_and_without_is_pessimistic(data: dict) -> None:
    first = retrieval_metrics(data["similarity"], data["image_id"], data["text_image_id"])
    fused = run(data, top_k=6, fuse=1.0, match_fn=lambda images, texts: np.zeros(len(images)))
    assert {name: fused[name] for name in first} == pytest.approx(first)
    assert run(data, top_k=20, match_fn=lambda images, texts: np.zeros(len(images)))["t2i_r1"] == 0.0


def test_each_pair_is_scored_once_in_batches_and_progress_is_told(data: dict) -> None:
    seen: list[tuple[int, int]] = []
    sizes: list[int] = []
    told: list[tuple[int, int]] = []

    def match(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        seen.extend(zip(images.tolist(), texts.tolist(), strict=True))
        sizes.append(len(images))
        return data["match"][images, texts]

    run(data, top_k=8, match_fn=match, batch_size=32, progress=lambda done, total: told.append((done, total)))
    assert len(seen) == len(set(seen))
    assert set(sizes[:-1]) == {32} and 0 < sizes[-1] <= 32
    assert told[-1] == (len(seen), len(seen))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    wanted = {
        (image, int(text)) for image in range(IMAGES) for text in first_candidates(data["similarity"], 8, data["right"])[image]
    }
    wanted |= {
        (int(image), text) for text in range(TEXTS) for image in first_candidates(data["similarity"].T, 8, data["right"].T)[text]
    }
    assert set(seen) == wanted


def test_only_the_queries_are_reranked(data: dict) -> None:
    image_query, text_query = np.arange(IMAGES) < 3, np.arange(TEXTS) == 5
    seen: set[tuple[int, int]] = set()

    def match(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        seen.update(zip(images.tolist(), texts.tolist(), strict=True))
        return data["match"][images, texts]

    run(data, top_k=4, match_fn=match, image_query=image_query, text_query=text_query)
    assert all(image < 3 or text == 5 for image, text in seen)
    assert len(seen) <= 3 * 4 + 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top_k": 0}, ConfigError, "top_k"),
        ({"top_k": 3, "batch_size": 0}, ConfigError, "batch_size"),
        ({"top_k": 3, "fuse": float("nan")}, ConfigError, "fuse"),
        (
            {"top_k": 3, "match_fn": lambda images, texts: np.zeros((len(images), 1))},
            DataError,
            "wrong number of scores",
        ),
        (
            {"top_k": 3, "match_fn": lambda images, texts: np.full(len(images), np.nan)},
            DataError,
            r"NaN \[image \d+, text \d+\]",
        ),
    ],
)
def test_errors(data: dict, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(data, **options)


def test_infinities_that_cancel_out_are_refused() -> None:
    similarity = np.array([[np.inf, 0.0], [0.0, 0.0]])
    with pytest.raises(DataError, match="cancel out"):
        rerank(similarity, [0, 1], [0, 1], lambda images, texts: np.full(len(images), -np.inf), top_k=2, fuse=1.0)
