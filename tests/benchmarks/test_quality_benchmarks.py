"""The scripts that train models and write a page about them run to the end, from training to table and picture."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import BENCHMARKS, run_script

from mmfusion.config import load_recipe, save_recipe

TINY = (
    "data.image_size=24", "data.limit=64", "model.image_encoder.patch_size=12", "model.image_encoder.dim=16",
    "model.image_encoder.depth=1", "model.text_encoder.dim=16", "model.embedding_dim=8", "fusion.depth=1",
    "text.vocabulary_size=300", "text.max_tokens=8", "train.epochs=1", "train.batch_size=16", "train.validation_images=16",
    "train.validate_every=1", "evaluation.rerank_top_k=2", "evaluation.caption_images=4",
)  # fmt: skip


@pytest.mark.slow
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


def test_styles_refuses_a_run_of_other_settings(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    styles = importlib.import_module("styles")
    recipe = BENCHMARKS.parent / "configs" / "styles.yaml"
    run = tmp_path / "late"
    (run / "evaluation").mkdir(parents=True)
    (run / "evaluation" / "metrics.json").write_text("{}")
    save_recipe(load_recipe(recipe, ["fusion.style=late"], quick=True), run / "recipe.yaml")
    with pytest.raises(SystemExit, match=r"late was made with other settings \(.*train\.epochs.*; name another --folder"):
        styles.main(["--styles", "late", "--folder", str(tmp_path), "--docs", "none"])
    with pytest.raises(SystemExit, match=r"other settings \(train\.learning_rate\)"):
        styles.main(
            ["--styles", "late", "--folder", str(tmp_path), "--docs", "none", "--quick", "--set", "train.learning_rate=0.5"]
        )
    assert styles.read_arguments(["--quick"]).folder != styles.read_arguments([]).folder


def test_clips_of_other_numbers_are_other_clips(monkeypatch, tmp_path: Path) -> None:
    class Reached(Exception):
        pass

    def train(recipe: Any, folder: Path) -> None:
        trained.append(recipe.data.path)
        raise Reached

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    clips = importlib.import_module("clips")
    made: list[Path] = []
    trained: list[str] = []
    monkeypatch.setattr(clips, "make_clips", lambda folder, **_: (made.append(folder), folder.mkdir()))
    monkeypatch.setattr(clips, "train", train)
    for copies in ("1", "1", "2"):
        arguments = ["clips.py", "--variants", "still", "--folder", str(tmp_path), "--things", "2", "--copies", copies]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(Reached):
            clips.main()
    assert len(made) == 2 and trained == [str(made[0]), str(made[0]), str(made[1])] and made[0] != made[1]


@pytest.mark.slow
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
