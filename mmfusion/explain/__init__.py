"""Where a model looks, and how to show it."""

from __future__ import annotations

from mmfusion.explain.example_page import draw_attention_example
from mmfusion.explain.localisation import Localisation, localise, phrase_heat, phrase_places
from mmfusion.explain.overlay import attention_maps, draw_attention_overlay, draw_heat
from mmfusion.explain.pointing import Pointing, pointing_game

__all__ = [
    "Localisation",
    "Pointing",
    "attention_maps",
    "draw_attention_example",
    "draw_attention_overlay",
    "draw_heat",
    "localise",
    "phrase_heat",
    "phrase_places",
    "pointing_game",
]
