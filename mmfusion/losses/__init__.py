"""Losses: pure functions from features to tensors; none owns an architecture or a weight."""

from mmfusion.losses.attention_coverage import attention_coverage
from mmfusion.losses.captioning_crossentropy import CaptioningCrossentropy
from mmfusion.losses.captioning_loss import CaptioningLoss, captioning_loss
from mmfusion.losses.hard_negatives import HardNegatives, sample_hard_negatives
from mmfusion.losses.masked_language import MaskedTokens, mask_tokens, masked_language_loss
from mmfusion.losses.matching_loss import matching_loss
from mmfusion.losses.sigmoid_contrastive import sigmoid_contrastive
from mmfusion.losses.softmax_contrastive import softmax_contrastive

__all__ = [
    "CaptioningCrossentropy",
    "CaptioningLoss",
    "HardNegatives",
    "MaskedTokens",
    "attention_coverage",
    "captioning_loss",
    "mask_tokens",
    "masked_language_loss",
    "matching_loss",
    "sample_hard_negatives",
    "sigmoid_contrastive",
    "softmax_contrastive",
]
