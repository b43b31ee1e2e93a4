"""Token ids into tokens, and tokens into scores of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.checks import check_tokens
from mmfusion.layers.masks import length_of
from mmfusion.layers.positions import check_positions, sinusoids


@keras.saving.register_keras_serializable(package="mmfusion")
class TokenEmbedding(keras.layers.Layer):
    """``embedding[id] + position[offset + t]``, and its transpose as output layer.

    Args:
        vocabulary_size: Number of ids, V.
        dim: Width of the tokens, D.
        max_length: Number of positions.
        positions: ``"learned"``, ``"sinusoidal"`` (D even) or ``"none"``, for attention with rotary positions. Default
            ``"learned"``.

    Call arguments:
        token_ids: ``int[B, T]``.
        offset: Position of the first token; more than 0 when text comes in pieces. Default 0.

    Returns:
        ``float[B, T, D]``.

    Raises:
        ConfigError: If `positions` are unknown, or the ids are not ``int[B, T]`` or T is more than `max_length`.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import TokenEmbedding
        >>> layer = TokenEmbedding(vocabulary_size=7, dim=4, max_length=5)
        >>> tokens = layer(np.array([[1, 2, 3]]))
        >>> tuple(tokens.shape), tuple(layer.logits(tokens).shape)
        ((1, 3, 4), (1, 3, 7))

    Source: tied input and output layer: Press and Wolf 2017 (arXiv:1608.05859).
    """

    def __init__(self, *, vocabulary_size: int, dim: int, max_length: int, positions: str = "learned", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.dim = dim
        self.max_length = max_length
        self.positions = positions
        if min(vocabulary_size, dim, max_length) < 1:
            found = f"vocabulary_size={vocabulary_size}, dim={dim}, max_length={max_length}"
            raise ConfigError("impossible sizes", where=self.name, expected="all at least 1", found=found)
        check_positions(positions, dim, 1, self.name)

    def build(self, token_ids_shape: Sequence[int | None] | None = None) -> None:
        """Builds embedding, positions and the bias of the output layer."""
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        self.embedding = self.add_weight(shape=(self.vocabulary_size, self.dim), initializer=initializer, name="embedding")
        if self.positions == "learned":
            self.position = self.add_weight(
                shape=(self.max_length, self.dim), initializer=keras.initializers.TruncatedNormal(stddev=0.02),
                name="position_embedding",
            )  # fmt: skip
        self.output_bias = self.add_weight(shape=(self.vocabulary_size,), initializer="zeros", name="output_bias")
        self.built = True

    def call(self, token_ids: KerasTensor, offset: int | KerasTensor = 0) -> KerasTensor:
        """Embeds the tokens; see the class."""
        self._check(token_ids)
        tokens, places = ops.take(self.embedding, token_ids, axis=0), ops.arange(length_of(token_ids), dtype="int32") + offset
        if self.positions == "none":
            return tokens
        if self.positions == "learned":
            return tokens + ops.take(self.position, places, axis=0)
        return tokens + ops.cast(sinusoids(places, self.dim), tokens.dtype)

    def _check(self, token_ids: KerasTensor) -> None:
        dtype = keras.backend.standardize_dtype(token_ids.dtype)
        if "int" not in dtype:
            raise ConfigError("token_ids have a wrong dtype", where=self.name, expected="whole numbers", found=dtype)
        shape = tuple(token_ids.shape)
        if len(shape) != 2 or (shape[1] or 0) > self.max_length:
            raise ConfigError(
                "token_ids do not fit",
                where=self.name,
                expected=f"[batch, tokens] with at most {self.max_length} tokens",
                found=list(shape),
                fix="cut the texts, or raise max_length",
            )

    def logits(self, tokens: KerasTensor) -> KerasTensor:
        """Scores of all ids: ``float[B, T, D]`` to ``float[B, T, V]``, ``tokens · embeddingᵀ + bias``."""
        tokens = ops.convert_to_tensor(tokens)
        check_tokens(tokens, "tokens", self.name, self.dim)
        embedding, bias = (ops.cast(weight, tokens.dtype) for weight in (self.embedding, self.output_bias))
        if tokens.shape[1] == 1:
            # A step of decoding: few rows times a transposed matrix are many times slower on a processor than this way round.
            return ops.transpose(ops.matmul(embedding, ops.transpose(tokens[:, 0])))[:, None] + bias
        return ops.matmul(tokens, ops.transpose(embedding)) + bias

    def compute_output_shape(self, token_ids_shape: Sequence[int | None]) -> tuple[int | None, int | None, int]:
        """``[B, T, D]``."""
        return token_ids_shape[0], token_ids_shape[1], self.dim

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "dim": self.dim,
            "max_length": self.max_length,
            "positions": self.positions,
        }
