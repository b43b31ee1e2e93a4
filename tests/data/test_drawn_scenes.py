"""Drawn scenes: what a caption says is what the picture shows."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.data import draw_scenes
from mmfusion.data.drawn_scenes import COLOURS, VOCABULARY
from mmfusion.errors import ConfigError

BOTH = pytest.mark.parametrize("grid", [None, 4])


def colour_inside(image: np.ndarray, box: np.ndarray) -> str:
    """The colour whose paint lies nearest to the brightest pixels of a box."""
    top, left, bottom, right = box
    pixels = image[top:bottom, left:right].reshape(-1, 3).astype(int)
    paint = pixels[np.argmax(pixels.max(axis=1))]
    return min(COLOURS, key=lambda name: np.abs(paint - COLOURS[name]).sum())


@BOTH
def test_captions_tell_what_is_drawn(grid):
    scenes = draw_scenes(200, seed=3, grid=grid)
    for row, caption in enumerate(scenes.captions):
        words = caption.split()
        relation = words[2]
        (top, left, bottom, right), (second_top, second_left, second_bottom, second_right) = scenes.boxes[row]
        apart = {
            "left": right <= second_left, "right": second_right <= left,
            "above": bottom <= second_top, "below": second_bottom <= top,
        }  # fmt: skip
        assert apart[relation], caption
        assert [colour_inside(scenes.images[row], box) for box in scenes.boxes[row]] == [words[0], words[-2]]


def test_retold_is_the_same_from_the_other_side():
    scenes = draw_scenes(100, seed=4)
    converse = {"left": "right", "right": "left", "above": "below", "below": "above"}
    for row, (caption, retold) in enumerate(zip(scenes.captions, scenes.retold, strict=True)):
        words, others = caption.split(), retold.split()
        assert (others[:2], others[2], others[-2:]) == (words[-2:], converse[words[2]], words[:2])
        assert [VOCABULARY[number] for number in scenes.retold_ids[row][scenes.token_mask[row]]] == ["[CLS]", *others, "[SEP]"]


def test_swaps_have_the_same_words_and_others_one_that_is_not_there():
    scenes = draw_scenes(100, seed=4)
    for caption, swap, other in zip(scenes.captions, scenes.swaps, scenes.others, strict=True):
        assert sorted(caption.split()) == sorted(swap.split()) and caption != swap
        assert sum(a != b for a, b in zip(caption.split(), other.split(), strict=True)) == 1


def test_ids_and_places_are_of_the_words():
    scenes = draw_scenes(50, seed=5)
    for row, caption in enumerate(scenes.captions):
        ids = scenes.token_ids[row][scenes.token_mask[row]]
        assert [VOCABULARY[number] for number in ids] == ["[CLS]", *caption.split(), "[SEP]"]
        words = [VOCABULARY[number] for number in scenes.token_ids[row][scenes.object_places[row]].ravel()]
        assert words == [*caption.split()[:2], *caption.split()[-2:]]


def test_held_out_pairs_are_not_in_training():
    def pairs(which: str) -> set[frozenset[str]]:
        captions = draw_scenes(2000, seed=6, pairs=which).captions
        return {frozenset((" ".join(caption.split()[:2]), " ".join(caption.split()[-2:]))) for caption in captions}

    training, held_out = pairs("train"), pairs("held_out")
    assert not training & held_out and len(held_out) > 20


def test_cells_of_a_grid_hold_objects_whole():
    scenes = draw_scenes(300, seed=7, size=36, grid=6)
    top, left, bottom, right = np.moveaxis(scenes.boxes, -1, 0)
    assert (top // 6 == (bottom - 1) // 6).all() and (left // 6 == (right - 1) // 6).all()
    assert len({(int(a), int(b)) for a, b in zip((top // 6).ravel(), (left // 6).ravel(), strict=True)}) == 36


def test_the_same_seed_draws_the_same():
    for one, two in zip(draw_scenes(5, seed=8), draw_scenes(5, seed=8), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (draw_scenes(5, seed=8).images != draw_scenes(5, seed=9).images).any()


@pytest.mark.parametrize("options", [{"count": 0}, {"size": 20}, {"pairs": "test"}])
def test_impossible_scenes(options):
    with pytest.raises(ConfigError, match="impossible scenes"):
        draw_scenes(**{"count": 2, **options})


@pytest.mark.parametrize("grid", [2, 5, 8])
def test_impossible_grid(grid):
    with pytest.raises(ConfigError, match="impossible grid.*at least 3 cells"):
        draw_scenes(2, grid=grid)
