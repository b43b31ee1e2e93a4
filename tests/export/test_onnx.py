"""ONNX exports: a file a function, asked with and without TensorFlow."""

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
from mmfusion.export.numeric_functions import NumericFunction
from mmfusion.export.onnx_models import onnx_model
from mmfusion.training import LoadedRun, load_run

pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def co_run(exports) -> LoadedRun:
    return load_run(untrained_run(exports / "co", fusion={"style": "co", "depth": 1, "num_heads": 2}))


@pytest.fixture(scope="module")
def onnx_export(exports, co_run) -> Path:
    return export_portable(co_run, exports / "onnx", kind="onnx")


def test_verified_in_a_process_without_tensorflow(onnx_export, co_run):
    rows = verify_export(onnx_export, co_run)
    assert outputs(rows) == OUTPUTS and all(row.passed for row in rows)


def test_answers_like_the_run(onnx_export, co_run, pictures):
    exported = load(onnx_export, batch_size=2)
    assert_answers_alike(exported, co_run, pictures)
    assert_bad_input_is_told(exported, pictures)


def test_the_script_beside_it_runs(onnx_export, tmp_path):
    assert_script_runs(onnx_export, tmp_path)


def test_its_description_names_the_tensors_of_the_files(onnx_export):
    import onnx

    described = description_of(onnx_export)
    assert described["kind"] == "onnx"
    for name, function in described["functions"].items():
        graph = onnx.load(str(onnx_export / f"{name}.onnx")).graph
        # What no output depends on is no input of a file.
        assert {put.name for put in graph.input} <= set(function["inputs"])
        assert {put.name for put in graph.output} == set(function["outputs"])
        batched = [put for put in graph.input if put.type.tensor_type.shape.dim]
        assert {put.type.tensor_type.shape.dim[0].dim_param for put in batched} == {"batch"}


def test_qformer_of_bfloat16_is_computed_in_float32(exports):
    import onnx

    fusion = {"style": "qformer", "depth": 2, "num_heads": 2, "num_queries": 4}
    train = {"monitor": "val_loss", "precision": "bfloat16"}
    run = load_run(untrained_run(exports / "qformer", "captioning", fusion=fusion, train=train))
    assert run.model.image_encoder.compute_dtype == "bfloat16"
    export = export_portable(run, exports / "qformer-onnx", kind="onnx")
    assert load(export).signatures == ("caption",)
    rows = verify_export(export, run)
    assert outputs(rows) == {"caption_step/logits", "caption/token_ids", "caption/score"} and all(row.passed for row in rows)
    # The weights came after the conversion, each matrix as it is in the model that was converted.
    graph = onnx.load(str(export / "caption_step.onnx")).graph
    whole = [weight for weight in graph.initializer if weight.name.startswith("weight_")]
    assert len(whole) > 20 and max(np.prod(w.dims) for w in graph.initializer if w not in whole) < 16 * 16


@pytest.mark.parametrize("start", [-1, 0, 2, 9])
def test_a_block_is_written_as_tensorflow_writes_it(start):
    # Outside it is moved inside.
    def update(whole: tf.Tensor, block: tf.Tensor, at: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": keras.ops.slice_update(whole, (0, at, 0), block)}

    import onnxruntime

    specs = {
        "whole": tf.TensorSpec([None, 4, 3], tf.float32), "block": tf.TensorSpec([None, 1, 3], tf.float32),
        "at": tf.TensorSpec([], tf.int32),
    }  # fmt: skip
    model = onnx_model("update", NumericFunction.traced(update, specs), [])
    whole, block = np.arange(24, dtype="float32").reshape(2, 4, 3), -np.ones((2, 1, 3), "float32")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(["y"], {"whole": whole, "block": block, "at": np.array(start, "int32")})
    expected = whole.copy()
    expected[:, min(max(start, 0), 3)] = -1
    np.testing.assert_array_equal(found, expected)


def test_what_is_not_chosen_does_not_come_through():
    import onnxruntime

    specs = {"x": tf.TensorSpec([3, 1], name="x"), "y": tf.TensorSpec([1, 2], name="y")}
    model = onnx_model("where", NumericFunction.traced(lambda x, y: {"out": tf.where(x > 0.0, x, y)}, specs), [])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x, y = np.array([[1.0], [-1.0], [np.inf]], "float32"), np.array([[np.nan, np.inf]], "float32")
    (found,) = session.run(["out"], {"x": x, "y": y})
    np.testing.assert_array_equal(found, np.where(x > 0, x, y))


def test_weights_are_of_the_model_and_no_input():
    import onnxruntime

    dense, unused = keras.layers.Dense(3), keras.Variable(np.ones(1000, "float32"))
    dense.build((None, 2))
    dense.bias.assign([1.0, 2.0, 3.0])
    function = NumericFunction.traced(lambda x: {"y": dense(x)}, {"x": tf.TensorSpec([None, 2], tf.float32)})
    model = onnx_model("dense", function, [*dense.variables, unused])
    assert [put.name for put in model.graph.input] == ["x"] and model.ByteSize() < 2000
    session, x = onnxruntime.InferenceSession(model.SerializeToString()), np.array([[1.0, -2.0]], "float32")
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], np.asarray(dense(x)), atol=1e-6)


def test_a_weight_that_is_not_given_is_told():
    variable = keras.Variable(np.ones(2, "float32"), name="stray")
    function = NumericFunction.traced(lambda x: {"y": x * variable}, {"x": tf.TensorSpec([2], tf.float32)})
    with pytest.raises(ExportError, match=r"cannot convert the model \[product\].*not given: stray"):
        onnx_model("product", function, [])


def test_what_onnx_lacks_is_refused_by_name():
    spec = tf.TensorSpec([None], tf.float32, name="x")
    function = NumericFunction.traced(lambda x: {"y": tf.math.bessel_i0(x)}, {"x": spec})
    with pytest.raises(ExportError, match=r"operators that ONNX does not have \[bessel\]: expected opset 18, found BesselI0"):
        onnx_model("bessel", function, [])


def test_a_window_on_many_patches_goes_through(exports):
    # More patches than the window, which is then moved along them.
    sizes = {"dim": 16, "depth": 1, "num_heads": 2}
    encoders = {"image_encoder": {"patch_size": 2, "kernel": "local", **sizes}, "text_encoder": sizes}
    model = {"embedding_dim": 12, "heads": ["contrastive"], **encoders}
    run = load_run(untrained_run(exports / "local", "contrastive", model=model, fusion={}))
    export = export_portable(run, exports / "local-onnx", kind="onnx")
    rows = verify_export(export, run)
    assert outputs(rows) == {"encode_image/embedding", "encode_text/embedding"} and all(row.passed for row in rows)


def test_a_broken_export_and_a_missing_runtime_are_told(onnx_export, co_run, tmp_path, monkeypatch):
    for name, content in (("short", b"no model"), ("away", None)):
        shutil.copytree(onnx_export, tmp_path / name)
        (tmp_path / name / "match.onnx").unlink()
        if content is not None:
            (tmp_path / name / "match.onnx").write_bytes(content)
        with pytest.raises(ExportError, match=r"broken export.*match\.onnx"):
            load(tmp_path / name)
    # As if they were not installed: what is None there cannot be imported.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "tf2onnx.convert", None)
    for ask in (lambda: load(onnx_export), lambda: export_portable(co_run, tmp_path / "new", kind="onnx")):
        with pytest.raises(ExportError, match=r"a package is missing: .*pip install 'mmfusion\[onnx\]'"):
            ask()
    assert not (tmp_path / "new").exists()
