"""Compositions of encoders, fusion and heads."""

from mmfusion.models.captioning import CaptionState, stream_captions, write_captions
from mmfusion.models.captioning_head import CaptioningHead
from mmfusion.models.contrastive_head import ContrastiveHead
from mmfusion.models.factory import build_model
from mmfusion.models.image_text_model import ImageTextModel
from mmfusion.models.masked_language_head import MaskedLanguageHead
from mmfusion.models.matching import match_groups, match_matrix
from mmfusion.models.matching_head import MatchingHead
from mmfusion.models.number_format import NUMBER_FORMATS, in_number_format, weight_bytes

__all__ = [
    "NUMBER_FORMATS",
    "CaptionState",
    "CaptioningHead",
    "ContrastiveHead",
    "ImageTextModel",
    "MaskedLanguageHead",
    "MatchingHead",
    "build_model",
    "in_number_format",
    "match_groups",
    "match_matrix",
    "stream_captions",
    "weight_bytes",
    "write_captions",
]
