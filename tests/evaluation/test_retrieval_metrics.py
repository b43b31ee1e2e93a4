"""Retrieval protocol: hand-made matrices, and brute force on random ones."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.errors import DataError
from mmfusion.evaluation import retrieval_metrics, retrieval_ranks


def brute_force_ranks(scores: np.ndarray, query_id: np.ndarray, item_id: np.ndarray) -> list[int]:
    """Sorts every row, wrong items before right ones of the same score, and looks for the first right one."""
    ranks = []
    for row, own in zip(scores, query_id, strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item_id[item] == own))
        ranks.append(1 + next(place for place, item in enumerate(order) if item_id[item] == own))
    return ranks


def test_hand_made_matrix_with_unequal_numbers_of_captions() -> None:
    # Image 7 has three texts, image 3 has one, image 9 has two.
    similarity = np.array(
        [
            [0.1, 0.2, 0.3, 0.9, 0.8, 0.0],  # image 7: its best text has 0.3, behind two others
            [0.5, 0.4, 0.3, 0.6, 0.2, 0.1],  # image 3: its text has 0.6, the first
            [0.9, 0.1, 0.1, 0.2, 0.3, 0.8],  # image 9: its best text has 0.8, behind one
        ]
    )
    ranks = retrieval_ranks(similarity, [7, 3, 9], [7, 7, 7, 3, 9, 9])
    assert ranks.i2t.tolist() == [3, 1, 2]
    # Columns: 0.1 < 0.5 < 0.9 -> 3; 0.2 < 0.4 -> 2; 0.3 tied with 0.3 -> 2; 0.6 < 0.9 -> 2; 0.3 < 0.8 -> 2; 0.8 first
    # -> 1.
    assert ranks.t2i.tolist() == [3, 2, 2, 2, 2, 1]
    metrics = retrieval_metrics(similarity, [7, 3, 9], [7, 7, 7, 3, 9, 9])
    assert metrics["i2t_r1"] == pytest.approx(100 / 3)
    assert metrics["t2i_r1"] == pytest.approx(100 / 6)
    assert metrics["i2t_median_rank"] == 2.0
    assert metrics["t2i_median_rank"] == 2.0
    assert metrics["i2t_r5"] == metrics["t2i_r10"] == 100.0
    assert metrics["rsum"] == pytest.approx(100 / 3 + 100 / 6 + 400)
    assert list(metrics) == [
        "i2t_r1", "i2t_r5", "i2t_r10", "i2t_median_rank", "t2i_r1", "t2i_r5", "t2i_r10", "t2i_median_rank", "rsum",
    ]  # fmt: skip


def test_perfect_and_worst_matrix() -> None:
    ids = np.arange(20)
    perfect = retrieval_metrics(np.eye(20), ids, ids)
    assert perfect["rsum"] == 600.0
    assert perfect["i2t_median_rank"] == 1.0
    worst = retrieval_metrics(-np.eye(20), ids, ids)
    assert worst["rsum"] == 0.0
    assert worst["t2i_median_rank"] == 20.0


def test_a_constant_similarity_does_not_look_good() -> None:
    metrics = retrieval_metrics(np.zeros((30, 60), np.float32), np.arange(30), np.repeat(np.arange(30), 2))
    assert metrics["rsum"] == 0.0
    # 58 texts of other images come before, 29 other images.
    assert (metrics["i2t_median_rank"], metrics["t2i_median_rank"]) == (59.0, 30.0)


@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force_with_ties_and_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, texts = 17, 53
    image_id = rng.permutation(100)[:images]
    text_image_id = np.concatenate([image_id, rng.choice(image_id, texts - images)])
    similarity = rng.normal(size=(images, texts)).round(1 if seed % 2 else 8).astype("float32")
    image_query, text_query = rng.random(images) < 0.5, rng.random(texts) < 0.3
    image_query[0] = text_query[0] = True
    ranks = retrieval_ranks(
        similarity,
        image_id,
        text_image_id,
        image_query=image_query,
        text_query=text_query,
        chunk_size=int(rng.integers(1, 9)),
    )
    assert ranks.i2t.tolist() == brute_force_ranks(similarity[image_query], image_id[image_query], text_image_id)
    assert ranks.t2i.tolist() == brute_force_ranks(similarity.T[text_query], text_image_id[text_query], image_id)


def test_images_without_texts_may_only_distract() -> None:
    similarity = np.array([[0.9], [0.95]])
    with pytest.raises(DataError, match=r"1 of 2 image queries have no text in the gallery \[image 1\].*of image 5; leave"):
        retrieval_metrics(similarity, [4, 5], [4])
    metrics = retrieval_metrics(similarity, [4, 5], [4], image_query=[True, False])
    assert metrics["i2t_r1"] == 100.0
    assert metrics["t2i_median_rank"] == 2.0


def test_several_images_of_one_id() -> None:
    ranks = retrieval_ranks([[0.1], [0.9], [0.5]], [1, 1, 2], [1], image_query=[True, True, False])
    assert ranks.i2t.tolist() == [1, 1]
    assert ranks.t2i.tolist() == [1]


def test_infinities_and_half_precision() -> None:
    similarity = np.array([[np.inf, -np.inf], [np.inf, -np.inf]], np.float16)
    ranks = retrieval_ranks(similarity, [0, 1], [0, 1])
    assert ranks.t2i.tolist() == [2, 2]
    assert ranks.i2t.tolist() == [1, 2]
    assert retrieval_ranks(np.array([[2, 1], [0, 3]]), [0, 1], [0, 1]).i2t.tolist() == [1, 1]


def test_nan_is_one_clear_error() -> None:
    similarity = np.zeros((3000, 2), np.float32)
    similarity[2500, 1] = similarity[2600, 0] = np.nan
    with pytest.raises(DataError, match=r"^the similarity holds 2 NaN \[first at image 2500, text 1\]") as caught:
        retrieval_metrics(similarity, np.arange(3000), [0, 1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity": np.zeros(3)}, "similarity matrix"),
        ({"similarity": np.array([["a"]])}, "similarity matrix"),
        ({"image_id": [0, 1, 2]}, "image_id does not fit"),
        ({"text_image_id": [0]}, "text_image_id does not fit"),
        ({"text_image_id": [0.0, 1.0]}, "text_image_id does not fit"),
        ({"image_query": [True]}, "image_query does not fit"),
        ({"image_query": [0, 1]}, "image_query does not fit"),
        ({"text_query": [False, False]}, "no queries"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    good = {"similarity": np.eye(2), "image_id": [0, 1], "text_image_id": [0, 1]}
    with pytest.raises(DataError, match=message):
        retrieval_metrics(**{**good, **arguments})
