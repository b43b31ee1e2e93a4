"""The scripts that train models and write a page about them run to the end, from training to table and picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_scripts import run_script

TINY = (
    "data.image_size=24", "data.limit=64", "model.image_encoder.patch_size=12", "model.image_encoder.dim=16",
    "model.image_encoder.depth=1", "model.text_encoder.dim=16", "model.embedding_dim=8", "fusion.depth=1",
    "text.vocabulary_size=300", "text.max_tokens=8", "train.epochs=1", "train.batch_size=16", "train.validation_images=16",
    "train.validate_every=1", "evaluation.rerank_top_k=2", "evaluation.caption_images=4",
)  # fmt: skip
pytestmark = pytest.mark.slow


def test_styles(tmp_path: Path) -> None:
    page = tmp_path / "styles.md"
    settings = [part for value in TINY for part in ("--set", value)]
    places = ("--folder", str(tmp_path / "runs"), "--docs", str(page))
    (line,), _ = run_script(
        "styles.py", "--styles", "late", *places, "--rounds", "1", "--steps", "1", "--device", "cpu", *settings
    )
    details = line["details"]
    assert line["name"] == "styles.late.training_step" and details["steps"] == 4 and details["image_tokens"] == 4
    assert 0 <= details["matching_accuracy"] <= 1 and details["metrics"]["cider_d"] >= 0
    (row,) = [text for text in page.read_text(encoding="utf-8").splitlines() if text.startswith("| `late`")]
    assert f"{details['parameters'] / 1e6:.2f} M" in row and "nan" not in row and row.count("–") == 0


def test_scenes(tmp_path: Path) -> None:
    page, figure = tmp_path / "scenes.md", tmp_path / "scenes.png"
    page.write_text("# Mine\n\n<!-- table -->\nold\n<!-- end of table -->\n\nkept\n", encoding="utf-8")
    places = ("--folder", str(tmp_path / "runs"), "--docs", str(page), "--figure", str(figure))
    lines, _ = run_script(
        "scenes.py", "--models", "cross", "dual", "--steps", "2", "--scenes", "128", "--test-scenes", "8", *places
    )
    assert [line["name"] for line in lines] == ["scenes.cross.choice", "scenes.dual.choice"]
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Mine") and text.endswith("kept\n") and "old" not in text
    assert "| `cross` |" in text and "| `dual` |" in text and figure.read_bytes().startswith(b"\x89PNG")
