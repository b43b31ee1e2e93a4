"""Image-guided translation: how the source sentence is read and joined with its picture."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmfusion.config.fusion_config import FusionConfig
from mmfusion.config.section import Section


class TranslationConfig(Section):
    """The reader of the source sentence; the model's own text encoder and fusion write the translation.

    Example:
        >>> from mmfusion.config.translation_config import TranslationConfig
        >>> TranslationConfig().fusion.style
        'cross'
    """

    depth: Annotated[int, Field(ge=1)] = Field(2, description="Transformer blocks that read the source sentence.")
    fusion: FusionConfig = FusionConfig(depth=1)
