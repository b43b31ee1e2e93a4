"""Figures: files, axes, frames; no text over other text; no warnings."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmfusion.errors import DataError
from mmfusion.evaluation import draw_captions, draw_learning_curves, draw_retrieval
from mmfusion.evaluation.drawing import RIGHT, as_pixels, contact_sheet, displayable, new_figure, wrap_text

ODD = (
    "costs $5 or $6 \U0001f469\U0001f3fd\u200d\U0001f9b1 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 "
    "\u4f60\u597d \U000e0041 \x07 " + "very" * 30
)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def picture(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check_png(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 1000


def text_boxes(figure) -> list:
    """Boxes of all texts, in pixels."""
    renderer = figure.canvas.get_renderer()
    texts = [*figure.texts, *(text for axes in figure.axes for text in (*axes.texts, axes.title))]
    return [text.get_window_extent(renderer) for text in texts if text.get_text()]


def assert_no_overlap_and_inside(figure) -> None:
    figure.canvas.draw()
    boxes = text_boxes(figure)
    for index, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        for other in boxes[index + 1 :]:
            assert not box.overlaps(other)


def test_retrieval_rows_frames_and_ranks(tmp_path: Path) -> None:
    images = [
        [picture(0), picture(1, 60, 40), picture(2)],
        [picture(3, 30, 30) / 255.0, picture(4)[..., :1], picture(4)],
        [picture(5, 20, 200)],
    ]
    right = [[False, True, False], [False, False, False], [True]]
    figure = draw_retrieval(
        ["a red dog", ODD, ""], images, right, tmp_path / "a" / "retrieval.png", ranks=[2, 17, 1], title=ODD,
        scores=[[0.9, 0.5, 0.25], [-1.5, -2.0, -1234567.0], [1e-9]],
    )  # fmt: skip
    check_png(tmp_path / "a" / "retrieval.png")
    assert len(figure.axes) == 3 + 7
    framed = [
        bool(axes.images) and axes.spines["left"].get_linewidth() > 2 and axes.title.get_color() == RIGHT for axes in figure.axes
    ]
    assert framed == [False, False, True, False, False, False, False, False, False, True]
    assert figure.axes[2].get_title() == "2   0.5   ✓"
    assert [text.get_text() for text in figure.axes[4].texts][1] == "right one at rank 17"
    assert_no_overlap_and_inside(figure)


def test_retrieval_without_knowing_what_is_right() -> None:
    figure = draw_retrieval(["a dog"], [[picture(0), picture(1)]])
    assert [axes.get_title() for axes in figure.axes] == ["", "1", "2"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["a dog"]


def test_captions(tmp_path: Path) -> None:
    images = [picture(index, *size) for index, size in enumerate([(40, 60), (60, 40), (50, 50), (20, 200), (200, 20)])]
    captions = ["a dog", ODD, "", "two cats on a mat " * 9, "a"]
    references = [["a hound"], [ODD], ["x"], ["some long words " * 20], []]
    figure = draw_captions(images, captions, references, tmp_path / "captions.png", columns=3, title="Captions")
    check_png(tmp_path / "captions.png")
    assert len(figure.axes) == 5
    assert "(empty)" in [text.get_text() for text in figure.texts]
    assert_no_overlap_and_inside(figure)
    assert len(draw_captions(images, captions).axes) == 5


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: draw_retrieval([], []), "nothing to draw"),
        (lambda: draw_retrieval(["a"], [[]]), "nothing to draw"),
        (lambda: draw_retrieval(["a"], []), "expected 1 each, found 0 images"),
        (
            lambda: draw_retrieval(["a"], [[picture(0)]], [[]]),
            r"differ in length \[query 0\]: expected 1, found 0 right",
        ),
        (lambda: draw_retrieval(["a"], [[picture(0)]], scores=[[1.0, 2.0]]), "found 2 scores"),
        (lambda: draw_retrieval(["a"], [[picture(0)[..., :2]]]), r"not an image to draw \[query 0, image 0\]"),
        (lambda: draw_captions([], []), "nothing to draw"),
        (lambda: draw_captions([picture(0)], []), "expected 1 each, found 0 captions"),
        (lambda: draw_captions([picture(0)], ["a"], references=[]), "1 captions, 0 references"),
        (
            lambda: draw_captions([np.full((4, 4, 3), -2.0)], ["a"]),
            "floats in 0..1, found -2..-2; draw the image as it was before",
        ),
        (lambda: draw_captions([np.full((4, 4, 3), np.nan)], ["a"]), "floats in 0..1"),
        (lambda: draw_captions([np.zeros((4, 4, 3), np.int32)], ["a"]), "uint8 or floats"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw()


def write_log(path: Path) -> Path:
    lines = []
    for step in range(10, 101, 10):
        lines.append({"kind": "step", "step": step, "epoch": 0, "time": 1.0, "learning_rate": 1e-3, "loss": 1 / step})
        if step % 50 == 0:
            figures = {f"val_{way}_r{k}": k * step / 20 for way in ("i2t", "t2i") for k in (1, 5, 10)}
            lines.append({**lines[-1], "kind": "epoch", "val_loss": 2 / step, "val_rsum": 3.0, "val_cider_d": 0.5, **figures})
    path.write_text("\n".join(map(json.dumps, lines)) + '\n[1]\nnull\n{"kind": "st')
    return path


def test_learning_curves(tmp_path: Path) -> None:
    figure = draw_learning_curves(write_log(tmp_path / "log.jsonl"), tmp_path / "curves.png", title="a $run$")
    check_png(tmp_path / "curves.png")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "loss",
        "image to text, recall %",
        "text to image, recall %",
        "sum of recalls",
        "CIDEr-D",
        "learning rate",
    ]
    loss, recall = figure.axes[0].lines, figure.axes[1].lines
    assert [line.get_label() for line in loss] == ["training", "validation"]
    assert loss[0].get_xdata().tolist() == list(range(10, 101, 10))
    assert loss[1].get_ydata().tolist() == pytest.approx([2 / 50, 2 / 100])
    assert [line.get_label() for line in recall] == ["R@1", "R@5", "R@10"]
    assert recall[2].get_ydata().tolist() == [25.0, 50.0]


def test_learning_curves_of_infinite_losses_still_draw(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n{"step": 3, "loss": 1}\n')
    draw_learning_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    check_png(tmp_path / "curves.png")


def test_a_log_without_figures_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the training log"):
        draw_learning_curves(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DataError, match="nothing to draw"):
        draw_learning_curves(tmp_path / "empty.jsonl")


def test_a_figure_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write the figure"):
        draw_captions([picture(0)], ["a"], path=tmp_path / "captions.nonsense")


def test_text_is_wrapped_to_measure() -> None:
    figure = new_figure(4, 3)
    wrapped = wrap_text(figure, "a dog " * 40 + "W" * 90, 1.5, size=10, max_lines=50)
    assert wrapped.replace("\n", "").replace(" ", "") == "adog" * 40 + "W" * 90
    box = figure.text(0, 0, wrapped, size=10).get_window_extent(figure.canvas.get_renderer())
    assert box.width <= 1.5 * figure.dpi + 1
    assert wrap_text(figure, "a dog " * 40, 1.5, size=10, max_lines=2).count("\n") == 1
    assert wrap_text(figure, "", 1.5, size=10) == ""
    assert wrap_text(figure, "ab", 0.001, size=10, max_lines=9) == "a\nb"


def test_every_character_that_is_left_can_be_shown() -> None:
    assert displayable("a\tb\nc\u200e\ufe0f") == "a b c"
    assert displayable("\U0001faa9\U0001faa9 x") == "□ x"
    # No glyph is missing in anything that can be written: a missing one would warn, and warnings are errors here.
    figure = new_figure(8, 8)
    signs = [chr(code) for code in [*range(0x20, 0x3000, 7), *range(0x1F300, 0x1FA00, 11)]]
    figure.text(0, 0, displayable("".join(signs)), parse_math=False)
    figure.canvas.draw()


def test_pixels() -> None:
    assert as_pixels(np.array([[0.0, 1.0]])).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert as_pixels(picture(0)).flags.writeable


def test_figures_leave_no_global_state() -> None:
    draw_captions([picture(0)], ["a"])
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_a_contact_sheet_keeps_the_order_of_frames() -> None:
    frames = np.stack([np.full((24, 48, 3), 10 * (index + 1), np.uint8) for index in range(5)])
    sheet = contact_sheet(frames)
    assert sheet.shape == (2 * 24 + 1, 3 * 48 + 2, 3)
    centres = [[int(sheet[12 + 25 * row, 24 + 49 * column, 0]) for column in range(3)] for row in range(2)]
    assert centres == [[10, 20, 30], [40, 50, 255]]
    assert (sheet[24] == 255).all() and (sheet[:24, 48] == 255).all()
    assert contact_sheet(frames, columns=9).shape == (24, 5 * 48 + 4, 3)
    np.testing.assert_array_equal(contact_sheet(frames[:1]), frames[0])
