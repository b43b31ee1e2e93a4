"""SavedModel exports: write, load, verify."""

from mmfusion.export.predictor import Attention, Caption, Predictor, load
from mmfusion.export.saved_model import example_image, export_model
from mmfusion.export.serving_functions import ServingFunction, serving_functions
from mmfusion.export.verify import Comparison, verify_export

__all__ = [
    "Attention",
    "Caption",
    "Comparison",
    "Predictor",
    "ServingFunction",
    "example_image",
    "export_model",
    "load",
    "serving_functions",
    "verify_export",
]
