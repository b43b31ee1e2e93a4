"""Drawn scenes with known truth: two coloured shapes, how they lie to each other, and where each of them is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmfusion.errors import ConfigError

COLOURS = {
    "red": (220, 40, 40), "green": (50, 180, 70), "blue": (60, 90, 230), "yellow": (235, 205, 50), "purple": (150, 60, 190),
    "white": (240, 240, 240),
}  # fmt: skip
SHAPES = ("square", "circle", "triangle", "cross")
RELATIONS = ("left", "right", "above", "below")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COLOURS, *SHAPES, *RELATIONS, "of")
"""The words of all captions; a word's place is its id."""
MAX_TOKENS = 8
_ID = {word: index for index, word in enumerate(VOCABULARY)}
_CONVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_OBJECTS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
_HELD_OUT = 5  # one in five pairs of objects


class DrawnScenes(NamedTuple):
    """Scenes of a first and a second object.

    Attributes:
        images: ``uint8[N, S, S, 3]``.
        captions: What is so: "red square left of blue circle".
        retold: The same told from the other object: "blue circle right of red square".
        swaps: What is not, in the same words: "blue circle left of red square".
        others: What is not, for one word: "red square left of blue cross".
        token_ids: ``int32[N, 8]`` of the captions, ids of `VOCABULARY`, [CLS] first, [SEP] last, then padding.
        retold_ids: ``int32[N, 8]`` of the captions retold.
        swap_ids: ``int32[N, 8]`` of the swaps.
        other_ids: ``int32[N, 8]`` of the others.
        token_mask: ``bool[N, 8]`` of all four, ``True`` = real token.
        object_places: ``int32[N, 2, 2]``, where in a caption the two words of each object stand.
        boxes: ``int32[N, 2, 4]``, where in the picture each object is: top, left, bottom, right; the last two are one past it.
        scene_id: ``int32[N]``, the same for scenes of the same objects and relation, however drawn and described.
    """

    images: np.ndarray
    captions: list[str]
    retold: list[str]
    swaps: list[str]
    others: list[str]
    token_ids: np.ndarray
    retold_ids: np.ndarray
    swap_ids: np.ndarray
    other_ids: np.ndarray
    token_mask: np.ndarray
    object_places: np.ndarray
    boxes: np.ndarray
    scene_id: np.ndarray


def draw_scenes(count: int, *, seed: int = 0, size: int = 32, pairs: str = "all", grid: int | None = None) -> DrawnScenes:
    """Draws scenes: colours, shapes, relation, places, sizes and background are random; no two objects of a scene are alike.

    A caption and its swap have the same words, so a model that only notices which things are there cannot tell them apart.

    Args:
        count: How many, N.
        seed: The same seed draws the same scenes. Default 0.
        size: Side of the pictures in pixels, S, at least 24. Default 32.
        pairs: Which pairs of objects occur: ``"train"`` leaves out one in five, ``"held_out"`` has no other. Default ``"all"``.
        grid: Cells a side, at least 3 and of at least 6 pixels each: every object then lies inside a cell of its own, so that
            patches of a cell's size hold it whole, and finding it is not a matter of seeing well. Default None: anywhere.

    Returns:
        The `DrawnScenes`.

    Raises:
        ConfigError: If an argument is impossible.

    Example:
        >>> from mmfusion.data import draw_scenes
        >>> scenes = draw_scenes(2, seed=1)
        >>> scenes.images.shape, len(set(scenes.captions[0].split()) ^ set(scenes.swaps[0].split()))
        ((2, 32, 32, 3), 0)
    """
    if count < 1 or size < 24 or pairs not in ("train", "held_out", "all"):
        expected = "count of at least 1, size of at least 24, pairs train, held_out or all"
        raise ConfigError("impossible scenes", expected=expected, found=f"{count}, {size}, {pairs!r}")
    if grid is not None and (grid < 3 or size % grid or size // grid < 6):
        raise ConfigError(
            "impossible grid", expected="at least 3 cells a side, each of 6 whole pixels or more", found=f"{grid} in {size}"
        )
    random = np.random.default_rng(seed)
    kept = [pair for pair in _pairs() if pairs == "all" or _is_held_out(pair) == (pairs == "held_out")]
    images = np.empty((count, size, size, 3), np.uint8)
    boxes = np.empty((count, 2, 4), np.int32)
    captions, retold, swaps, others, scene_id = [], [], [], [], np.empty(count, np.int32)
    for row in range(count):
        first, second = kept[random.integers(len(kept))]
        relation = RELATIONS[random.integers(len(RELATIONS))]
        boxes[row] = _place(random, size, relation) if grid is None else _place_in_cells(random, size // grid, grid, relation)
        images[row] = _draw(random, size, (first, second), boxes[row])
        captions.append(_caption(first, relation, second))
        retold.append(_caption(second, _CONVERSE[relation], first))
        swaps.append(_caption(second, relation, first))
        others.append(
            _caption(_other(random, first), relation, second)
            if random.random() < 0.5
            else _caption(first, relation, _other(random, second))
        )
        scene_id[row] = _scene_id(first, relation, second)
    token_ids, retold_ids, swap_ids, other_ids = (_tokens(texts) for texts in (captions, retold, swaps, others))
    of = np.asarray([" of " in caption for caption in captions], np.int32)
    places = np.stack([np.tile([1, 2], (count, 1)), np.stack([4 + of, 5 + of], axis=1)], axis=1).astype(np.int32)
    mask = token_ids > 0
    texts = (captions, retold, swaps, others, token_ids, retold_ids, swap_ids, other_ids, mask)
    return DrawnScenes(images, *texts, places, boxes, scene_id)


def _pairs() -> list[tuple[int, int]]:
    """Pairs of objects that differ in colour and in shape: else a word would tell where the other is."""
    numbers = range(len(_OBJECTS))
    return [(a, b) for a in numbers for b in numbers if all(x != y for x, y in zip(_OBJECTS[a], _OBJECTS[b], strict=True))]


def _is_held_out(pair: tuple[int, int]) -> bool:
    # Both orders of a pair are held out together, spread over all objects.
    low, high = sorted(pair)
    return (low * 7 + high * 3) % _HELD_OUT == 0


def _other(random: np.random.Generator, number: int) -> int:
    """An object of another colour or of another shape; since those of a scene differ in both, it is not there."""
    colour, shape = _OBJECTS[number]
    alike = [index for index, (a, b) in enumerate(_OBJECTS) if (a == colour) != (b == shape)]
    return alike[random.integers(len(alike))]


def _caption(first: int, relation: str, second: int) -> str:
    words = [*_OBJECTS[first], relation, *(["of"] if relation in ("left", "right") else []), *_OBJECTS[second]]
    return " ".join(words)


def _scene_id(first: int, relation: str, second: int) -> int:
    if relation in ("right", "below"):
        # "a right of b" is "b left of a".
        first, second, relation = second, first, _CONVERSE[relation]
    return (first * len(_OBJECTS) + second) * len(RELATIONS) + RELATIONS.index(relation)


def _tokens(captions: list[str]) -> np.ndarray:
    token_ids = np.zeros((len(captions), MAX_TOKENS), np.int32)
    for row, caption in enumerate(captions):
        ids = [_ID["[CLS]"], *(_ID[word] for word in caption.split()), _ID["[SEP]"]]
        token_ids[row, : len(ids)] = ids
    return token_ids


def _place(random: np.random.Generator, size: int, relation: str) -> np.ndarray:
    """Two boxes, the first in the relation to the second; they never touch, and lie further apart along it than across."""
    while True:
        sides = random.integers(round(0.26 * size), round(0.36 * size) + 1, 2)
        corners = np.stack([random.integers(0, size - side + 1, 2) for side in sides])
        centres = corners + sides[:, None] / 2
        along, across = _apart(centres, relation)
        if along >= sides.sum() / 2 + 1 and along > 1.5 * across:
            break
    return _ordered(sides, corners, relation)


def _place_in_cells(random: np.random.Generator, cell: int, grid: int, relation: str) -> np.ndarray:
    """As `_place`, each box inside a cell of its own."""
    while True:
        cells = random.integers(0, grid, (2, 2))
        along, across = _apart(cells, relation)
        if along > across:
            break
    sides = random.integers(round(0.65 * cell), cell + 1, 2)
    corners = cells * cell + np.stack([random.integers(0, cell - side + 1, 2) for side in sides])
    return _ordered(sides, corners, relation)


def _axis(relation: str) -> int:
    """Of a (row, column) pair, the one that a relation is about."""
    return 1 if relation in ("left", "right") else 0


def _apart(points: np.ndarray, relation: str) -> np.ndarray:
    """How far two (row, column) points lie apart, along the relation and across it."""
    axis = _axis(relation)
    return np.abs(points[0] - points[1])[[axis, 1 - axis]]


def _ordered(sides: np.ndarray, corners: np.ndarray, relation: str) -> np.ndarray:
    axis = _axis(relation)
    first_is_before = relation in ("left", "above")
    if (corners[0, axis] < corners[1, axis]) != first_is_before:
        sides, corners = sides[::-1], corners[::-1]
    return np.concatenate([corners, corners + sides[:, None]], axis=1)


def _draw(random: np.random.Generator, size: int, objects: tuple[int, int], boxes: np.ndarray) -> np.ndarray:
    picture = random.integers(0, 60) + random.integers(0, 30, (size, size, 3))
    for number, (top, left, bottom, right) in zip(objects, boxes, strict=True):
        colour, shape = _OBJECTS[number]
        paint = np.asarray(COLOURS[colour]) + random.integers(-15, 16, 3)
        rows, columns = np.mgrid[top:bottom, left:right]
        # From -1 to 1 over the box.
        y, x = (2 * (rows - top) + 1) / (bottom - top) - 1, (2 * (columns - left) + 1) / (right - left) - 1
        inside = {
            "square": np.ones_like(x, bool),
            "circle": x**2 + y**2 <= 1.0,
            "triangle": np.abs(x) <= (y + 1) / 2,
            "cross": np.minimum(np.abs(x), np.abs(y)) <= 0.34,
        }[shape]
        picture[rows[inside], columns[inside]] = paint
    return np.clip(picture, 0, 255).astype(np.uint8)
