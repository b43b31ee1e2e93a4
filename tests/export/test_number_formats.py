"""Runs that compute in other number formats, and SavedModels of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from untrained import untrained_run

from mmfusion.errors import ConfigError, ExportError
from mmfusion.export import export_model, export_portable, load, verify_export
from mmfusion.training import LoadedRun, load_run
from mmfusion.training.callbacks import save_model

TEXTS = ["a dog", "the man sits on the sand", "a red heart"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> LoadedRun:
    """A run whose attention does not leap to another place with the last bit of a number, as that of large weights does."""
    run = load_run(untrained_run(tmp_path_factory.mktemp("formats") / "run"))
    for weight in run.model.trainable_weights:
        weight.assign(weight / 3.0)
    save_model(run.model, run.folder.best_model)
    return run


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_run_in_another_format(precision: str, calm, pictures) -> None:
    """Near what the run says as it was trained; numbers stay float32."""
    trained, found = load(calm.folder.path), load(calm.folder.path, precision=precision)
    assert found.signatures == trained.signatures
    expected, answer = trained.encode_image(pictures), found.encode_image(pictures)
    assert answer.dtype == np.float32 and np.all(np.sum(expected * answer, axis=-1) > 0.99)
    assert np.max(np.abs(answer - expected)) > 1e-5
    scores = found.match(pictures[:3], TEXTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, trained.match(pictures[:3], TEXTS), atol=0.05)
    (written,) = found.captions(pictures[:1], method="greedy")
    *_, last = found.stream_caption(pictures[0])
    assert last == written[0].text and written[0].score < 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_exported_and_verified(precision: str, calm, pictures, tmp_path) -> None:
    """In a process that knows TensorFlow alone: the answers of the model in that format, near those of the trained one."""
    half = calm.in_number_format(precision)
    exported = export_model(half, tmp_path / "export")
    described = json.loads((exported / "mmfusion.json").read_text())
    assert described["precision"] == precision and f"brought to {precision}" in (exported / "README.md").read_text()
    rows = verify_export(exported, calm)
    assert [row.output for row in rows if not row.passed] == []
    costs = [row for row in rows if row.output.endswith(", beside the model as trained")]
    assert {row.output.split(" ")[0].rstrip(",") for row in costs} == {
        "encode_image/embedding", "encode_text/embedding", "encode_text_ids/embedding", "match/score", "match/similarity",
        "caption/caption", "attend/attention",
    }  # fmt: skip
    assert {row.tolerance for row in rows if row not in costs} == {2e-2, 0.0}
    # They are other numbers than float32's.
    assert max(row.difference for row in costs if "embedding" in row.output) > 1e-7
    stored = tf.train.load_checkpoint(str(exported / "variables" / "variables")).get_variable_to_dtype_map().values()
    kept = {tf.bfloat16} if precision == "bfloat16" else {tf.int8}
    assert kept <= set(stored) and sum(dtype in kept for dtype in stored) >= 4
    loaded = tf.saved_model.load(str(exported))
    for name in ("encode_image", "encode_text", "encode_text_ids", "match"):
        assert {spec.dtype for spec in loaded.signatures[name].structured_outputs.values()} == {tf.float32}
    with pytest.raises(ExportError, match="number format was chosen when it was made .*mmfusion export RUN --precision"):
        load(exported, precision="float32")
    with pytest.raises(ExportError, match=f"different number formats .*: expected {precision}, found float16"):
        verify_export(exported, calm.in_number_format("float16"))


def test_refusals(calm, tmp_path) -> None:
    silent = tmp_path / "litert"
    silent.mkdir()
    (silent / "mmfusion.json").write_text(json.dumps({"kind": "litert", "several_images": False}))
    with pytest.raises(ExportError, match="number format was chosen when it was made .*found precision bfloat16"):
        load(silent, precision="bfloat16")
    with pytest.raises(ConfigError, match="unknown number format .*found 'bf16'"):
        load_run(calm.folder.path, precision="bf16")
    # LiteRT's int8 is its own.
    with pytest.raises(ConfigError, match="weights are quantised"):
        export_portable(calm.in_number_format("int8"), tmp_path / "none", kind="litert")
    assert not Path(tmp_path / "none").exists()
