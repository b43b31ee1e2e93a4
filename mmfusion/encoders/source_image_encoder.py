"""A picture and a sentence about it as one stream to translate from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.encoders._blocks import check_patches_alone
from mmfusion.encoders.text_transformer import TextTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import Fusion
from mmfusion.layers.checks import checked_mask
from mmfusion.layers.masks import length_of, without_masked


@keras.saving.register_keras_serializable(package="mmfusion")
class SourceImageEncoder(keras.layers.Layer):
    """Fuses a source sentence with its picture, in any fusion style, into one stream that a decoder writes a translation from.

    ``stream = [patches ; W · fusion(source, patches).text]`` with ``patches = image_encoder(pixels)``. To a model it is an image
    encoder: what captions a picture then translates a sentence with the picture's help, with the same cache and beams.

    Args:
        image_encoder: A layer from ``float[B, H, W, 3]`` to ``float[B, P, D]`` with ``image_size``, ``grid`` and ``dim``.
        text_encoder: A `TextTransformer` that reads the source sentence; its width may be another than D.
        fusion: A `Fusion` of source and picture, built for both widths; read both ways.

    Call arguments:
        images: A dictionary of ``pixels``, ``float[B, H, W, 3]``, and ``source_ids``, ``int[B, S]``, the source sentence; the
            language to translate into is its first word.
        image_mask: ``bool[B, S]``, ``True`` = real token of the source sentence. Default: all real.
        training: Whether dropout is active.

    Returns:
        ``float[B, P + S, D]``, the patches first; `token_mask` says which are real.

    Raises:
        ConfigError: If the fusion leaves the text uninformed, the image encoder gives more than
            patches, or the inputs lack a part.

    Example:
        >>> import numpy as np
        >>> from mmfusion.encoders import SourceImageEncoder, TextTransformer, VisionTransformer
        >>> from mmfusion.fusion import CrossFusion
        >>> encoder = SourceImageEncoder(
        ...     image_encoder=VisionTransformer(image_size=16, patch_size=8, dim=16, depth=1, num_heads=2),
        ...     text_encoder=TextTransformer(vocabulary_size=50, max_length=8, dim=12, depth=1, num_heads=2),
        ...     fusion=CrossFusion(dim=12, image_dim=16, depth=1, num_heads=2),
        ... )
        >>> tuple(encoder({"pixels": np.zeros((2, 16, 16, 3), "float32"), "source_ids": np.ones((2, 5), "int32")}).shape)
        (2, 9, 16)

    Source: Yao and Wan, Multimodal Transformer for Multimodal Machine Translation, 2020 (acl-main.400); the language as the first
    word: Johnson et al., 2017 (arXiv:1611.04558).
    """

    def __init__(
        self, *, image_encoder: keras.layers.Layer, text_encoder: TextTransformer, fusion: Fusion, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        if not fusion.informs_text:
            raise ConfigError(
                "this fusion leaves the text as it was", where=type(fusion).__name__, fix="choose a style that informs the text"
            )
        check_patches_alone(image_encoder, self.name)
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.fusion = fusion
        self.projection = keras.layers.Dense(image_encoder.dim, dtype=self.dtype_policy, name="projection")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return self.image_encoder.image_size

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of the patches, which are the first tokens."""
        return self.image_encoder.grid

    @property
    def images_shape(self) -> tuple[int | None, ...]:
        """Shape of the pictures that it takes, ``[B, H, W, 3]``."""
        return None, *self.image_size, 3

    @property
    def dim(self) -> int:
        """Width of the tokens, D."""
        return self.image_encoder.dim

    @property
    def max_length(self) -> int:
        """Longest source sentence in tokens."""
        return self.text_encoder.max_length

    def build(self, images_shape: Any = None) -> None:
        """Builds all parts; the shapes are known from the constructor."""
        patches = self.grid[0] * self.grid[1]
        for layer, shapes in (
            (self.image_encoder, ((None, *self.image_size, 3),)),
            (self.text_encoder, ((None, self.max_length),)),
            (self.fusion, ((None, self.max_length, self.text_encoder.dim), (None, patches, self.dim))),
            (self.projection, ((None, self.max_length, self.text_encoder.dim),)),
        ):
            if not layer.built:
                layer.build(*shapes)
        self.built = True

    def call(
        self, images: dict[str, KerasTensor], image_mask: KerasTensor | None = None, training: bool | None = None
    ) -> KerasTensor:
        """Encodes both; see the class."""
        if not isinstance(images, dict) or set(images) != {"pixels", "source_ids"}:
            raise ConfigError(
                "a translation needs a picture and a source sentence",
                where=self.name,
                expected="a dictionary of pixels and source_ids",
                found=sorted(images) if isinstance(images, dict) else type(images).__name__,
            )
        source_ids = ops.convert_to_tensor(images["source_ids"])
        mask = checked_mask(image_mask, "image_mask", self.name, source_ids.shape, source_ids.shape[1], ranks=(2,))
        patches = self.image_encoder(images["pixels"], training=training)
        source = self.text_encoder(source_ids, token_mask=mask, training=training)
        fused = self.fusion(source, patches, text_mask=mask, training=training).text
        return ops.concatenate([patches, without_masked(self.projection(fused), mask)], axis=1)

    def token_mask(self, image_mask: KerasTensor | None) -> KerasTensor | None:
        """Which tokens are real, ``bool[B, P + S]``, by the mask of the source sentence, ``bool[B, S]``; None if all are."""
        if image_mask is None:
            return None
        mask = ops.cast(image_mask, "bool")
        patches = ops.ones((length_of(mask, 0), self.grid[0] * self.grid[1]), "bool")
        return ops.concatenate([patches, mask], axis=1)

    def compute_output_shape(
        self, images_shape: dict[str, Sequence[int | None]], image_mask_shape: Sequence[int | None] | None = None
    ) -> tuple[int | None, int | None, int]:
        """``[B, P + S, D]``."""
        batch, length = images_shape["source_ids"]
        return batch, None if length is None else self.grid[0] * self.grid[1] + length, self.dim

    def get_config(self) -> dict[str, Any]:
        """The parts, serialised."""
        parts = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in _PARTS}
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SourceImageEncoder:
        """Rebuilds the encoder from `get_config`."""
        return cls(**{**config, **{name: keras.saving.deserialize_keras_object(config[name]) for name in _PARTS}})


_PARTS = ("image_encoder", "text_encoder", "fusion")
