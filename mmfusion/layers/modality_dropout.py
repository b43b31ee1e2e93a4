"""Drops a whole modality in training."""

from __future__ import annotations

from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.checks import check_rate, check_tokens, checked_mask
from mmfusion.layers.masks import length_of


@keras.saving.register_keras_serializable(package="mmfusion")
class ModalityDropout(keras.layers.Layer):
    """Hides the text or the image of a random share of the examples, never both, in training only.

    One ``u ~ Uniform(0, 1)`` an example: ``u < rate · text_share`` hides the text, else ``u < rate`` hides the image: all of its
    mask becomes False. A model that has to answer from either alone does not lean on the easier of the two. What is behind a mask
    never changes a result, so masks are all that has to change; call it right before a fusion and give the fusion its masks:

    ``text_mask, image_mask = dropout(text, image, text_mask=text_mask, image_mask=image_mask, training=training)``

    Losses keep the masks of the data. An example with only one modality keeps it.

    Args:
        rate: Share of the examples that lose a modality, 0 to 1 exclusive.
        text_share: Share of these that lose the text; the others lose the image. Default 0.5.
        seed: Seed of the drawing. Default: a random one.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``.
        text_mask: ``bool[B, T]``, ``True`` = real token. Default: all real.
        image_mask: ``bool[B, P]``, ``True`` = real patch. Default: all real.
        training: Whether it is active. Default: what Keras's `fit` and `predict` say.

    Returns:
        ``bool[B, T]`` and ``bool[B, P]``, the masks to use; as they came (None too) where nothing can be dropped.

    Raises:
        ConfigError: If `rate` is not in ``[0, 1)``, `text_share` is not in ``[0, 1]``, or tokens or masks are of another form.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import ModalityDropout
        >>> text, image = np.ones((1000, 3, 8), "float32"), np.ones((1000, 4, 6), "float32")
        >>> text_mask, image_mask = ModalityDropout(rate=0.5, seed=0)(text, image, training=True)
        >>> seen = text_mask.numpy().any(1).astype(int) + image_mask.numpy().any(1)
        >>> int(seen.min()), bool(0.4 < (seen == 1).mean() < 0.6)
        (1, True)

    Source: Neverova et al., ModDrop, 2016 (arXiv:1501.00102), section 4.3.
    """

    def __init__(self, *, rate: float, text_share: float = 0.5, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.text_share = text_share
        self.seed = seed
        self.supports_masking = True
        check_rate(rate, "rate", self.name)
        if not 0.0 <= text_share <= 1.0:
            raise ConfigError("impossible text_share", where=self.name, expected="at least 0 and at most 1", found=text_share)
        self.seed_generator = keras.random.SeedGenerator(seed) if rate else None
        self.built = True

    def call(
        self,
        text: KerasTensor,
        image: KerasTensor,
        text_mask: KerasTensor | None = None,
        image_mask: KerasTensor | None = None,
        training: bool | None = None,
    ) -> tuple[KerasTensor | None, KerasTensor | None]:
        """Draws; see the class."""
        check_tokens(text, "text", self.name)
        check_tokens(image, "image", self.name)
        text_mask = checked_mask(text_mask, "text_mask", self.name, text.shape, text.shape[1], ranks=(2,))
        image_mask = checked_mask(image_mask, "image_mask", self.name, image.shape, image.shape[1], ranks=(2,))
        if not training or not self.rate:
            return text_mask, image_mask
        drawn = keras.random.uniform((ops.shape(text)[0], 1), seed=self.seed_generator)
        without_text = drawn < self.rate * self.text_share
        without_image = ops.logical_and(drawn < self.rate, ops.logical_not(without_text))
        text_mask = _mask_of(text) if text_mask is None else text_mask
        image_mask = _mask_of(image) if image_mask is None else image_mask
        return _hidden(text_mask, without_text, other=image_mask), _hidden(image_mask, without_image, other=text_mask)

    def compute_mask(self, *arguments: Any, **options: Any) -> None:
        """The results are masks themselves."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "text_share": self.text_share, "seed": self.seed}


def _mask_of(tokens: KerasTensor) -> KerasTensor:
    return ops.ones((length_of(tokens, 0), length_of(tokens)), "bool")


def _hidden(mask: KerasTensor, dropped: KerasTensor, *, other: KerasTensor) -> KerasTensor:
    dropped = ops.logical_and(dropped, ops.any(other, axis=1, keepdims=True))
    return ops.logical_and(mask, ops.logical_not(dropped))
