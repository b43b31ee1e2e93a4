"""mmfusion: images and text joined by attention, from Keras layers to a served model.

Everything named here loads when it is first used, so that ``import mmfusion`` is quick.

Example:
    >>> import mmfusion
    >>> mmfusion.Attention.__name__
    'Attention'
"""

from __future__ import annotations

import importlib
from typing import Any

from mmfusion.version import __version__

_HOMES = {
    "Attention": "layers",
    "AttentionPooling": "layers",
    "CaptioningHead": "models",
    "ContrastiveHead": "models",
    "CrossFusion": "fusion",
    "Fusion": "fusion",
    "ImageTextModel": "models",
    "ImageTransform": "data",
    "MMFusionError": "errors",
    "MatchingHead": "models",
    "Predictor": "export",
    "Recipe": "config",
    "TextTransformer": "encoders",
    "Trainer": "training",
    "TransformerBlock": "layers",
    "VisionTransformer": "encoders",
    "WordPieceTokenizer": "text",
    "build_model": "models",
    "export_model": "export",
    "load": "export",
    "load_recipe": "config",
    "open_source": "data",
    "train": "training",
}
_ROOMS = (
    "config", "convert", "data", "decoding", "encoders", "errors", "evaluation", "explain", "export", "fusion", "layers",
    "losses", "models", "retrieval", "serving", "text", "training", "tuning",
)  # fmt: skip

__all__ = ["__version__", *_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"mmfusion.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"mmfusion.{name}")
    raise AttributeError(f"module 'mmfusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
