"""Drawn scenes with known truth: what tells a caption from its swap, and where its words look."""

from __future__ import annotations

import sys
from pathlib import Path

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
