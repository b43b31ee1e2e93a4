"""Models of other composition, from the command line to a verified export: one that matches, one that only captions."""

from __future__ import annotations

import json

import pytest
from smoke.command_line import QUICKSTART, TINY

from mmfusion.config import PRESET_NAMES

pytestmark = pytest.mark.slow
SHORT = ("data.limit=32", "train.epochs=1", "fusion.depth=1", "evaluation.retrieval_images=6", "decoding.method=greedy")


def measured(mmfusion, folder, preset: str) -> dict[str, float]:
    """The figures of a run, trained, evaluated, exported and verified."""
    tiny = [change for change in TINY if not ("encoder.depth" in change or "rerank" in change)]
    run = folder / "run"
    for arguments in (
        ("train", QUICKSTART, f"preset={preset}", *tiny, *SHORT, "--quick", "--run", run),
        ("evaluate", run),
        ("export", run, "--output", folder / "export"),
        ("verify", folder / "export", "--run", run),
    ):
        answer = mmfusion(*arguments)
        assert answer.status == 0, answer.err
    assert "DIFFERS" not in answer.out
    return json.loads((run / "evaluation" / "metrics.json").read_text())


def test_a_model_that_matches_and_guesses_words(mmfusion, tmp_path, pictures):
    content = measured(mmfusion, tmp_path, "vilt")
    figures = content["metrics"]
    assert {"rsum", "matching_accuracy", "masked_language_loss", "masked_language_accuracy"} <= set(figures)
    assert "cider_d" not in figures and "6 images" in content["meta"]["gallery"]
    assert any("ranks among 6 images" in note for note in content["meta"]["notes"])
    assert {path.name for path in (tmp_path / "run" / "evaluation").iterdir()} >= {"retrieval.png", "attention.png"}
    request = json.loads((tmp_path / "export" / "examples" / "request.json").read_text())
    assert request["signature_name"] == "match" and set(request["instances"][0]) == {"image_bytes", "text"}
    found = mmfusion("search", tmp_path / "export", "red square", pictures.folder, "--top-k", "2")
    assert found.status == 0 and found.out.count("match ") == 2 and "similarity" not in found.out
    assert found.err.count("skipped: ") == 2


def test_a_model_that_only_captions(mmfusion, tmp_path, pictures):
    content = measured(mmfusion, tmp_path, "prefix")
    assert {"cider_d", "token_loss"} <= set(content["metrics"]) and "rsum" not in content["metrics"]
    written = mmfusion("caption", tmp_path / "export", pictures.good["plain"])
    assert written.status == 0 and len(written.out.splitlines()) == 1
    refused = mmfusion("search", tmp_path / "export", "red square", pictures.folder)
    assert refused.status == 2 and "neither embeds nor matches" in refused.err


def test_presets_are_listed(mmfusion, monkeypatch):
    # As wide as a narrow terminal: what is not read by a person at one is not cut.
    monkeypatch.setenv("COLUMNS", "40")
    answer = mmfusion("presets")
    assert "…" not in answer.out and answer.out.splitlines()[1 + len(PRESET_NAMES)] == ""
    assert answer.out.endswith("  blip2: 'train.freeze=[\"^image_encoder/\"]'\n")
    (blip,) = (line for line in answer.out.splitlines() if line.startswith("blip "))
    assert blip.rstrip().endswith("  contrastive (softmax), matching, captioning")
    assert answer.status == 0 and all(any(line.startswith(name) for line in answer.out.splitlines()) for name in PRESET_NAMES)
    assert "tiny, small, base" in mmfusion("presets", "--size", "huge").err
