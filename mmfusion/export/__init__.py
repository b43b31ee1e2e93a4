"""Exports: SavedModel, LiteRT, ONNX; write, load, verify."""

from mmfusion.export.answers import Attention, Caption
from mmfusion.export.comparison import Comparison
from mmfusion.export.loading import load
from mmfusion.export.portable import FORMATS, export_portable
from mmfusion.export.predictor import Predictor
from mmfusion.export.saved_model import example_image, export_model
from mmfusion.export.serving_functions import ServingFunction, serving_functions
from mmfusion.export.verify import verify_export

__all__ = [
    "FORMATS",
    "Attention",
    "Caption",
    "Comparison",
    "Predictor",
    "ServingFunction",
    "example_image",
    "export_model",
    "export_portable",
    "load",
    "serving_functions",
    "verify_export",
]
