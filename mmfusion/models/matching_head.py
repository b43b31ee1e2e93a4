"""The matching head: does this text describe this image?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.models.contrastive_head import mean_of_real


@keras.saving.register_keras_serializable(package="mmfusion")
class MatchingHead(keras.layers.Layer):
    """Scores fused tokens: ``logit = w · tanh(W · text[0]) + b``, or without the transform ``logit = w · text[0] + b`` (BLIP).

    Where it reads the image too, as ViLBERT does: ``logit = w · (tanh(W · text[0]) * tanh(V · mean(image))) + b``.

    Args:
        transform: Whether there is a ``tanh(W · x)`` first. Default True.
        **kwargs: Keras's own layer arguments.

    Call arguments:
        tokens: ``float[B, T, D]``, the text tokens after fusion; the first one ([CLS]) carries the answer.
        image: ``float[B, N, Di]``, the image tokens after fusion. Default: not read; a head is built for one or the other.
        image_mask: ``bool[B, N]``, ``True`` = real; its mean is over these. Default: all real.

    Raises:
        ConfigError: If it is to read the image too, without the transform.

    Returns:
        ``float32[B]``, a logit: its sigmoid is the probability of a match.

    Example:
        >>> import numpy as np
        >>> from mmfusion.models import MatchingHead
        >>> tuple(MatchingHead()(np.ones((2, 5, 8), "float32")).shape)
        (2,)

    Source: the pooler and next-sentence head of BERT (arXiv:1810.04805), as image-text matching in ALBEF (arXiv:2107.07651);
    the product of both streams: Lu et al., ViLBERT, 2019 (arXiv:1908.02265), section 3.1.
    """

    def __init__(self, *, transform: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_transform = transform
        self.supports_masking = True
        self.output_dense = keras.layers.Dense(1, dtype="float32", name="output")

    def build(self, tokens_shape: Sequence[int | None], image_shape: Sequence[int | None] | None = None) -> None:
        """Builds the dense parts for the widths of the tokens."""
        dim = tokens_shape[-1]
        self.transform: Any = None
        if self.use_transform:
            self.transform = keras.layers.Dense(dim, activation="tanh", dtype=self.dtype_policy, name="transform")
            self.transform.build((None, dim))
        self.output_dense.build((None, dim))
        self.image_transform = None
        if image_shape is not None:
            if not self.use_transform:
                fix = "build it with transform=True, or let it read the text alone"
                raise ConfigError("a head of both streams needs the transform", where=self.name, fix=fix)
            self.image_transform = keras.layers.Dense(dim, activation="tanh", dtype=self.dtype_policy, name="image_transform")
            self.image_transform.build((None, image_shape[-1]))
        self.built = True

    def compute_mask(self, *arguments: Any, **options: Any) -> None:
        """The result has no tokens, so no mask."""

    def call(self, tokens: KerasTensor, image: KerasTensor | None = None, image_mask: KerasTensor | None = None) -> KerasTensor:
        """Scores the pairs; see the class."""
        pooled = tokens[:, 0] if self.transform is None else self.transform(tokens[:, 0])
        if self.image_transform is not None:
            pooled = pooled * self.image_transform(mean_of_real(image, image_mask))
        return ops.squeeze(self.output_dense(pooled), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "transform": self.use_transform}
