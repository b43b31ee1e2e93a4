"""LiteRT exports: one file, its signatures, whole and with int8 weights, asked with and without TensorFlow."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from portable_checks import (
    OUTPUTS,
    assert_answers_alike,
    assert_bad_input_is_told,
    assert_script_runs,
    description_of,
    outputs,
)
from untrained import untrained_run

from mmfusion.errors import ExportError
from mmfusion.export import export_portable, load, verify_export
from mmfusion.export.litert import litert_model
from mmfusion.export.numeric_functions import NumericFunction
from mmfusion.training import load_run
from mmfusion.training.callbacks import save_model

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def litert(exports, run) -> Path:
    return export_portable(run, exports / "litert", kind="litert")


def test_verified_in_a_process_without_tensorflow(litert, run):
    rows = verify_export(litert, run)
    assert outputs(rows) == OUTPUTS and all(row.passed for row in rows)
    assert {row.tolerance for row in rows} == {1e-4}


def test_answers_like_the_run(litert, run, pictures):
    exported = load(litert, batch_size=2)
    assert_answers_alike(exported, run, pictures)
    assert_bad_input_is_told(exported, pictures)


def test_the_script_beside_it_runs(litert, tmp_path):
    assert_script_runs(litert, tmp_path)


def test_its_description_names_the_tensors_of_the_file(litert):
    from ai_edge_litert.interpreter import Interpreter

    described = description_of(litert)
    assert described["kind"] == "litert" and described["batch_size"] is None
    signatures = Interpreter(model_path=str(litert / "model.tflite")).get_signature_list()
    assert set(signatures) == set(described["functions"])
    for name, function in described["functions"].items():
        assert set(signatures[name]["inputs"]) == set(function["inputs"])
        assert set(signatures[name]["outputs"]) == set(function["outputs"])


def test_a_recurrent_fusion_with_one_batch_size(exports, pictures):
    # Its loops over tokens are laid out; beams and examples are filled up to the graph's number.
    fusion = {"style": "recurrent", "depth": 1, "num_heads": 2}
    run = load_run(untrained_run(exports / "recurrent", fusion=fusion))
    export = export_portable(run, exports / "recurrent-litert", kind="litert", batch_size=4)
    assert all(row.passed for row in verify_export(export, run))
    assert_answers_alike(load(export), run, pictures)
    assert description_of(export)["functions"]["encode_image"]["inputs"]["pixels"] == "float32[4, 24, 32, 3]"


def test_merged_with_int8_weights(exports, litert):
    sizes = {"dim": 64, "depth": 1, "num_heads": 2}
    model = {
        "embedding_dim": 12, "heads": ["contrastive", "matching", "captioning"], "image_encoder": {"patch_size": 8, **sizes},
        "text_encoder": sizes,
    }  # fmt: skip
    path = untrained_run(exports / "merged", model=model, fusion={"style": "merged", "depth": 1, "num_heads": 2})
    run = load_run(path)
    for weight in run.model.trainable_weights:
        # As they start: with larger ones a small error of a weight is a large one of what comes out.
        weight.assign(weight / 3.0)
    save_model(run.model, run.folder.best_model)
    export = export_portable(run, exports / "merged-int8", kind="litert-int8")
    weights = 4 * run.model.count_params()
    assert (export / "model.tflite").stat().st_size < 0.75 * weights
    rows = {row.output: row for row in verify_export(export, run)}
    assert outputs(list(rows.values())) == OUTPUTS - {"caption/score"} and all(row.passed for row in rows.values())
    # Not the float32 weights: a difference there is, and it is told.
    assert rows["encode_image/embedding (1 - cosine)"].difference > 1e-6
    strict = verify_export(export, run, tolerance=1e-7)
    assert not all(row.passed for row in strict)


def test_what_litert_lacks_is_refused_by_name():
    dense = keras.layers.Dense(3)
    dense.build((None, 3))

    def solve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.linalg.det(dense(x)[None])}

    spec = tf.TensorSpec([3, 3], tf.float32, name="x")
    function = NumericFunction.traced(solve, {"x": spec})
    with pytest.raises(ExportError, match=r"operators that LiteRT does not have.*expected TFLITE_BUILTINS, found .*Determinant"):
        litert_model({"solve": function}, dense.variables)


def test_refused_before_anything_is_written(run, tmp_path):
    for options, message in (
        ({"kind": "coreml"}, "unknown format of export: expected saved_model, litert, litert-int8, onnx, found 'coreml'"),
        ({"kind": "litert", "batch_size": 0}, "impossible batch size: expected at least 1, found 0"),
    ):
        with pytest.raises(ExportError, match=message):
            export_portable(run, tmp_path / "export", **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(ExportError, match="no export of mmfusion"):
        export_portable(run, tmp_path / "mine", kind="litert", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_broken_export_and_a_missing_runtime_are_told(litert, tmp_path, monkeypatch):
    for name, content in (("short", b"no model"), ("away", None)):
        shutil.copytree(litert, tmp_path / name)
        (tmp_path / name / "model.tflite").unlink()
        if content is not None:
            (tmp_path / name / "model.tflite").write_bytes(content)
        with pytest.raises(ExportError, match="broken export"):
            load(tmp_path / name)
    # As if it were not installed: what is None there cannot be imported.
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ExportError, match=r"a package is missing: .*pip install 'mmfusion\[litert\]'"):
        load(litert)


def test_another_run_is_refused(litert, tmp_path):
    keras.utils.set_random_seed(1)
    with pytest.raises(ExportError, match="not made from the model"):
        verify_export(litert, load_run(untrained_run(tmp_path / "other")))
    described = description_of(litert)
    assert np.all([len(described["weights"]) == 64, described["decoding"]["options"]["beam_size"] == 2])
