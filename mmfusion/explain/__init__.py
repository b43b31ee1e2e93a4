"""Where a model looks, and how to show it."""

from __future__ import annotations

from mmfusion.explain.example_page import draw_attention_example
from mmfusion.explain.overlay import attention_maps, draw_attention_overlay

__all__ = ["attention_maps", "draw_attention_example", "draw_attention_overlay"]
