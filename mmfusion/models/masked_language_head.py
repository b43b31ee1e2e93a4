"""The masked language head: fused text tokens to what the output embedding compares with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class MaskedLanguageHead(keras.layers.Layer):
    """Prepares fused tokens for the tied output layer, ``LayerNorm(gelu(W · x))``, and knows what hides a token.

    Args:
        mask_id: Id of the token that stands for a hidden one ([MASK]).
        special_ids: Ids that are never hidden nor guessed, such as [CLS], [SEP] and the padding. Default none.

    Call arguments:
        tokens: ``float[B, T, D]``.

    Returns:
        ``float[B, T, D]``; `TextTransformer.logits` turns it into ``float[B, T, V]``.

    Example:
        >>> import numpy as np
        >>> from mmfusion.models import MaskedLanguageHead
        >>> tuple(MaskedLanguageHead(mask_id=4)(np.ones((2, 5, 8), "float32")).shape)
        (2, 5, 8)

    Source: Devlin et al., BERT, 2018 (arXiv:1810.04805), section 3.1; with an image: Li et al., ALBEF, 2021 (arXiv:2107.07651).
    """

    def __init__(self, *, mask_id: int, special_ids: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.mask_id = mask_id
        self.special_ids = tuple(special_ids)
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
        return {**super().get_config(), "mask_id": self.mask_id, "special_ids": self.special_ids}
