"""Decoding: from a model that scores the next token to whole texts, in graph and with a cache."""

from mmfusion.decoding.beam_search import beam_search
from mmfusion.decoding.greedy import greedy
from mmfusion.decoding.outputs import BeamOutput, DecodeOutput

__all__ = ["BeamOutput", "DecodeOutput", "beam_search", "greedy"]
