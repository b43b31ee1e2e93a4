"""A video transformer: clips into a stream of tubelet tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import KerasTensor

from mmfusion.errors import ConfigError
from mmfusion.layers import SpaceTimeBlock, TransformerBlock, TubeletEmbedding

ATTENTIONS = ("tiled", "factorised")


@keras.saving.register_keras_serializable(package="mmfusion")
class VideoTransformer(keras.layers.Layer):
    """Encodes clips as tubelet tokens, so that frames are patch tokens like any others for fusion, retrieval and captioning.

    ``tokens = LayerNorm(Block_L(… Block_1(TubeletEmbedding(clip))))``, the blocks by `attention`:

    - ``"tiled"``: one stream of all tokens, each attends to all (ViViT, model 1). ``(F'·P)²`` scores a head.
    - ``"factorised"``: attention within frames, then across them (`mmfusion.layers.SpaceTimeBlock`; ViViT, model 3).
      ``F'·P·(F' + P)`` scores a head, and one attention more a block.

    Args:
        image_size: Height and width in pixels; one number means a square.
        num_frames: Frames of a clip, F; shorter ones are padded and masked.
        patch_size: Side of a patch in pixels. Default 16.
        tubelet_size: Frames that a token reaches over. Default 1.
        attention: ``"tiled"`` or ``"factorised"``. Default ``"tiled"``.
        dim: Width of the tokens, D. Default 256.
        depth: Number of blocks. Default 6.
        num_heads: Attention heads. Default 4.
        mlp_ratio: Hidden width of the feed-forward part over D. Default 4.
        dropout: Rate after attention and feed-forward. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of the last block; it grows linearly from 0 with depth. Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.
        block_options: Further arguments of each block, such as ``{"query_key_norm": True}``. Default none.

    Call arguments:
        images: ``float[B, F, H, W, 3]``, normalised as the data pipeline does.
        image_mask: ``bool[B, F]``, ``True`` = real frame. What stands in other frames never matters. Default: all real.
        training: Whether dropout is active.

    Returns:
        ``float[B, P, D]`` with ``P = frames · rows · cols`` over `grid`, frame by frame, row-major; `token_mask` says which are
        real.

    Raises:
        ConfigError: If tubelets do not fill the clip, or `attention` is unknown.

    Example:
        >>> import numpy as np
        >>> from mmfusion.encoders import VideoTransformer
        >>> encoder = VideoTransformer(image_size=16, num_frames=4, patch_size=8, tubelet_size=2, dim=16, depth=1, num_heads=2)
        >>> tuple(encoder(np.zeros((2, 4, 16, 16, 3), "float32")).shape), encoder.grid
        ((2, 8, 16), (2, 2, 2))

    Source: Arnab et al., ViViT: a video vision transformer, 2021 (arXiv:2103.15691), section 3.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        num_frames: int,
        patch_size: int = 16,
        tubelet_size: int = 1,
        attention: str = "tiled",
        dim: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        kernel: str = "exact",
        block_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if attention not in ATTENTIONS:
            raise ConfigError("unknown attention", where=self.name, expected=" or ".join(ATTENTIONS), found=repr(attention))
        if num_frames % tubelet_size or height % patch_size or width % patch_size:
            raise ConfigError(
                "the tubelets do not fill the clips",
                where=self.name,
                expected=f"num_frames a multiple of {tubelet_size}, image_size of {patch_size}",
                found=f"{num_frames} frames of {height} x {width}",
                fix="change image_size, num_frames, patch_size or tubelet_size",
            )
        self.image_size = (int(height), int(width))
        self.num_frames = num_frames
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.attention = attention
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.layer_scale = layer_scale
        self.kernel = kernel
        self.block_options = dict(block_options or {})
        self.embedding = TubeletEmbedding(
            patch_size=patch_size, tubelet_size=tubelet_size, dim=dim, dtype=self.dtype_policy, name="tubelet_embedding"
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.blocks = [self._block(index) for index in range(depth)]
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="norm")

    def _block(self, index: int) -> TransformerBlock | SpaceTimeBlock:
        options: dict[str, Any] = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "layer_scale": self.layer_scale,
            "stochastic_depth": self.stochastic_depth * index / max(self.depth - 1, 1),
            "kernel": self.kernel,
            "dtype": self.dtype_policy,
            "name": f"block_{index}",
            **self.block_options,
        }
        if self.attention == "tiled":
            return TransformerBlock(**options)
        return SpaceTimeBlock(num_frames=self.grid[0], **options)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames (of tubelets), rows and columns of the tokens."""
        height, width = self.image_size
        return self.num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    @property
    def images_shape(self) -> tuple[int | None, ...]:
        """Shape of the images that it takes, ``[B, F, H, W, 3]``."""
        return None, self.num_frames, *self.image_size, 3

    def build(self, images_shape: Sequence[int | None] | None = None) -> None:
        """Builds all parts; the shape is known from the constructor."""
        self.embedding.build(self.images_shape)
        tokens_shape = (None, None, self.dim)
        for block in self.blocks:
            block.build(tokens_shape)
        self.norm.build(tokens_shape)
        self.built = True

    def call(self, images: KerasTensor, image_mask: KerasTensor | None = None, training: bool | None = None) -> KerasTensor:
        """Encodes the clips; see the class."""
        tokens = self.dropout_layer(self.embedding(images, frame_mask=image_mask), training=training)
        mask = self.token_mask(image_mask)
        for block in self.blocks:
            tokens = block(tokens, mask=mask, training=training)
        return self.norm(tokens)

    def token_mask(self, image_mask: KerasTensor | None) -> KerasTensor | None:
        """Which tokens are real, ``bool[B, P]``, by which frames are, ``bool[B, F]``; None if all are."""
        return self.embedding.token_mask(image_mask)

    def compute_output_shape(
        self, images_shape: Sequence[int | None], image_mask_shape: Sequence[int | None] | None = None
    ) -> tuple[int | None, int, int]:
        """``[B, P, D]``."""
        frames, rows, columns = self.grid
        return images_shape[0], frames * rows * columns, self.dim

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "image_size", "num_frames", "patch_size", "tubelet_size", "attention", "dim", "depth", "num_heads", "mlp_ratio",
            "dropout", "attention_dropout", "stochastic_depth", "layer_scale", "kernel", "block_options",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
