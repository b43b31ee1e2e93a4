"""The captioning head: fused text tokens to what the output embedding compares with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class CaptioningHead(keras.layers.Layer):
    """Prepares fused tokens for the tied output layer, ``LayerNorm(gelu(W · x))``, and knows the special tokens.

    Args:
        start_id: Id of the token that starts a caption ([CLS]).
        end_id: Id of the token that ends it ([SEP]).
        pad_id: Id of the padding. Default 0.
        forbidden_ids: Further ids that are never written, such as [UNK] and [MASK]; the start token never is. Default none.

    Call arguments:
        tokens: ``float[B, T, D]``.

    Returns:
        ``float[B, T, D]``; `TextTransformer.logits` turns it into ``float[B, T, V]``.

    Example:
        >>> import numpy as np
        >>> from mmfusion.models import CaptioningHead
        >>> tuple(CaptioningHead(start_id=2, end_id=3)(np.ones((2, 5, 8), "float32")).shape)
        (2, 5, 8)

    Source: the output transform of BERT (arXiv:1810.04805).
    """

    def __init__(self, *, start_id: int, end_id: int, pad_id: int = 0, forbidden_ids: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.start_id, self.end_id, self.pad_id = start_id, end_id, pad_id
        self.forbidden_ids = tuple(forbidden_ids)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="norm")

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        """Builds the transform for the width of the tokens."""
        dim = tokens_shape[-1]
        self.transform = keras.layers.Dense(dim, activation="gelu", dtype=self.dtype_policy, name="transform")
        self.transform.build((None, dim))
        self.norm.build((None, None, dim))
        self.built = True

    def call(self, tokens: KerasTensor) -> KerasTensor:
        """Transforms the tokens; see the class."""
        return self.norm(self.transform(tokens))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "start_id": self.start_id,
            "end_id": self.end_id,
            "pad_id": self.pad_id,
            "forbidden_ids": self.forbidden_ids,
        }
