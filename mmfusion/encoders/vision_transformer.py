"""A vision transformer: photographs into a stream of patch tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import KerasTensor

from mmfusion.encoders._blocks import transformer_blocks
from mmfusion.errors import ConfigError
from mmfusion.layers import PatchEmbedding


@keras.saving.register_keras_serializable(package="mmfusion")
class VisionTransformer(keras.layers.Layer):
    """Encodes images as patch tokens with a pre-norm transformer (ViT).

    ``tokens = LayerNorm(Block_L(… Block_1(PatchEmbedding(image))))``. There is no class token: the tokens are exactly the
    patches, row by row, so that attention over them can be drawn on the picture.

    Args:
        image_size: Height and width in pixels; one number means a square.
        patch_size: Side of a patch in pixels. Default 16.
        dim: Width of the tokens, D. Default 256.
        depth: Number of transformer blocks; 0 leaves the patch embedding alone, normalised, for a fusion that does the rest
            (ViLT). Default 6.
        num_heads: Attention heads. Default 4.
        mlp_ratio: Hidden width of the feed-forward part over D. Default 4.
        dropout: Rate after attention and feed-forward. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping the last block's branches; it grows linearly from 0 with depth. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.
        positions: Of the embedding, see `mmfusion.layers.PatchEmbedding`. Default ``"learned"``.
        positions: What is added to the embedding: ``"learned"``, ``"sinusoidal"`` or ``"none"`` (rotary ones are a block option).
            Default ``"learned"``.
        block_options: Further arguments of each `mmfusion.layers.TransformerBlock`, such as ``{"query_key_norm": True}``;
            of ``{"rotary": "2d"}`` the grid is that of the patches.
            Default none.

    Call arguments:
        images: ``float[B, H, W, 3]``, normalised as the data pipeline does.
        training: Whether dropout is active.

    Returns:
        ``float[B, P, D]`` with ``P = rows * cols``, row-major.

    Raises:
        ConfigError: If the image size is not a multiple of the patch size.

    Example:
        >>> import numpy as np
        >>> from mmfusion.encoders import VisionTransformer
        >>> encoder = VisionTransformer(image_size=32, patch_size=8, dim=16, depth=1, num_heads=2)
        >>> tuple(encoder(np.zeros((2, 32, 32, 3), "float32")).shape), encoder.grid
        ((2, 16, 16), (4, 4))

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021 (arXiv:2010.11929).
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int = 16,
        dim: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        kernel: str = "exact",
        positions: str = "learned",
        block_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if height % patch_size or width % patch_size:
            raise ConfigError(
                "image size is not a multiple of the patch size",
                where=self.name,
                expected=f"a multiple of {patch_size}",
                found=f"{height} x {width}",
                fix="change image_size or patch_size",
            )
        self.image_size = (int(height), int(width))
        self.patch_size = patch_size
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.layer_scale = layer_scale
        self.kernel = kernel
        self.positions = positions
        self.block_options = dict(block_options or {})
        options = dict(self.block_options)
        if options.get("rotary") == "2d":
            options["attention_options"] = {"grid": self.grid, **(options.get("attention_options") or {})}
        self.patch_embedding = PatchEmbedding(
            patch_size=patch_size, dim=dim, positions=positions, dtype=self.dtype_policy, name="patch_embedding"
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.blocks = transformer_blocks(
            depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            stochastic_depth=stochastic_depth,
            layer_scale=layer_scale,
            kernel=kernel,
            dtype=self.dtype_policy,
            **options,
        )
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="norm")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def images_shape(self) -> tuple[int | None, ...]:
        """Shape of the images that it takes, ``[B, H, W, 3]``."""
        return None, *self.image_size, 3

    def build(self, images_shape: Sequence[int | None] | None = None) -> None:
        """Builds all parts; the shape is known from `image_size`."""
        self.patch_embedding.build(self.images_shape)
        tokens_shape = (None, self.grid[0] * self.grid[1], self.dim)
        for block in self.blocks:
            block.build(tokens_shape)
        self.norm.build(tokens_shape)
        self.built = True

    def call(self, images: KerasTensor, training: bool | None = None) -> KerasTensor:
        """Encodes the images; see the class."""
        found = tuple(images.shape[1:])
        if any(a is not None and a != b for a, b in zip(found, (*self.image_size, 3), strict=True)):
            raise ConfigError(
                "images of another size than the encoder was built for",
                where=self.name,
                expected=f"[B, {self.image_size[0]}, {self.image_size[1]}, 3]",
                found=f"{list(images.shape)}",
                fix="resize the images, or build the encoder with their image_size",
            )
        tokens = self.dropout_layer(self.patch_embedding(images), training=training)
        for block in self.blocks:
            tokens = block(tokens, training=training)
        return self.norm(tokens)

    def compute_output_shape(self, images_shape: Sequence[int | None]) -> tuple[int | None, int, int]:
        """``[B, P, D]``."""
        return images_shape[0], self.grid[0] * self.grid[1], self.dim

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "image_size", "patch_size", "dim", "depth", "num_heads", "mlp_ratio", "dropout", "attention_dropout",
            "stochastic_depth", "layer_scale", "kernel", "positions", "block_options",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
