"""Drawn scenes with known truth: what tells a caption from its swap, and where its words look."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from mmfusion.data import draw_scenes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = [pytest.mark.slow, pytest.mark.tensorflow_only]


@pytest.fixture
def scenes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scenes

    yield scenes
    # Its name is a plain one: nobody else should find it.
    del sys.modules["scenes"]


def test_pointing_is_the_middle_of_the_strongest_patch(scenes):
    test = draw_scenes(3, seed=1, grid=scenes.GRID)
    rows, columns = np.moveaxis(test.boxes[..., :2] // scenes.PATCH, -1, 0)
    maps = np.zeros((3, 2, scenes.GRID, scenes.GRID), "float32")
    for scene in range(2):
        maps[scene, [0, 1], rows[scene], columns[scene]] = 1.0
    maps[1] = maps[1, ::-1]
    # Of the third scene the maps are flat: nothing is pointed at.
    assert scenes.pointing_hits(maps, test).tolist() == [[True, True], [False, False], [False, False]]


@pytest.fixture
def small(scenes, monkeypatch):
    """Nine cells instead of sixteen, so that a minute will do."""
    monkeypatch.setattr(scenes, "SIZE", 24)
    monkeypatch.setattr(scenes, "GRID", 3)
    return scenes


def trained(scenes, name: str, steps: int):
    """What a model can do after so many steps."""
    keras.utils.set_random_seed(0)
    training, test = (
        draw_scenes(count, seed=seed, pairs=pairs, size=24, grid=3)
        for count, seed, pairs in ((6000, 1, "train"), (400, 2, "held_out"))
    )
    task = scenes.build(name)
    ids = scenes.same_objects(training) if name == "dual" else None
    scenes.train(task, training, steps=steps, ids=ids)
    return scenes.measure(name, task, test)


def test_cross_attention_tells_a_caption_from_its_swap_and_points_at_what_it_names(small):
    result = trained(small, "cross", 1200)
    assert result.choice > 0.9 and result.words > 0.9 and result.pointing > 0.8


def test_a_dual_encoder_knows_the_words_and_not_their_order(small):
    result = trained(small, "dual", 500)
    assert result.words > 0.8 and 0.4 < result.choice < 0.6 and result.pointing is None
