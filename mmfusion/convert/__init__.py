"""Other people's checkpoints into our models."""

from mmfusion.convert.blip import convert_blip_captioning, convert_blip_retrieval
from mmfusion.convert.filling import fill
from mmfusion.convert.open_clip_coca import convert_open_clip_coca
from mmfusion.convert.state import read_config, read_state
from mmfusion.convert.tensors import Tensors

__all__ = [
    "Tensors",
    "convert_blip_captioning",
    "convert_blip_retrieval",
    "convert_open_clip_coca",
    "fill",
    "read_config",
    "read_state",
]
