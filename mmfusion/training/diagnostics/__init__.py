"""Looks at a model's health while it is trained: attention, gradients by depth, the share of each modality."""

from mmfusion.training.diagnostics.attention_capture import AttentionRecord, attention_layers, capture_attention
from mmfusion.training.diagnostics.attention_measures import (
    AttentionHealth,
    attention_entropy,
    attention_health,
    effective_rank,
    stable_rank,
)
from mmfusion.training.diagnostics.attention_probe import AttentionProbe
from mmfusion.training.diagnostics.depth_measures import depth_flag, depth_groups, depth_report
from mmfusion.training.diagnostics.gradient_probe import GradientProbe
from mmfusion.training.diagnostics.image_text_modality_probe import ImageTextModalityProbe
from mmfusion.training.diagnostics.modality_measures import share_by_ablation, share_by_gradient
from mmfusion.training.diagnostics.modality_probe import ModalityProbe

__all__ = [
    "AttentionHealth",
    "AttentionProbe",
    "AttentionRecord",
    "GradientProbe",
    "ImageTextModalityProbe",
    "ModalityProbe",
    "attention_entropy",
    "attention_health",
    "attention_layers",
    "capture_attention",
    "depth_flag",
    "depth_groups",
    "depth_report",
    "effective_rank",
    "share_by_ablation",
    "share_by_gradient",
    "stable_rank",
]
