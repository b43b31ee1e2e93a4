"""Drawn scenes with known truth: what tells a caption from its swap, and where its words look."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
from benchmark_scripts import BENCHMARKS
from gradients import tensorflow_only

from mmfusion.data import draw_scenes

pytestmark = [pytest.mark.slow, tensorflow_only]


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


def trained(scenes, name: str, steps: int):
    """What a model can do after so many steps."""
    keras.utils.set_random_seed(0)
    training = draw_scenes(12_000, seed=1, pairs="train", grid=scenes.GRID)
    test = draw_scenes(400, seed=2, pairs="held_out", grid=scenes.GRID)
    task = scenes.build(name)
    scenes.train(task, training, steps=steps)
    return scenes.measure(name, task, test)


def test_cross_attention_tells_a_caption_from_its_swap_and_points_at_what_it_names(scenes):
    # Words are known after 300 steps, places after about 700.
    result = trained(scenes, "cross", 1200)
    assert result.choice > 0.9 and result.words > 0.9 and min(result.pointing) > 0.8


def test_a_dual_encoder_knows_the_words_and_not_their_order(scenes):
    result = trained(scenes, "dual", 500)
    assert result.words > 0.8 and 0.4 < result.choice < 0.6 and result.pointing is None
