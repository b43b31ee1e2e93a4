"""The objectives of a recipe: what goes together, and what does not."""

from __future__ import annotations

import pytest

from mmfusion.config import recipe_from_dict
from mmfusion.errors import ConfigError
from mmfusion.training.objectives import build_objectives


def test_options_reach_the_terms():
    objective = {
        "z_loss": 1e-4, "contrastive": {"z_loss": 0.5}, "captioning": {"attention_coverage": 0.25},
    }  # fmt: skip
    contrastive, matching, captioning = build_objectives(recipe_from_dict({"objective": objective}))
    assert (contrastive.z_loss, captioning.z_loss, captioning.attention_coverage) == (0.5, 1e-4, 0.25)
    assert not hasattr(matching, "z_loss")
    sigmoid = {"z_loss": 1e-4, "contrastive": {"loss": "sigmoid"}}
    assert build_objectives(recipe_from_dict({"objective": sigmoid}))[0].z_loss == 0.0


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"momentum": {}, "contrastive": {"loss": "sigmoid"}}, r"objective\.momentum: expected none|objective\.momentum\]"),
        ({"momentum": {}, "contrastive": None}, "no contrastive and no masked_language term to distil"),
        ({"momentum": {"queue_size": 8}}, r"objective\.momentum\.queue_size.*at least train\.batch_size 64"),
        ({"momentum": {"decay": 1.1}}, r"objective\.momentum\.decay.*from 0 to 1"),
        ({"momentum": {"dekay": 1.0}}, "did you mean objective.momentum.decay"),
        ({"contrastive": {"loss": "sigmoid", "z_loss": 0.1}}, "expected 0 with loss sigmoid"),
        ({"masked_language": {}}, "model.heads lacks masked_language"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(objective, message):
    with pytest.raises(ConfigError, match=message):
        recipe_from_dict({"objective": objective})


def test_a_queue_is_optional():
    assert recipe_from_dict({"objective": {"momentum": {"queue_size": 0}}}).objective.momentum.queue_size == 0
