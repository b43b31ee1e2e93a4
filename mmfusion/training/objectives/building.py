"""A recipe's words into the terms of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmfusion.training.objectives.captioning import CaptioningObjective
from mmfusion.training.objectives.contrastive import ContrastiveObjective
from mmfusion.training.objectives.matching import MatchingObjective
from mmfusion.training.objectives.objective import Objective

if TYPE_CHECKING:
    from mmfusion.config import Recipe


def build_objectives(recipe: Recipe) -> list[Objective]:
    """The terms of the loss that a recipe switches on."""
    objective = recipe.objective
    terms: list[Objective] = []
    if objective.contrastive is not None:
        term = objective.contrastive
        terms.append(ContrastiveObjective(weight=term.weight, loss=term.loss, label_smoothing=term.label_smoothing))
    if objective.matching is not None:
        terms.append(MatchingObjective(weight=objective.matching.weight, seed=recipe.seed))
    if objective.captioning is not None:
        terms.append(
            CaptioningObjective(weight=objective.captioning.weight, label_smoothing=objective.captioning.label_smoothing)
        )
    return terms
