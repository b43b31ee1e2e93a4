"""The pointing game on maps made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.errors import DataError
from mmfusion.explain import Pointing, pointing_game

SIZE = (32, 32)


def hot(*cells: tuple[int, int], grid: tuple[int, int] = (4, 4)) -> np.ndarray:
    heat = np.zeros((1, *grid))
    for row, column in cells:
        heat[0, row, column] = 1.0
    return heat


@pytest.mark.parametrize(("heat", "box", "expected"), [
    (hot((1, 2)), (8, 16, 16, 24), (1.0, 1.0, 1.0)),
    (hot((1, 1)), (8, 16, 16, 24), (0.0, 0.0, 0.0)),
    # The box is half of the hot patch, and holds its middle.
    (hot((1, 2)), (8, 16, 16, 21), (1.0, 0.625, 0.625)),
    # Less than half of it: the middle lies outside.
    (hot((1, 2)), (8, 16, 16, 19), (0.0, 0.375, 0.375)),
    # Two patches equally hot, one in the box.
    (hot((1, 2), (3, 3)), (8, 16, 16, 24), (0.5, 0.5, 1.0)),
    # Two patches, and the box takes both.
    (hot((1, 2), (1, 3)), (8, 16, 16, 32), (1.0, 1.0, 1.0)),
])  # fmt: skip
def test_by_hand(heat, box, expected):
    found = pointing_game(heat, [box], SIZE)
    np.testing.assert_allclose(found[:3], expected, atol=1e-9)
    np.testing.assert_allclose(found.chance, (box[2] - box[0]) * (box[3] - box[1]) / 1024)


def test_means_over_maps_and_grids_that_are_no_squares():
    heat = np.concatenate([hot((0, 1), grid=(2, 3)), hot((0, 1), grid=(2, 3))])
    found = pointing_game(heat, [(0, 20, 20, 40), (20, 0, 40, 20)], size=(40, 60))
    assert found == Pointing(0.5, 0.5, 0.5, 1 / 6, 2)


def test_an_even_map_scores_chance():
    random = np.random.default_rng(0)
    corners = random.integers(0, 20, (50, 2))
    boxes = np.concatenate([corners, corners + 8], axis=1)
    found = pointing_game(np.full((50, 16, 16), 1 / 256), boxes, SIZE)
    assert abs(found.hits - found.chance) < 0.01 and abs(found.energy - found.chance) < 1e-9
    assert pointing_game(np.zeros((50, 16, 16)), boxes, SIZE).energy == pytest.approx(found.chance)


@pytest.mark.parametrize(("heat", "boxes", "message"), [
    (np.zeros((2, 4, 4)), [(0, 0, 8, 8)], r"do not fit.*found \[2, 4, 4\] and \[1, 4\]"),
    (np.full((1, 4, 4), np.nan), [(0, 0, 8, 8)], "holds NaN"),
    (np.full((1, 4, 4), -1.0), [(0, 0, 8, 8)], "less than 0"),
    (np.zeros((1, 4, 4)), [(0, 0, 8, 40)], r"\[box 0\].*found \[0.0, 0.0, 8.0, 40.0\]"),
    (np.zeros((1, 4, 4)), [(8, 8, 8, 16)], "empty"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(heat, boxes, message):
    with pytest.raises(DataError, match=message):
        pointing_game(heat, boxes, SIZE)
