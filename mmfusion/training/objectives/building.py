"""A recipe's words into the terms of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmfusion.training.objectives.captioning import CaptioningObjective
from mmfusion.training.objectives.contrastive import ContrastiveObjective
from mmfusion.training.objectives.masked_language import MaskedLanguageObjective
from mmfusion.training.objectives.matching import MatchingObjective
from mmfusion.training.objectives.objective import Objective

if TYPE_CHECKING:
    from mmfusion.config import Recipe
    from mmfusion.text import WordPieceTokenizer


def build_objectives(recipe: Recipe, tokenizer: WordPieceTokenizer | None = None) -> list[Objective]:
    """The terms of the loss that a recipe switches on.

    Args:
        recipe: The recipe.
        tokenizer: Its tokenizer, which knows the special tokens; the masked language term needs it.

    Returns:
        The terms.

    Raises:
        ConfigError: If the masked language term is on and there is no [MASK] in the vocabulary, or no tokenizer.

    Example:
        >>> from mmfusion.config import recipe_from_dict
        >>> [term.name for term in build_objectives(recipe_from_dict({"objective": {"matching": None}}))]
        ['contrastive', 'captioning']
    """
    objective = recipe.objective
    terms: list[Objective] = []
    if objective.contrastive is not None:
        term = objective.contrastive
        z_loss = objective.z_loss_of("contrastive")
        terms.append(
            ContrastiveObjective(weight=term.weight, loss=term.loss, label_smoothing=term.label_smoothing, z_loss=z_loss)
        )
    if objective.matching is not None:
        terms.append(MatchingObjective(weight=objective.matching.weight, seed=recipe.seed))
    if objective.masked_language is not None:
        terms.append(
            MaskedLanguageObjective(
                mask_id=None if tokenizer is None else tokenizer.mask_id,
                special_ids=() if tokenizer is None else tokenizer.special_ids,
                weight=objective.masked_language.weight,
                rate=objective.masked_language.rate,
                z_loss=objective.z_loss_of("masked_language"),
                seed=recipe.seed + 1,
            )
        )
    if objective.captioning is not None:
        terms.append(
            CaptioningObjective(
                weight=objective.captioning.weight,
                label_smoothing=objective.captioning.label_smoothing,
                z_loss=objective.z_loss_of("captioning"),
                attention_coverage=objective.captioning.attention_coverage,
            )
        )
    return terms
