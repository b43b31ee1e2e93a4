"""What decoding gives back."""

from __future__ import annotations

from typing import NamedTuple

from keras import KerasTensor


class DecodeOutput(NamedTuple):
    """One text for each example.

    Attributes:
        token_ids: ``int32[B, L]``, without the start token, with the end token, then padding; L is ``max_tokens``.
        scores: ``float32[B]``, mean log-probability of the tokens, the end token included.
        lengths: ``int32[B]``, number of tokens, the end token included.
    """

    token_ids: KerasTensor
    scores: KerasTensor
    lengths: KerasTensor


class BeamOutput(NamedTuple):
    """The K best texts found for each example, best first.

    Attributes:
        token_ids: ``int32[B, K, L]``, without the start token, with the end token, then padding; L is ``max_tokens``.
        scores: ``float32[B, K]``, sum of log-probabilities over ``length ** length_penalty``; ``-inf`` where there was
            no further text to find, which is then all padding.
        lengths: ``int32[B, K]``, number of tokens, the end token included.
    """

    token_ids: KerasTensor
    scores: KerasTensor
    lengths: KerasTensor
