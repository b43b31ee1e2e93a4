"""The matching head: does this text describe this image?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops


@keras.saving.register_keras_serializable(package="mmfusion")
class MatchingHead(keras.layers.Layer):
    """Scores fused text tokens: ``logit = w · tanh(W · tokens[0]) + b``.

    Args:
        **kwargs: Keras's own layer arguments.

    Call arguments:
        tokens: ``float[B, T, D]``, the text tokens after fusion; the first one ([CLS]) carries the answer.

    Returns:
        ``float32[B]``, a logit: its sigmoid is the probability of a match.

    Example:
        >>> import numpy as np
        >>> from mmfusion.models import MatchingHead
        >>> tuple(MatchingHead()(np.ones((2, 5, 8), "float32")).shape)
        (2,)

    Source: the pooler and next-sentence head of BERT (arXiv:1810.04805), as image-text matching in ALBEF (arXiv:2107.07651).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.output_dense = keras.layers.Dense(1, dtype="float32", name="output")

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        """Builds the two dense parts for the width of the tokens."""
        dim = tokens_shape[-1]
        self.transform = keras.layers.Dense(dim, activation="tanh", dtype=self.dtype_policy, name="transform")
        self.transform.build((None, dim))
        self.output_dense.build((None, dim))
        self.built = True

    def compute_mask(self, *arguments: Any, **options: Any) -> None:
        """The result has no tokens, so no mask."""

    def call(self, tokens: KerasTensor) -> KerasTensor:
        """Scores the pairs; see the class."""
        return ops.squeeze(self.output_dense(self.transform(tokens[:, 0])), axis=-1)
