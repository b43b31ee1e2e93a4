"""Exports: SavedModel, LiteRT, ONNX; write, load, verify."""

from mmfusion.export.answers import Attention, Caption
from mmfusion.export.comparison import Comparison
from mmfusion.export.example_pictures import example_image
from mmfusion.export.loading import load
from mmfusion.export.portable import FORMATS, export_portable
from mmfusion.export.predictor import Predictor
from mmfusion.export.saved_model import export_model
from mmfusion.export.serving_check import ServingCheck, check_serving
from mmfusion.export.serving_function import ServingFunction
from mmfusion.export.serving_functions import serving_functions
from mmfusion.export.verify import verify_export

__all__ = [
    "FORMATS",
    "Attention",
    "Caption",
    "Comparison",
    "Predictor",
    "ServingCheck",
    "ServingFunction",
    "check_serving",
    "example_image",
    "export_model",
    "export_portable",
    "load",
    "serving_functions",
    "verify_export",
]
