"""Terms of the loss: each joins a model's outputs with a pure loss function and figures to report."""

from mmfusion.training.objectives.building import build_objectives
from mmfusion.training.objectives.captioning import CaptioningObjective
from mmfusion.training.objectives.contrastive import ContrastiveObjective
from mmfusion.training.objectives.masked_language import MaskedLanguageObjective
from mmfusion.training.objectives.matching import MatchingObjective
from mmfusion.training.objectives.objective import Objective, ObjectiveOutput, Share, mean_share

__all__ = [
    "CaptioningObjective",
    "ContrastiveObjective",
    "MaskedLanguageObjective",
    "MatchingObjective",
    "Objective",
    "ObjectiveOutput",
    "Share",
    "build_objectives",
    "mean_share",
]
