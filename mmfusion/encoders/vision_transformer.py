"""A vision transformer: photographs into a stream of patch tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.encoders._blocks import transformer_blocks
from mmfusion.errors import ConfigError
from mmfusion.layers import PatchEmbedding


@keras.saving.register_keras_serializable(package="mmfusion")
class VisionTransformer(keras.layers.Layer):
    """Encodes images as patch tokens with a pre-norm transformer (ViT).

    ``tokens = LayerNorm(Block_L(… Block_1(PatchEmbedding(image))))``. The tokens are exactly the patches, row by row, so that
    attention over them can be drawn on the picture, unless `num_leading_tokens` puts learned tokens before them.

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
        positions: What is added to the embedding: ``"learned"``, ``"sinusoidal"`` or ``"none"`` (rotary ones are a block option).
            Default ``"learned"``.
        num_leading_tokens: Learned tokens before the patches, C: 1 is a class token (ViT, CLIP, BLIP), more are registers. What
            a class token's own position adds is part of it. Rotary positions leave them out. Default 0.
        patch_bias: Whether the projection of the patches has a bias; CLIP's has none. Default True.
        pre_norm: Whether the embedding is normalised before the first block, as in CLIP. Default False.
        final_norm: Whether what the last block gives is normalised; where False, whoever reads it does. Default True.
        norm_epsilon: Of all normalisations, those of the blocks too. Default 1e-6.
        block_options: Further arguments of each `mmfusion.layers.TransformerBlock`, such as ``{"query_key_norm": True}`` or
            ``{"activation": "quick_gelu"}``; of ``{"rotary": "2d"}`` the grid is that of the patches. Default none.

    Call arguments:
        images: ``float[B, H, W, 3]``, normalised as the data pipeline does.
        training: Whether dropout is active.

    Returns:
        ``float[B, C + P, D]``: the leading tokens, then ``P = rows * cols`` patches, row-major.

    Raises:
        ConfigError: If the image size is not a multiple of the patch size, or there are fewer than 0 leading tokens.

    Example:
        >>> import numpy as np
        >>> from mmfusion.encoders import VisionTransformer
        >>> encoder = VisionTransformer(image_size=32, patch_size=8, dim=16, depth=1, num_heads=2)
        >>> tuple(encoder(np.zeros((2, 32, 32, 3), "float32")).shape), encoder.grid
        ((2, 16, 16), (4, 4))

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021 (arXiv:2010.11929); registers: Darcet et al. 2024
    (arXiv:2309.16588).
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
        num_leading_tokens: int = 0,
        patch_bias: bool = True,
        pre_norm: bool = False,
        final_norm: bool = True,
        norm_epsilon: float = 1e-6,
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
        self.num_leading_tokens = num_leading_tokens
        self.patch_bias = patch_bias
        self.pre_norm = pre_norm
        self.final_norm = final_norm
        self.norm_epsilon = norm_epsilon
        self.block_options = dict(block_options or {})
        if num_leading_tokens < 0:
            raise ConfigError("impossible num_leading_tokens", where=self.name, expected="at least 0", found=num_leading_tokens)
        self.patch_embedding = PatchEmbedding(
            patch_size=patch_size,
            dim=dim,
            positions=positions,
            use_bias=patch_bias,
            dtype=self.dtype_policy,
            name="patch_embedding",
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
            **self._options_of_blocks(),
        )
        self.first_norm = self._norm("pre_norm") if pre_norm else None
        self.norm = self._norm("norm") if final_norm else None

    def _options_of_blocks(self) -> dict[str, Any]:
        options = {"norm_epsilon": self.norm_epsilon, **self.block_options}
        rotary = options.get("rotary")
        known: dict[str, Any] = {"grid": self.grid} if rotary == "2d" else {}
        if rotary and self.num_leading_tokens:
            known["num_unrotated_tokens"] = self.num_leading_tokens
        if known:
            options["attention_options"] = {**known, **(options.get("attention_options") or {})}
        return options

    def _norm(self, name: str) -> keras.layers.LayerNormalization:
        return keras.layers.LayerNormalization(epsilon=self.norm_epsilon, dtype=self.dtype_policy, name=name)

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
        tokens_shape = (None, self.num_leading_tokens + self.grid[0] * self.grid[1], self.dim)
        if self.num_leading_tokens:
            initializer = keras.initializers.TruncatedNormal(stddev=0.02)
            self.leading_tokens = self.add_weight(
                shape=(self.num_leading_tokens, self.dim), initializer=initializer, name="leading_tokens"
            )
        for layer in (self.first_norm, *self.blocks, self.norm):
            if layer is not None:
                layer.build(tokens_shape)
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
        tokens = self.patch_embedding(images)
        if self.num_leading_tokens:
            shape = (ops.shape(tokens)[0], self.num_leading_tokens, self.dim)
            leading = ops.broadcast_to(ops.cast(self.leading_tokens, tokens.dtype)[None], shape)
            tokens = ops.concatenate([leading, tokens], axis=1)
        tokens = self.dropout_layer(tokens, training=training)
        if self.first_norm is not None:
            tokens = self.first_norm(tokens)
        for block in self.blocks:
            tokens = block(tokens, training=training)
        return tokens if self.norm is None else self.norm(tokens)

    def compute_output_shape(self, images_shape: Sequence[int | None]) -> tuple[int | None, int, int]:
        """``[B, C + P, D]``."""
        return images_shape[0], self.num_leading_tokens + self.grid[0] * self.grid[1], self.dim

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "image_size", "patch_size", "dim", "depth", "num_heads", "mlp_ratio", "dropout", "attention_dropout",
            "stochastic_depth", "layer_scale", "kernel", "positions", "num_leading_tokens", "patch_bias", "pre_norm",
            "final_norm", "norm_epsilon", "block_options",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
