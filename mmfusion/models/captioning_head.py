"""The captioning head: fused text tokens to the scores of the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor

from mmfusion.layers.rows import by_rows


@keras.saving.register_keras_serializable(package="mmfusion")
class CaptioningHead(keras.layers.Layer):
    """Prepares fused tokens for the output layer, ``LayerNorm(gelu(W · x))``, and knows the special tokens.

    The output layer is the text encoder's embedding (tied), or with `vocabulary_size` the head's own, ``U · x + b``.

    Args:
        start_id: Id of the token that starts a caption ([CLS]).
        end_id: Id of the token that ends it ([SEP]).
        pad_id: Id of the padding. Default 0.
        forbidden_ids: Further ids that are never written, such as [UNK] and [MASK]; the start token never is. Default none.

        transform: Whether there is such a preparation; without it the tokens go to the output layer as they are (CoCa). Default
            True.
        norm_epsilon: Of its normalisation. Default 1e-6.
        vocabulary_size: Number of token ids of an output layer of its own; None has none. Default None.
        output_bias: Whether that has a bias. Default True.

    Call arguments:
        tokens: ``float[B, T, D]``.

    Returns:
        ``float[B, T, D]``; `logits` turns the tokens into ``float[B, T, V]``.

    Example:
        >>> import numpy as np
        >>> from mmfusion.models import CaptioningHead
        >>> tuple(CaptioningHead(start_id=2, end_id=3)(np.ones((2, 5, 8), "float32")).shape)
        (2, 5, 8)

    Source: the output transform of BERT (arXiv:1810.04805).
    """

    def __init__(
        self,
        *,
        start_id: int,
        end_id: int,
        pad_id: int = 0,
        forbidden_ids: Sequence[int] = (),
        transform: bool = True,
        norm_epsilon: float = 1e-6,
        vocabulary_size: int | None = None,
        output_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.start_id, self.end_id, self.pad_id = start_id, end_id, pad_id
        self.forbidden_ids = tuple(forbidden_ids)
        self.use_transform = transform
        self.norm_epsilon = norm_epsilon
        self.vocabulary_size = vocabulary_size
        self.output_bias = output_bias

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        """Builds the transform for the width of the tokens."""
        dim = tokens_shape[-1]
        self.transform: Any = None
        self.output_dense: Any = None
        if self.use_transform:
            self.transform = keras.layers.Dense(dim, activation="gelu", dtype=self.dtype_policy, name="transform")
            self.norm = keras.layers.LayerNormalization(epsilon=self.norm_epsilon, dtype=self.dtype_policy, name="norm")
            self.transform.build((None, dim))
            self.norm.build((None, None, dim))
        if self.vocabulary_size is not None:
            self.output_dense = keras.layers.Dense(
                self.vocabulary_size, use_bias=self.output_bias, dtype=self.dtype_policy, name="output"
            )
            self.output_dense.build((None, dim))
        self.built = True

    def call(self, tokens: KerasTensor) -> KerasTensor:
        """Transforms the tokens; see the class."""
        return tokens if self.transform is None else self.norm(by_rows(self.transform, tokens))

    def logits(self, tokens: KerasTensor, tied: Callable[[KerasTensor], KerasTensor]) -> KerasTensor:
        """Scores of all ids after each fused token.

        Args:
            tokens: ``float[B, T, D]``, fused.
            tied: The output layer where the head has none of its own: `TextTransformer.logits`.

        Returns:
            ``float[B, T, V]``.
        """
        prepared = self(tokens)
        return tied(prepared) if self.output_dense is None else by_rows(self.output_dense, prepared)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "start_id": self.start_id,
            "end_id": self.end_id,
            "pad_id": self.pad_id,
            "forbidden_ids": self.forbidden_ids,
            "transform": self.use_transform,
            "norm_epsilon": self.norm_epsilon,
            "vocabulary_size": self.vocabulary_size,
            "output_bias": self.output_bias,
        }
