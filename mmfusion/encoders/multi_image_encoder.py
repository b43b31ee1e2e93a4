"""Several images with a text: each through one encoder, their tokens in one stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.encoders._blocks import check_patches_alone
from mmfusion.errors import ConfigError
from mmfusion.layers import TransformerBlock
from mmfusion.layers.checks import checked_mask
from mmfusion.layers.masks import without_masked


@keras.saving.register_keras_serializable(package="mmfusion")
class MultiImageEncoder(keras.layers.Layer):
    """Encodes a row of images with one image encoder, tells each token which image it is of, and joins the streams.

    ``tokens = Block_L(… Block_1(concat_n(encoder(image_n) + number_n)))``. Without joint blocks a mean over the tokens is the
    same in whichever order the images come: a dual encoder with mean pooling then cannot tell "first a heart, then a star" from
    its reverse (a fusion can). One joint block lets it.

    Args:
        encoder: A layer from ``float[B, H, W, 3]`` to ``float[B, P, D]`` with ``image_size``, ``grid`` and ``dim``, such as a
            `VisionTransformer`.
        max_images: Images of an example, N; fewer are padded and masked.
        joint_depth: Transformer blocks over the joined stream. Default 1.
        num_heads: Attention heads of the joint blocks. Default 4.
        mlp_ratio: Hidden width of their feed-forward part over D. Default 4.
        dropout: Rate in the joint blocks. Default 0.
        kernel: How attention is computed in them, see `mmfusion.layers.Attention`. Default ``"exact"``.

    Call arguments:
        images: ``float[B, N, H, W, 3]``, in the order that the text counts them.
        image_mask: ``bool[B, N]``, ``True`` = real image. What stands in other images never matters. Default: all real.
        training: Whether dropout is active.

    Returns:
        ``float[B, N · P, D]``, image by image; `token_mask` says which are real. `grid` is ``(N, rows, cols)``.

    Raises:
        ConfigError: If there is room for no image, the encoder gives more than patches, or the images are not as many as there is
            room for.

    Example:
        >>> import numpy as np
        >>> from mmfusion.encoders import MultiImageEncoder, VisionTransformer
        >>> still = VisionTransformer(image_size=16, patch_size=8, dim=16, depth=1, num_heads=2)
        >>> encoder = MultiImageEncoder(encoder=still, max_images=3, num_heads=2)
        >>> tuple(encoder(np.zeros((2, 3, 16, 16, 3), "float32")).shape), encoder.grid
        ((2, 12, 16), (3, 2, 2))

    Source: one stream of several images' tokens: Alayrac et al., Flamingo, 2022 (arXiv:2204.14198), section 2.3;
    Jiang et al., Mantis, 2024 (arXiv:2405.01483).
    """

    def __init__(
        self,
        *,
        encoder: keras.layers.Layer,
        max_images: int,
        joint_depth: int = 1,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        kernel: str = "exact",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_images < 1 or joint_depth < 0:
            expected, found = "max_images at least 1, joint_depth at least 0", f"{max_images} and {joint_depth}"
            raise ConfigError("impossible sizes", where=self.name, expected=expected, found=found)
        check_patches_alone(encoder, self.name)
        self.encoder = encoder
        self.max_images = max_images
        self.joint_depth = joint_depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.kernel = kernel
        self.blocks = [
            TransformerBlock(
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                kernel=kernel,
                dtype=self.dtype_policy,
                name=f"joint_block_{index}",
            )
            for index in range(joint_depth)
        ]
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="norm") if joint_depth else None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.encoder.image_size

    @property
    def dim(self) -> int:
        """Width of the tokens, D."""
        return self.encoder.dim

    @property
    def grid(self) -> tuple[int, int, int]:
        """Images, rows and columns of the tokens."""
        return self.max_images, *self.encoder.grid

    @property
    def images_shape(self) -> tuple[int | None, ...]:
        """Shape of the images that it takes, ``[B, N, H, W, 3]``."""
        return None, self.max_images, *self.image_size, 3

    def build(self, images_shape: Sequence[int | None] | None = None) -> None:
        """Builds all parts; the shape is known from the constructor."""
        if not self.encoder.built:
            self.encoder.build((None, *self.image_size, 3))
        self.number = self.add_weight(
            shape=(self.max_images, 1, self.dim),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="number_embedding",
        )
        for block in self.blocks:
            block.build((None, None, self.dim))
        if self.norm is not None:
            self.norm.build((None, None, self.dim))
        self.built = True

    def call(self, images: KerasTensor, image_mask: KerasTensor | None = None, training: bool | None = None) -> KerasTensor:
        """Encodes the images; see the class."""
        expected = self.images_shape[1:]
        if len(images.shape) != 5 or any(a is not None and a != b for a, b in zip(images.shape[1:], expected, strict=True)):
            raise ConfigError(
                "images of another number or size than the encoder was built for",
                where=self.name,
                expected=["batch", *expected],
                found=list(images.shape),
                fix="resize the images; pad what has fewer and mask what is padded",
            )
        mask = checked_mask(image_mask, "image_mask", self.name, images.shape, self.max_images, ranks=(2,))
        images = ops.reshape(without_masked(images, mask), (-1, *expected[1:]))
        places = self.encoder.grid[0] * self.encoder.grid[1]
        tokens = ops.reshape(self.encoder(images, training=training), (-1, self.max_images, places, self.dim)) + self.number
        tokens = ops.reshape(tokens, (-1, self.max_images * places, self.dim))
        if self.norm is None:
            return tokens
        token_mask = self.token_mask(mask)
        for block in self.blocks:
            tokens = block(tokens, mask=token_mask, training=training)
        return self.norm(tokens)

    def token_mask(self, image_mask: KerasTensor | None) -> KerasTensor | None:
        """Which tokens are real, ``bool[B, N · P]``, by which images are, ``bool[B, N]``; None if all are."""
        if image_mask is None:
            return None
        return ops.repeat(ops.cast(image_mask, "bool"), self.encoder.grid[0] * self.encoder.grid[1], axis=1)

    def compute_output_shape(
        self, images_shape: Sequence[int | None], image_mask_shape: Sequence[int | None] | None = None
    ) -> tuple[int | None, int, int]:
        """``[B, N · P, D]``."""
        images, rows, columns = self.grid
        return images_shape[0], images * rows * columns, self.dim

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the encoder serialised."""
        names = ("max_images", "joint_depth", "num_heads", "mlp_ratio", "dropout", "kernel")
        encoder = keras.saving.serialize_keras_object(self.encoder)
        return {**super().get_config(), "encoder": encoder, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MultiImageEncoder:
        """Rebuilds the encoder from `get_config`."""
        return cls(**{**config, "encoder": keras.saving.deserialize_keras_object(config["encoder"])})
