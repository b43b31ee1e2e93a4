"""A folder of pictures, a real FAISS index, and the same search by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from untrained import untrained_run

from mmfusion.errors import DataError
from mmfusion.export import load
from mmfusion.retrieval import ImageIndex, list_images


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load(untrained_run(tmp_path_factory.mktemp("run")))


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "inner").mkdir()
    for number in range(40):
        pixels = np.full((20, 20, 3), random.integers(0, 256, 3), np.uint8)
        place = tmp_path / ("inner" if number % 3 == 0 else ".") / f"{number:02d}.png"
        place.write_bytes(tf.io.encode_png(pixels).numpy())
    (tmp_path / "notes.txt").write_text("no picture, and not called one")
    return tmp_path


def test_search_equals_brute_force(predictor, folder):
    paths = list_images(folder)
    assert len(paths) == 40 and all(path.suffix == ".png" for path in paths)
    index = ImageIndex(predictor)
    seen = []
    index.add(paths[:7])
    index.add(paths[7:], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (33, 33)
    similarity = predictor.encode_image(paths) @ predictor.encode_text(["a red heart"])[0]
    order = np.argsort(-similarity)
    hits = index.search("a red heart", top_k=10)
    assert [hit.path for hit in hits] == [paths[row] for row in order[:10]]
    np.testing.assert_allclose([hit.similarity for hit in hits], similarity[order[:10]], atol=1e-5)
    assert [hit.match for hit in hits] == [None] * 10


def test_reranking_orders_the_candidates_by_the_matching_head(predictor, folder):
    paths = list_images(folder)
    index = ImageIndex(predictor)
    index.add(paths)
    candidates = [hit.path for hit in index.search("a dog", top_k=6)]
    scores = predictor.match(candidates, ["a dog"] * 6)
    hits = index.search("a dog", top_k=6, rerank=6)
    assert [hit.path for hit in hits] == [candidates[row] for row in np.argsort(-scores, kind="stable")]
    np.testing.assert_allclose([hit.match for hit in hits], np.sort(scores)[::-1], atol=1e-5)
    assert {hit.path for hit in index.search("a dog", top_k=3, rerank=6)} <= set(candidates)


def test_more_than_there_are_gives_all(predictor, folder):
    index = ImageIndex(predictor)
    index.add(list_images(folder)[:3])
    assert len(index.search("a cat", top_k=50, rerank=50)) == 3


def test_unreadable_pictures_are_skipped_and_listed(predictor, folder):
    (folder / "05.png").write_bytes(b"this is a text")
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:40])
    index = ImageIndex(predictor)
    index.add(list_images(folder))
    assert {path.name for path, _ in index.unreadable} == {"05.png", "07.png"}
    assert all("not a readable image" in reason for _, reason in index.unreadable)
    assert len(index.paths) == 38 and len(index.search("a cat", top_k=40)) == 38


def test_what_cannot_be_searched_is_said(predictor, folder):
    index = ImageIndex(predictor)
    with pytest.raises(DataError, match="the index is empty"):
        index.search("a cat")
    index.add(list_images(folder)[:2])
    with pytest.raises(DataError, match="empty query"):
        index.search("  ")
    with pytest.raises(DataError, match="too long"):
        index.search("x" * 5000)
    with pytest.raises(DataError, match="away"):
        list_images(folder / "away")
