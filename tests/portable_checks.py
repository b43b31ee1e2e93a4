"""What LiteRT and ONNX exports are asked alike: their answers beside the run's, their script, their description."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmfusion.errors import DataError, ExportError
from mmfusion.export import Comparison, Predictor, load
from mmfusion.training import LoadedRun

SENTENCES = ["a dog on the sand", "the man smiling.", "", "red heart " * 9, "cats"]
OUTPUTS = {
    "encode_image/embedding", "encode_text/embedding", "match/score", "match/similarity", "caption/token_ids", "caption/score",
    "caption_step/logits",
}  # fmt: skip


def outputs(rows: list[Comparison]) -> set[str]:
    """Names of what was compared, without what they say of the measure."""
    return {row.output.partition(" ")[0] for row in rows}


def assert_answers_alike(exported: Predictor, run: LoadedRun, pictures: list[bytes]) -> None:
    """One interface, the same answers, captions of the run's own beams among them."""
    expected = load(run.folder.path)
    assert set(exported.signatures) == set(expected.signatures) - {"attend"}
    np.testing.assert_allclose(exported.encode_image(pictures), expected.encode_image(pictures), atol=1e-4)
    np.testing.assert_allclose(exported.encode_text(SENTENCES), expected.encode_text(SENTENCES), atol=1e-4)
    np.testing.assert_allclose(exported.match(pictures, SENTENCES), expected.match(pictures, SENTENCES), atol=1e-4)
    ours, theirs = exported.caption(pictures), expected.caption(pictures)
    assert [caption.text for caption in ours] == [caption.text for caption in theirs]
    np.testing.assert_allclose([caption.score for caption in ours], [caption.score for caption in theirs], atol=1e-4)
    # Fewer tokens than the graph's own number.
    ids = run.tokenizer(SENTENCES[:2])
    short = exported.functions["encode_text_ids"](token_ids=ids.token_ids[:, :7], token_mask=ids.token_mask[:, :7])
    whole = expected.functions["encode_text_ids"](token_ids=ids.token_ids[:, :7], token_mask=ids.token_mask[:, :7])
    np.testing.assert_allclose(short["embedding"], whole["embedding"], atol=1e-4)


def assert_bad_input_is_told(exported: Predictor, pictures: list[bytes]) -> None:
    """As over a run."""
    with pytest.raises(DataError, match="not a readable image"):
        exported.encode_image([pictures[0], b"this is a text"])
    with pytest.raises(ExportError, match=r"cannot attend: .*expected attend, found caption, encode_image"):
        exported.attend(pictures[0], "a dog")


def assert_script_runs(export: Path, folder: Path) -> None:
    """With nothing of this repository at hand, from token ids and the picture beside it."""
    command = [sys.executable, str(export / "examples" / "run.py"), str(export / "examples" / "picture.jpg"), "2", "4", "6", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    for output in OUTPUTS:
        assert output in done.stdout
    assert done.stdout.splitlines()[-1].startswith("caption: ")


def description_of(export: Path) -> dict:
    """What stands beside it; the state is told whole."""
    described = json.loads((export / "mmfusion.json").read_text())
    step = described["functions"]["caption_step"]
    assert (
        set(described["state"]) == set(described["functions"]["caption_start"]["outputs"]) == set(step["inputs"]) - {"token_ids"}
    )
    assert {after for after in described["state"].values() if after} == set(step["outputs"]) - {"logits"}
    # The picture's own keys and values are not handed from step to step.
    assert None in described["state"].values()
    assert {path.name for path in export.iterdir()} >= {"recipe.yaml", "vocabulary.txt", "README.md", "examples"}
    return described
