"""Reading checkpoints, forms of tensors, and filling a model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import to_numpy
from safetensors.numpy import save_file

from mmfusion.convert import Tensors, fill, read_config, read_state
from mmfusion.convert.reading import ratio_of
from mmfusion.convert.tensors import dense, difference, flattened, placed_token, rows, third
from mmfusion.errors import CheckpointError, ConfigError


def model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(2, name="second")])


STATE = {"a.weight": np.arange(6.0).reshape(2, 3), "a.bias": np.ones(2), "b": np.eye(2)}
TABLE = {"layers": {"0": dense("a"), "1": {"kernel": "b", "bias": Tensors(("b", "a.bias"), lambda b, bias: b[0] + bias)}}}


def test_a_table_of_tables_is_one_of_weights():
    assert list(flattened(TABLE)) == ["layers.0.kernel", "layers.0.bias", "layers.1.kernel", "layers.1.bias"]
    ours = model()
    fill(ours, TABLE, STATE, family="two layers")
    x = np.array([[1.0, -2.0, 0.5]], "float32")
    expected = (x @ STATE["a.weight"].T + 1.0) + np.array([2.0, 1.0])
    np.testing.assert_allclose(to_numpy(ours(x)), expected, atol=1e-6)


def test_nothing_is_changed_where_something_is_wrong():
    ours = model()
    before = [weight.numpy().copy() for weight in ours.weights]
    with pytest.raises(CheckpointError, match=r"expected layers.1.kernel \[2, 2\].*found b \[2, 4\]"):
        fill(ours, TABLE, {**STATE, "b": np.ones((2, 4))}, family="two layers")
    for weight, value in zip(ours.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), value)
    with pytest.raises(CheckpointError, match="leaves weights without a source.*second/bias"):
        fill(ours, {"layers.0": dense("a"), "layers.1.kernel": "b"}, STATE, family="two layers")
    fill(ours, {"layers.0": dense("a"), "layers.1.kernel": "b"}, STATE, family="two layers", kept=("layers.1.bias",))
    with pytest.raises(CheckpointError, match=r"the model has no such part \[layers.7.kernel\]: found no 7"):
        fill(ours, {"layers.7.kernel": "b"}, STATE, family="two layers")
    fill(ours, TABLE, {**STATE, "steps": np.zeros(1)}, family="two layers", ignored=("^steps$",))


def test_many_faults_are_counted():
    state = {**STATE, **{f"more.{index}": np.zeros(1) for index in range(9)}}
    with pytest.raises(CheckpointError, match=r"left over more.5 \[1\] and 3 more"):
        fill(model(), TABLE, state, family="two layers")


def test_forms():
    fused = np.arange(18.0).reshape(9, 2)
    np.testing.assert_array_equal(third("x", 1).form(fused), fused[3:6].T)
    np.testing.assert_array_equal(difference("x").form(np.array([[1.0, 2.0], [5.0, 0.0]])), [4.0, -2.0])
    places = np.arange(6.0).reshape(1, 3, 2)
    np.testing.assert_array_equal(placed_token("x", "y", -1).form(np.ones((1, 1, 2)), places), [5.0, 6.0])
    np.testing.assert_array_equal(rows("x", 1, None).form(places), [[2.0, 3.0], [4.0, 5.0]])
    for broken, tensors in ((np.ones((4, 2)), third("x", 0)), (np.ones((3, 2)), difference("x"))):
        with pytest.raises(ValueError):
            tensors.form(broken)
    for hidden in range(1, 60):
        assert all(int(dim * ratio_of(hidden, dim)) == hidden for dim in (7, 12, 49, 768))


def test_reading(tmp_path):
    save_file({"half": np.ones((2, 2), np.float16)}, tmp_path / "x.safetensors")
    assert read_state(tmp_path / "x.safetensors")["half"].dtype == np.float16
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        read_state(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="a pickle can run code"):
        read_state(tmp_path / "pytorch_model.bin")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a JSON object, found list"):
        read_config(tmp_path / "list.json")
    with pytest.raises(ConfigError, match="a JSON file"):
        read_config(tmp_path / "none.json")
