"""Images and text into token streams."""

from mmfusion.encoders.text_transformer import TextCache, TextTransformer
from mmfusion.encoders.vision_transformer import VisionTransformer

__all__ = ["TextCache", "TextTransformer", "VisionTransformer"]
