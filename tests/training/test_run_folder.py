"""RunFolder: what was trained is kept by its recipe; a start that failed binds nobody."""

from __future__ import annotations

import pytest

from mmfusion.config import load_recipe, recipe_from_dict
from mmfusion.errors import CheckpointError, ConfigError
from mmfusion.training import RunFolder


def recipe(**train):
    return recipe_from_dict({"name": "kept", "train": train})


def test_a_failed_start_binds_nobody(tmp_path):
    run = RunFolder(tmp_path)
    run.start(recipe(epochs=1))
    run.vocabulary.write_text("half")
    run.start(recipe(epochs=2))
    assert load_recipe(run.recipe).train.epochs == 2 and not run.vocabulary.exists()


@pytest.mark.parametrize("trained", ["checkpoints/step-000000003/progress.json", "best.keras"])
def test_what_was_trained_keeps_its_recipe(trained, tmp_path):
    run = RunFolder(tmp_path)
    run.start(recipe(epochs=1))
    run.vocabulary.write_text("kept")
    (tmp_path / trained).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / trained).touch()
    with pytest.raises(ConfigError, match=r"another recipe.*changes in train\.epochs;"):
        run.start(recipe(epochs=2))
    run.start(recipe(epochs=1, keep=5))
    assert load_recipe(run.recipe).train.keep == 5 and run.vocabulary.read_text() == "kept"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot create the run folder"):
        RunFolder(tmp_path / "file" / "run").start(recipe())
