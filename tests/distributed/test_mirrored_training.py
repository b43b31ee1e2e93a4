"""`train` on two logical devices equals `train` on one with the same global batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmfusion.config import recipe_from_dict
from mmfusion.errors import ConfigError
from mmfusion.training import train

BATCH = 16


def recipe(strategy: str, *, steps: int, **train_options):
    tower = {"dim": 16, "depth": 1, "num_heads": 2}
    return recipe_from_dict(
        {
            "name": "mirrored",
            "data": {"source": "builtin", "image_size": 24, "limit": BATCH * steps, "augment": {"crop_scale": [0.7, 1.0]}},
            "text": {"vocabulary_size": 200, "max_tokens": 8},
            "model": {
                "embedding_dim": 8,
                "image_encoder": {**tower, "patch_size": 12}, "text_encoder": tower,
            },
            "fusion": {"depth": 1, "num_heads": 2},
            "train": {
                "epochs": 1, "batch_size": BATCH, "learning_rate": 1e-2, "warmup": 0.0, "clip_norm": 0.5, "strategy": strategy,
                "devices": 2 if strategy == "mirrored" else None, "validation_images": BATCH, "tensorboard": False,
                **train_options,
            },
        }
    )  # fmt: skip


def trained(folder: Path, strategy: str, *, steps: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    result = train(recipe(strategy, steps=steps), folder)
    assert result.step == steps
    row = json.loads(result.folder.train_log.read_text().splitlines()[-1])
    state = load_file(result.folder.checkpoints / f"step-{steps:09d}" / "state.safetensors")
    return row, state


@pytest.mark.slow
def test_two_replicas_equal_one(tmp_path):
    steps = 3
    one_log, one = trained(tmp_path / "one", "one", steps=steps)
    two_log, two = trained(tmp_path / "two", "mirrored", steps=steps)
    assert one_log["gradient_norm"] > 0.5, "nothing was clipped: the order of clipping and summing was not tried"
    for name, value in one_log.items():
        if name in ("kind", "time"):
            continue
        # Ranks among pictures that an untrained model hardly tells apart are rounding's to decide: a picture or two may differ.
        ranks = name == "val_rsum" or name.startswith(("val_i2t_r", "val_t2i_r"))
        tolerance = {"atol": 200 / BATCH} if ranks else {"rtol": 2e-5, "atol": 1e-6}
        np.testing.assert_allclose(two_log[name], value, **tolerance, err_msg=name)
    assert set(one) == set(two)
    for name, value in one.items():
        if name.endswith("key/bias"):
            continue  # Softmax does not see it: its gradient is rounding alone, which Adam makes a whole step of.
        # Adam's first steps divide by the gradient's size: a gradient of rounding errors alone moves a weight by the whole rate.
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=5e-5, err_msg=name)


def test_more_devices_than_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.devices.*at most 2, found 64"):
        train(recipe("mirrored", steps=1, devices=64), tmp_path)


def test_a_batch_that_does_not_divide(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.batch_size.*a multiple of 2, found 15"):
        train(recipe("mirrored", steps=1, batch_size=15), tmp_path)
