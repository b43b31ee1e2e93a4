"""Clips through the command line: made, trained on, evaluated, exported, verified, captioned and searched."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from smoke.command_line import REPOSITORY, TINY_MODEL

pytestmark = pytest.mark.slow

VIDEO = REPOSITORY / "configs" / "video.yaml"
OPTIONS = (
    *TINY_MODEL, "data.image_size=16", "model.image_encoder.patch_size=8", "data.frames=3", "train.batch_size=8",
    "train.validation_images=8", "evaluation.caption_images=4", "evaluation.rerank_top_k=2", "decoding.method=greedy",
    "text.vocabulary_size=60",
)  # fmt: skip


def test_the_whole_way(mmfusion, tmp_path):
    clips, run, export = tmp_path / "clips", tmp_path / "run", tmp_path / "export"
    made = mmfusion("data", "make-clips", clips, "--things", 2, "--copies", 2)
    assert (made.status, made.out.strip()) == (0, f"written: {clips / 'captions.jsonl'}")
    assert mmfusion("data", "make-clips", clips).status == 2
    # A clip that cannot be read is skipped, and listed.
    broken = next((clips / "images").glob("*left-1.gif"))
    broken.write_bytes(broken.read_bytes()[:400])
    checked = mmfusion("data", "check", clips)
    assert "frames, or pictures a row" in checked.out and "8: 23" in checked.out.replace("│", " ")
    options = [*OPTIONS, f"data.path={clips}", "data.max_bad_share=0.1"]
    trained = mmfusion("train", VIDEO, *options, "--quick", "--run", run)
    assert trained.status == 0, trained.err
    assert broken.name in (run / "quarantine.jsonl").read_text()
    # Finished: it says so, and changes nothing.
    assert mmfusion("train", VIDEO, *options, "--quick", "--run", run).status == 0
    evaluated = mmfusion("evaluate", run)
    assert evaluated.status == 0, evaluated.err
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert "up to 3 pictures" in (run / "evaluation" / "metrics.md").read_text()
    assert all(np.isfinite(value) for value in metrics["metrics"].values())
    # Three frames in two rows of two, in one of five columns; the attention's strip is wider than high.
    for name in ("retrieval.png", "captions.png", "attention.png"):
        assert Image.open(run / "evaluation" / name).size[0] > 300
    assert mmfusion("export", run, "--output", export).status == 0
    verified = mmfusion("verify", export, "--run", run)
    assert verified.status == 0, verified.out + verified.err
    described = json.loads((export / "mmfusion.json").read_text())
    assert (described["frames"], described["several_images"], described["grid"]) == (3, False, [3, 2, 2])
    assert "Clips (animated GIFs) of up to 3 frames" in (export / "README.md").read_text()
    assert Image.open(export / "examples" / "picture.gif").n_frames > 1
    captioned = mmfusion("caption", export, export / "examples" / "picture.gif", broken)
    assert captioned.status == 2 and "picture.gif: " in captioned.out and broken.name in captioned.err
    found = mmfusion("search", export, "dog face moves left", clips / "images", "--picture", tmp_path / "hits.png")
    assert found.status == 0 and found.out.count("similarity") == 5 and (tmp_path / "hits.png").is_file()


def test_what_does_not_go_together_is_one_line(mmfusion, tmp_path):
    for options, line in (
        (("data.frames=1",), "data.frames]: expected at least 2 for video, found 1"),
        (("model.image_encoder.kind=vit",), "attention]: expected none, since kind vit does not know it (kind video does)"),
        (("model.image_encoder.tubelet_size=3",), "tubelet_size]: expected a divisor of data.frames 4, found 3"),
    ):
        answer = mmfusion("train", VIDEO, *options, "--run", tmp_path / "run")
        assert answer.status == 2 and line in answer.err and answer.err.count("\n") == 1
