"""Images and text into token streams."""

from mmfusion.encoders.multi_image_encoder import MultiImageEncoder
from mmfusion.encoders.source_image_encoder import SourceImageEncoder
from mmfusion.encoders.text_transformer import TextCache, TextTransformer
from mmfusion.encoders.video_transformer import VideoTransformer
from mmfusion.encoders.vision_transformer import VisionTransformer

__all__ = ["MultiImageEncoder", "SourceImageEncoder", "TextCache", "TextTransformer", "VideoTransformer", "VisionTransformer"]
