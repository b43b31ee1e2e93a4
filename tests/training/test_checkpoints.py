"""Checkpoints: complete or absent, and they say what does not fit."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mmfusion.errors import CheckpointError
from mmfusion.training import Checkpoints


def variable(value, name="weight"):
    return keras.Variable(np.asarray(value, "float32"), name=name)


def test_newest_comes_back_and_old_ones_go(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    weight = variable([0.0, 0.0])
    for step in (1, 2, 3):
        weight.assign([step, -step])
        checkpoints.save(step, [weight], {"validation": {"best": step * 0.5}})
    assert checkpoints.steps() == [2, 3]
    weight.assign([9.0, 9.0])
    assert checkpoints.restore([weight]) == {"validation": {"best": 1.5}, "step": 3}
    np.testing.assert_array_equal(weight.numpy(), [3.0, -3.0])


def test_variables_of_one_name_are_told_apart(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    first, second = variable([1.0]), variable([2.0])
    checkpoints.save(1, [first, second], {})
    first.assign([0.0]), second.assign([0.0])
    checkpoints.restore([first, second])
    assert (first.numpy()[0], second.numpy()[0]) == (1.0, 2.0)


def test_nothing_there_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "none").restore([variable([1.0])]) is None


def test_a_half_written_checkpoint_is_not_used(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    weight = variable([1.0])
    checkpoints.save(1, [weight], {})
    (tmp_path / "step-000000002").mkdir()
    (tmp_path / "step-000000002" / "state.safetensors").write_bytes(b"half")
    assert checkpoints.restore([weight])["step"] == 1


@pytest.mark.parametrize(
    "problem, message", [("shape", r"expected \[3\], found \[2\]"), ("missing", "is missing"), ("unknown", "is unknown")]
)
def test_a_checkpoint_of_another_model_names_the_tensors(tmp_path, problem, message):
    checkpoints = Checkpoints(tmp_path)
    saved = [variable([1.0, 2.0], "a")] + ([variable([1.0], "b")] if problem == "unknown" else [])
    checkpoints.save(1, saved, {})
    wanted = [variable([1.0, 2.0, 3.0] if problem == "shape" else [1.0, 2.0], "a")]
    if problem == "missing":
        wanted.append(variable([1.0], "c"))
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(wanted)


def test_a_full_disk_loses_nothing(tmp_path, full_disk):
    """A real file system without room: a small tmpfs."""
    checkpoints = Checkpoints(full_disk, keep=3)
    small, large = variable(np.ones(1000)), variable(np.ones(3_000_000), "large")
    checkpoints.save(1, [small], {})
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint .*make room.*from step 1"):
        checkpoints.save(2, [small, large], {})
    assert checkpoints.steps() == [1]
    assert not list(full_disk.glob(".partial*"))
    small.assign(np.zeros(1000))
    checkpoints.restore([small])
    assert small.numpy().sum() == 1000


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(CheckpointError, match="cannot write a checkpoint"):
        Checkpoints(blocker / "inside").save(1, [variable([1.0])], {})
