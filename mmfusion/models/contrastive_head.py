"""The contrastive head: both streams into one embedding space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers import AttentionPooling
from mmfusion.layers.masks import length_of, without_masked

POOLINGS = ("mean", "first", "last", "attention")


@keras.saving.register_keras_serializable(package="mmfusion")
class ContrastiveHead(keras.layers.Layer):
    """Pools and projects image and text tokens to unit-length embeddings; owns temperature and bias.

    ``embedding = normalise(W · pool(tokens) + b)``, b where `projection_bias` says so; ``logits = exp(log_scale) · image · textᵀ
    + bias``. The bias takes part in the sigmoid loss only (the softmax loss does not feel it).

    Args:
        embedding_dim: Width of the shared space, E.
        image_pooling: ``"mean"`` over the tokens, the ``"first"`` or the ``"last"`` of them, or ``"attention"`` of a learned
            query (SigLIP). Default ``"mean"``.
        text_pooling: The same of the real tokens; ``"last"`` is CLIP's, for text that is read left to right. Default ``"mean"``.
        image_heads: Heads where the image is pooled by attention. Default 4.
        text_heads: Heads where the text is pooled by attention. Default 4.
        pooling_mlp_ratio: Hidden width of a feed-forward part after pooling by attention, over its tokens' width, as in SigLIP's
            head, where it is 4; None has none. Default None.
        image_norm: Whether what is pooled of the image is normalised before the projection. Default False.
        text_norm: The same of the text, for an encoder whose tokens are not (open_clip's CoCa). Default False.
        norm_epsilon: Of these normalisations. Default 1e-6.
        projection_bias: Whether both projections have a bias (BLIP). Default False.
        initial_temperature: Start of the global temperature; its inverse is the scale. Default 0.07.
        max_scale: The scale in use never exceeds this, and training takes no step beyond it. A head that was loaded with more
            learns back from there: the cap has no part in the gradient. Default 100.
        initial_bias: Start of the bias. Default 0.

    Call arguments:
        image: ``float[B, P, Di]``.
        text: ``float[B, T, D]``.
        text_mask: ``bool[B, T]``, ``True`` = real token. What is behind it never changes the result. Default: all real.
        image_mask: ``bool[B, P]``, ``True`` = real patch. Default: all real.

    Returns:
        Two ``float[B, E]`` of unit length, in float32.

    Raises:
        ConfigError: If a pooling is unknown, or temperature or max_scale is not above 0.

    Example:
        >>> import numpy as np
        >>> from mmfusion.models import ContrastiveHead
        >>> image, text = ContrastiveHead(embedding_dim=4)(np.ones((2, 9, 8), "float32"), np.ones((2, 5, 6), "float32"))
        >>> [round(float(n), 4) for n in (image ** 2).numpy().sum(-1)]
        [1.0, 1.0]

    Source: Radford et al., CLIP, 2021 (arXiv:2103.00020); the bias and pooling by attention: Zhai et al., SigLIP, 2023
    (arXiv:2303.15343).
    """

    def __init__(
        self,
        *,
        embedding_dim: int,
        image_pooling: str = "mean",
        text_pooling: str = "mean",
        image_heads: int = 4,
        text_heads: int = 4,
        pooling_mlp_ratio: float | None = None,
        image_norm: bool = False,
        text_norm: bool = False,
        norm_epsilon: float = 1e-6,
        projection_bias: bool = False,
        initial_temperature: float = 0.07,
        max_scale: float = 100.0,
        initial_bias: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        for pooling in (image_pooling, text_pooling):
            if pooling not in POOLINGS:
                raise ConfigError("unknown pooling", where=self.name, expected=" or ".join(POOLINGS), found=repr(pooling))
        for name, number in (("initial_temperature", initial_temperature), ("max_scale", max_scale)):
            if not number > 0:
                raise ConfigError(f"impossible {name}", where=self.name, expected="more than 0", found=number)
        self.embedding_dim = embedding_dim
        self.image_pooling = image_pooling
        self.text_pooling = text_pooling
        self.image_heads = image_heads
        self.text_heads = text_heads
        self.pooling_mlp_ratio = pooling_mlp_ratio
        self.image_norm = image_norm
        self.text_norm = text_norm
        self.norm_epsilon = norm_epsilon
        self.projection_bias = projection_bias
        self.initial_temperature = initial_temperature
        self.max_scale = max_scale
        self.initial_bias = initial_bias
        self.image_projection, self.text_projection = (
            keras.layers.Dense(embedding_dim, use_bias=projection_bias, dtype=self.dtype_policy, name=f"{stream}_projection")
            for stream in ("image", "text")
        )
        self.image_pooled_norm = self._norm("image_norm") if image_norm else None
        self.text_pooled_norm = self._norm("text_norm") if text_norm else None
        self.image_pooler = self._pooler("image_pooler", image_heads) if image_pooling == "attention" else None
        self.text_pooler = self._pooler("text_pooler", text_heads) if text_pooling == "attention" else None

    def _norm(self, name: str) -> keras.layers.LayerNormalization:
        return keras.layers.LayerNormalization(epsilon=self.norm_epsilon, dtype=self.dtype_policy, name=name)

    def _pooler(self, name: str, num_heads: int) -> AttentionPooling:
        return AttentionPooling(num_heads=num_heads, mlp_ratio=self.pooling_mlp_ratio, dtype=self.dtype_policy, name=name)

    def build(self, image_shape: Sequence[int | None], text_shape: Sequence[int | None]) -> None:
        """Builds the projections, the temperature and the bias."""
        self.image_projection.build((None, image_shape[-1]))
        self.text_projection.build((None, text_shape[-1]))
        for pooler, width in ((self.image_pooler, image_shape[-1]), (self.text_pooler, text_shape[-1])):
            if pooler is not None:
                pooler.build((None, None, width))
        for norm, width in ((self.image_pooled_norm, image_shape[-1]), (self.text_pooled_norm, text_shape[-1])):
            if norm is not None:
                norm.build((None, width))
        self.log_scale = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(math.log(1.0 / self.initial_temperature)),
            constraint=self._capped,
            name="log_scale",
            dtype="float32",
            autocast=False,
        )
        self.bias = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(self.initial_bias),
            name="bias",
            dtype="float32",
            autocast=False,
        )
        self.built = True

    @property
    def scale(self) -> KerasTensor:
        """``float32[]``, the inverse temperature, at most `max_scale`; its gradient by ``log_scale`` is its value everywhere."""
        log = ops.convert_to_tensor(self.log_scale)
        # Of a minimum the gradient would be 0 from the cap on, so that the scale could never come down again.
        value = ops.stop_gradient(ops.minimum(ops.exp(log), self.max_scale))
        return value * ops.exp(log - ops.stop_gradient(log))

    def _capped(self, log_scale: KerasTensor) -> KerasTensor:
        # Without it, steps that the cap hides would add up, and as many be needed back.
        return ops.minimum(log_scale, math.log(self.max_scale))

    def embed_image(self, tokens: KerasTensor, mask: KerasTensor | None = None) -> KerasTensor:
        """``float[B, P, Di]`` and ``bool[B, P]`` to unit-length ``float32[B, E]``."""
        pooled = _pooled(tokens, mask, self.image_pooling, self.image_pooler)
        return _embedded(pooled, mask, self.image_pooled_norm, self.image_projection)

    def embed_text(self, tokens: KerasTensor, mask: KerasTensor | None = None) -> KerasTensor:
        """``float[B, T, D]`` and ``bool[B, T]`` to unit-length ``float32[B, E]``."""
        pooled = _pooled(tokens, mask, self.text_pooling, self.text_pooler)
        return _embedded(pooled, mask, self.text_pooled_norm, self.text_projection)

    def compute_mask(self, *arguments: Any, **options: Any) -> None:
        """The result has no tokens, so no mask."""

    def call(
        self,
        image: KerasTensor,
        text: KerasTensor,
        text_mask: KerasTensor | None = None,
        image_mask: KerasTensor | None = None,
    ) -> tuple[KerasTensor, KerasTensor]:
        """Embeds both; see the class."""
        return self.embed_image(image, image_mask), self.embed_text(text, text_mask)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = (
            "embedding_dim", "image_pooling", "text_pooling", "image_heads", "text_heads", "pooling_mlp_ratio",
            "image_norm", "text_norm", "norm_epsilon", "projection_bias", "initial_temperature", "max_scale", "initial_bias",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def mean_of_real(tokens: KerasTensor, mask: KerasTensor | None = None) -> KerasTensor:
    """The mean of the real tokens of ``float[B, N, D]``, by ``bool[B, N]``: ``float[B, D]``, zeros where there is none."""
    if mask is None:
        return ops.mean(tokens, axis=1)
    count = ops.maximum(ops.sum(ops.cast(mask, tokens.dtype), axis=1, keepdims=True), 1)
    return ops.sum(without_masked(tokens, mask), axis=1) / count


def _pooled(tokens: KerasTensor, mask: KerasTensor | None, pooling: str, pooler: AttentionPooling | None) -> KerasTensor:
    """``float[B, N, D]`` to ``float[B, D]``; zeros where an example has no real token."""
    if pooler is not None:
        return pooler(tokens, mask)
    real = without_masked(tokens, mask)
    if pooling == "first":
        return real[:, 0]
    if mask is None:
        return tokens[:, -1] if pooling == "last" else ops.mean(tokens, axis=1)
    if pooling == "last":
        # The last real place, wherever the padding stands.
        places = ops.arange(length_of(tokens), dtype="int32")[None]
        last = ops.max(ops.where(mask, places, -1), axis=1, keepdims=True)
        return ops.sum(without_masked(real, places == last), axis=1)
    return mean_of_real(tokens, mask)


def _embedded(pooled: KerasTensor, mask: KerasTensor | None, norm: Any, projection: keras.layers.Dense) -> KerasTensor:
    embedded = projection(pooled if norm is None else norm(pooled))
    if mask is not None and (norm is not None or projection.use_bias):
        # Of what has no real token their biases would be left.
        embedded = without_masked(embedded, ops.any(mask, axis=1, keepdims=True))
    return _unit_length(embedded)


def _unit_length(x: KerasTensor) -> KerasTensor:
    return ops.normalize(ops.cast(x, "float32"), axis=-1, epsilon=1e-6)
