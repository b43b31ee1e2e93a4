"""What a predictor answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Caption(NamedTuple):
    """A caption of a picture.

    Attributes:
        text: The caption.
        score: Its mean log-probability a token; nearer to 0 is surer.
    """

    text: str
    score: float


class Attention(NamedTuple):
    """Where each token of a sentence looks in a picture.

    Attributes:
        maps: ``float32[layers, heads, T, rows, cols]``; each map sums to 1. Of a clip or several images
            ``float32[layers, heads, T, frames, rows, cols]``, with the frames that are padding at 0.
        tokens: The T tokens.
    """

    maps: np.ndarray
    tokens: list[str]
