"""Decoding: from a model that scores the next token to whole texts, in graph and with a cache."""

from mmfusion.decoding.beam_search import beam_search
from mmfusion.decoding.compiled import compiled, is_eager
from mmfusion.decoding.contrastive_search import contrastive_search
from mmfusion.decoding.greedy import greedy
from mmfusion.decoding.outputs import BeamOutput, DecodeOutput
from mmfusion.decoding.sample import sample
from mmfusion.decoding.stream import stream
from mmfusion.decoding.token_rules import TokenRules

__all__ = [
    "BeamOutput",
    "DecodeOutput",
    "TokenRules",
    "beam_search",
    "compiled",
    "contrastive_search",
    "greedy",
    "is_eager",
    "sample",
    "stream",
]
