"""Attention overlays: the right maps in the right places, files, labels, errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmfusion.errors import ConfigError, DataError
from mmfusion.explain import attention_maps, draw_attention_overlay

TOKENS = ["[CLS]", "a", "dog", "##gy", "a", "[SEP]", "[PAD]"]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.fixture
def attention() -> np.ndarray:
    """Two layers, three heads, a grid of 4 x 6; token t looks at cell t, in the last layer."""
    scores = np.zeros((2, 3, len(TOKENS), 4, 6), np.float32)
    for token in range(len(TOKENS)):
        scores[1, :, token, token % 4, token % 6] = 1.0
    scores[0] = 1 / 24
    return scores


def test_maps_average_the_chosen_layers_and_heads() -> None:
    scores = np.random.default_rng(1).random((3, 4, 2, 5, 6))
    assert attention_maps(scores) == pytest.approx(scores.mean((0, 1)))
    assert attention_maps(scores, layers=[-1], heads=[0, 2]) == pytest.approx(scores[2][[0, 2]].mean(0))
    assert attention_maps(scores.astype(np.float16), layers=[1]).dtype == np.float64


def test_a_panel_for_the_image_and_one_for_each_word(tmp_path: Path, image: np.ndarray, attention: np.ndarray) -> None:
    figure = draw_attention_overlay(image, attention, TOKENS, tmp_path / "new" / "overlay.png", columns=3)
    assert (tmp_path / "new" / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_label() for axes in figure.axes] == ["image", "a", "dog", "##gy", "a"]
    assert [len(axes.images) for axes in figure.axes] == [1, 2, 2, 2, 2]
    assert figure.texts[0].get_text() == "a doggy a"
    places = {tuple(np.round(axes.get_position().p0, 4)) for axes in figure.axes}
    assert len(places) == 5


def test_heat_lies_over_the_patch_that_is_attended_to(image: np.ndarray, attention: np.ndarray) -> None:
    figure = draw_attention_overlay(image, attention, TOKENS, layers=[1])
    for token, axes in zip((1, 2, 3, 4), figure.axes[1:], strict=True):
        base, heat = axes.images
        assert base.get_extent() == heat.get_extent()
        values = np.asarray(heat.get_array())
        assert values.shape == image.shape[:2]
        row, column = np.unravel_index(values.argmax(), values.shape)
        # Patches are 15 x 15 pixels here.
        assert (row // 15, column // 15) == (token % 4, token % 6)
        assert values.max() == pytest.approx(1.0) and values.min() == 0.0


def test_shared_scale_keeps_tokens_comparable(image: np.ndarray, attention: np.ndarray) -> None:
    attention[:, :, 2] *= 0.5
    own = draw_attention_overlay(image, attention, TOKENS, layers=[1])
    shared = draw_attention_overlay(image, attention, TOKENS, layers=[1], scale="shared")
    assert [round(float(axes.images[1].get_array().max()), 6) for axes in own.axes[1:]] == [1.0, 1.0, 1.0, 1.0]
    assert [round(float(axes.images[1].get_array().max()), 6) for axes in shared.axes[1:]] == [1.0, 0.5, 1.0, 1.0]


def test_even_attention_is_drawn_cold(image: np.ndarray) -> None:
    figure = draw_attention_overlay(image, np.full((1, 1, 1, 3, 3), 1 / 9), ["dog"])
    assert not np.asarray(figure.axes[1].images[1].get_array()).any()


@pytest.mark.parametrize("shape", [(224, 224), (20, 400), (400, 20), (1, 1)])
def test_odd_images_and_odd_words(tmp_path: Path, shape: tuple[int, int]) -> None:
    tokens = [
        "$5",
        "\U0001f469\U0001f3fd\u200d\U0001f9b1",
        "\u05e9\u05dc\u05d5\u05dd",
        "\u0645\u0631",
        "\u4f60",
        "x" * 99,
        "_a",
    ]
    attention = np.random.default_rng(0).random((1, 2, len(tokens), 3, 7))
    figure = draw_attention_overlay(
        np.ones((*shape, 3)), attention, [token.encode() for token in tokens], tmp_path / "overlay.png"
    )
    assert len(figure.axes) == 1 + len(tokens)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts if text.get_text()]
    assert len(boxes) == len(tokens)
    assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[index + 1 :])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attention": np.zeros((3, 7, 4, 6))}, DataError, r"\[layers, heads, T, rows, cols\]"),
        ({"attention": np.zeros((1, 1, 0, 4, 6))}, DataError, "wrong shape"),
        ({"attention": np.full((1, 1, 7, 2, 2), np.nan)}, DataError, "NaN"),
        ({"tokens": ["a"]}, DataError, "expected 7 tokens, found 1"),
        ({"tokens": ["[PAD]"] * 7}, DataError, "nothing to draw"),
        ({"image": np.zeros((4, 4, 3)) - 1}, DataError, "before normalisation"),
        ({"layers": [2]}, ConfigError, "no such layers"),
        ({"layers": []}, ConfigError, "no such layers"),
        ({"heads": [-4]}, ConfigError, "no such heads"),
        ({"scale": "log"}, ConfigError, "no such scale"),
        ({"opacity": 2.0}, ConfigError, "opacity"),
    ],
)
def test_errors(image: np.ndarray, attention: np.ndarray, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw_attention_overlay(**{"image": image, "attention": attention, "tokens": TOKENS, **options})


def test_a_clip_is_a_strip_and_heat_lies_over_the_right_frame(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)
    attention = np.zeros((1, 2, 3, 2, 3, 4), np.float32)  # two tubelets of two frames each
    attention[:, :, 0, 0, 1, 2] = attention[:, :, 1, 1, 2, 0] = attention[:, :, 2, 1, 0, 3] = 1.0
    figure = draw_attention_overlay(clip, attention, ["dog", "moves", "left"], tmp_path / "strip.png")
    assert [axes.get_label() for axes in figure.axes] == ["image", "dog", "moves", "left"]
    for axes, (tubelet, row, column) in zip(figure.axes[1:], [(0, 1, 2), (1, 2, 0), (1, 0, 3)], strict=True):
        base, heat = (np.asarray(image.get_array()) for image in axes.images)
        np.testing.assert_array_equal(base, np.concatenate(clip, axis=1))
        assert heat.shape == (30, 160)
        frames = heat.reshape(30, 4, 40).transpose(1, 0, 2)
        assert (frames.max((1, 2)) > 0.85).tolist() == [frame // 2 == tubelet for frame in range(4)]
        for frame in frames[2 * tubelet : 2 * tubelet + 2]:
            place = np.unravel_index(frame.argmax(), frame.shape)
            assert (place[0] // 10, place[1] // 10) == (row, column)
    with pytest.raises(DataError, match="frames and attention differ in number.*multiple of 2, found 3"):
        draw_attention_overlay(clip[:3], attention, ["dog", "moves", "left"])
