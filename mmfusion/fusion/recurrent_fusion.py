"""Recurrent fusion: LSTMs read the text, and look at the image before each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.fusion.cache_size import CacheSize, keys_and_values
from mmfusion.fusion.cost import Cost, dense_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.layers import AttentiveLSTM, AttentiveLSTMOutput, LayerScale, LSTMState, ProjectedMemory, StochasticDepth
from mmfusion.layers.masks import length_of


class RecurrentCache(NamedTuple):
    """What one layer of a `RecurrentFusion` carries from token to token.

    Attributes:
        state: The `mmfusion.layers.LSTMState` after the last token.
        memory: The `mmfusion.layers.ProjectedMemory` of the image.
        position: ``int32[]``, how many tokens were read.
    """

    state: LSTMState
    memory: ProjectedMemory
    position: KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class RecurrentFusion(Fusion):
    """Show, attend and tell: a stack of LSTMs, each of which asks the image with its state before it reads a token.

    Each of the ``depth`` layers computes, token by token, ``z = σ(f(h)) · Attention(h, image)`` and
    ``h, c = LSTM([Norm(x), z], (h, c))``, from a state that the mean patch gives; then, for all tokens at once,
    ``x += W_o tanh(L_x Norm(x) + L_h h + L_z z)``, the paper's deep output, of width r·D. Causal, it reads left to right;
    otherwise a second LSTM a layer reads right to left, and both enter the deep output: every token knows the whole text. A
    masked token leaves the state as it is.

    Cost of a pass both ways with T text tokens, P image tokens, widths D and Di, L layers, H heads, ratio r:
    ``2·P·D·Di + 4·L·(T·D²·(13 + 3r) + P·D² + 2·T·P·D + T·D + 2·D²)`` floating point operations, in T steps that wait for each
    other; ``L·(2·T·P·(D + H) + T·D·(15 + r) + 4·P·D + 4·D) + P·Di`` numbers kept for the gradient, without ``2·L·T·D·(P + 1)`` if
    multiplicative. `cost` says them for given sizes.

    Args:
        dim: Width of the text tokens and of the LSTMs, D.
        image_dim: Width of the image tokens, Di; default D.
        depth: Number of layers. Default 2.
        num_heads: Attention heads, each with its own part of the features; the paper has 1. Default 4.
        mlp_ratio: Width of the deep output over D, r. Default 4.
        dropout: Rate in the deep output and after it. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping the last layer; it grows linearly from 0. Default 0.
        layer_scale: Initial gain of each layer; None has no gain. Default None.
        kernel: ``"exact"`` alone: attention of one state at a time has no other. Default ``"exact"``.
        attention: ``"additive"`` or ``"multiplicative"``, see `mmfusion.layers.AttentiveLSTM`. Default ``"additive"``.
        unroll: Whether the steps are laid out in the graph one after the other: larger, sometimes faster. Default False.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``; may be None when a cache is given.
        text_mask: ``bool[B, T]``, ``True`` = real token; with a cache over its L places, ``bool[B, L]``.
        image_mask: ``bool[B, P]``, ``True`` = real patch.
        causal: Whether a text token sees only the text up to itself. The image is seen whole.
        cache: A `FusionCache` of `RecurrentCache` from `init_cache`, for step by step decoding.
        return_scores: Whether to return the attention from text to image: where the state that reads a token looked; not causal,
            the mean of both directions.
        training: Whether dropout is active.

    Returns:
        `FusionOutput`; the image tokens pass unchanged.

    Raises:
        ConfigError: If a cache is given and `causal` is not, the kernel is not ``"exact"``, or an input does not fit.

    Example:
        >>> import numpy as np
        >>> from mmfusion.fusion import RecurrentFusion
        >>> fusion = RecurrentFusion(dim=8, depth=2, num_heads=2)
        >>> output = fusion(np.ones((1, 3, 8), "float32"), np.ones((1, 4, 8), "float32"), return_scores=True)
        >>> tuple(output.text.shape), tuple(output.scores.shape)
        ((1, 3, 8), (1, 2, 2, 3, 4))

    Source: Xu et al., Show, Attend and Tell, 2015 (arXiv:1502.03044), soft attention, equations 1 to 7 and 13.
    """

    cache_entry = RecurrentCache

    def __init__(
        self,
        *,
        dim: int,
        image_dim: int | None = None,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        kernel: str = "exact",
        attention: str = "additive",
        unroll: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dim=dim,
            image_dim=image_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            stochastic_depth=stochastic_depth,
            layer_scale=layer_scale,
            kernel=kernel,
            **kwargs,
        )
        self.attention = attention
        self.unroll = unroll
        if kernel != "exact":
            raise ConfigError(
                "attention of one state at a time has one kernel",
                where=self.name,
                expected="kernel='exact'",
                found=repr(kernel),
                fix="leave fusion.kernel out",
            )
        self.image_projection = keras.layers.Dense(dim, dtype=self.dtype_policy, name="image_projection")
        self.readers = [_Reader(self, index) for index in range(depth)]
        self.norm = self.make_norm("norm")

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds all layers; the widths are known from the constructor."""
        self.image_projection.build((None, None, self.image_dim))
        for reader in self.readers:
            reader.build((None, None, self.dim))
        self.norm.build((None, None, self.dim))
        self.built = True

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: the image projected once, and the states that it gives; `max_length` does not matter."""
        image, image_mask = self.checked_image(image, image_mask)
        memory, layers = self.image_projection(image), []
        for reader in self.readers:
            projected = reader.forward.project_memory(memory, image_mask)
            layers.append(RecurrentCache(reader.forward.first_state(projected), projected, ops.convert_to_tensor(0, "int32")))
        return FusionCache(tuple(layers))

    def call(
        self,
        text: KerasTensor,
        image: KerasTensor | None = None,
        text_mask: KerasTensor | None = None,
        image_mask: KerasTensor | None = None,
        causal: bool = False,
        cache: FusionCache | None = None,
        return_scores: bool = False,
        training: bool | None = None,
    ) -> FusionOutput:
        """Joins the two streams; see the class."""
        text, image, text_mask, image_mask = self.checked(text, image, text_mask, image_mask, causal, cache)
        if cache is not None and text_mask is not None:
            rows, length, position = ops.shape(text_mask)[0], length_of(text), cache.layers[0].position
            text_mask = text_mask if text_mask.shape[1] == 1 else ops.slice(text_mask, [0, position], [rows, length])
        memory = None if image is None else self.image_projection(image)
        scores, caches = [], []
        for index, reader in enumerate(self.readers):
            layer_cache = None if cache is None else cache.layers[index]
            text, weights, state = reader(
                text,
                memory=memory,
                text_mask=text_mask,
                image_mask=image_mask,
                causal=causal,
                cache=layer_cache,
                training=training,
            )
            scores.append(weights)
            if layer_cache is not None:
                caches.append(RecurrentCache(state, layer_cache.memory, layer_cache.position + length_of(text)))
        return FusionOutput(
            text=self.norm(text),
            image=image,
            scores=ops.stack(scores, axis=1) if return_scores else None,
            cache=None if cache is None else FusionCache(tuple(caches)),
        )

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs, both ways; see the class for the formula."""
        self.check_lengths(text_length, image_length)
        tokens, patches, dim, deep = text_length, image_length, self.dim, int(self.dim * self.mlp_ratio)
        asked = tokens * patches
        direction = dense_cost(patches, dim, dim) + 2 * dense_cost(1, dim, dim) + 3 * dense_cost(tokens, dim, 4 * dim)
        direction += dense_cost(tokens, dim, 1) + 2 * dense_cost(tokens, dim, deep)
        direction += Cost(4 * asked * dim, asked * self.num_heads + patches * dim)
        if self.attention == "additive":
            direction += dense_cost(tokens, dim, dim) + Cost(0, asked * dim)
        layer = 2 * direction + dense_cost(tokens, dim, deep) + dense_cost(tokens, deep, dim)
        return dense_cost(patches, self.image_dim, dim) + self.depth * layer

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What decoding remembers of each text: two states and the projected patches, ``2·L·(P + 1)·D`` numbers."""
        self.check_lengths(text_length, image_length)
        return self.depth * CacheSize(own=keys_and_values(image_length, self.dim) + 2 * self.dim)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "attention": self.attention, "unroll": self.unroll}


class _Reader(keras.layers.Layer):
    """One layer: an LSTM a direction, and the deep output of both."""

    def __init__(self, owner: RecurrentFusion, index: int) -> None:
        super().__init__(dtype=owner.dtype_policy, name=f"reader_{index}")
        self.supports_masking = True
        self.norm = owner.make_norm("norm")
        self.forward, self.backward = (
            AttentiveLSTM(
                units=owner.dim,
                attention=owner.attention,
                num_heads=owner.num_heads,
                attention_dropout=owner.attention_dropout,
                unroll=owner.unroll,
                dtype=self.dtype_policy,
                name=name,
            )
            for name in ("forward", "backward")
        )
        deep = int(owner.dim * owner.mlp_ratio)
        self.of_text = keras.layers.Dense(deep, dtype=self.dtype_policy, name="of_text")
        self.of_readers = {
            name: keras.layers.Dense(deep, use_bias=False, dtype=self.dtype_policy, name=name)
            for name in ("of_forward", "of_forward_context", "of_backward", "of_backward_context")
        }
        self.output_dense = keras.layers.Dense(owner.dim, dtype=self.dtype_policy, name="output")
        self.dropout_layer = keras.layers.Dropout(owner.dropout, dtype=self.dtype_policy, name="dropout")
        self.gain = (
            None if owner.layer_scale is None else LayerScale(initial=owner.layer_scale, dtype=self.dtype_policy, name="scale")
        )
        self.drop_branch = StochasticDepth(
            rate=owner.stochastic_depth_at(index), dtype=self.dtype_policy, name="stochastic_depth"
        )

    def build(self, shape: Sequence[int | None]) -> None:
        for part in (self.norm, self.of_text, *self.of_readers.values()):
            part.build(shape)
        for lstm in (self.forward, self.backward):
            lstm.build(shape, shape)
        self.output_dense.build((None, None, self.of_text.units))
        if self.gain is not None:
            self.gain.build(shape)
        self.built = True

    def call(
        self,
        text: KerasTensor,
        memory: KerasTensor | None = None,
        text_mask: KerasTensor | None = None,
        image_mask: KerasTensor | None = None,
        causal: bool = False,
        cache: RecurrentCache | None = None,
        training: bool | None = None,
    ) -> tuple[KerasTensor, KerasTensor, LSTMState]:
        tokens = self.norm(text)
        known: dict[str, Any] = {"memory": memory, "memory_mask": image_mask}
        if cache is not None:
            known = {"projected": cache.memory, "state": cache.state}
        read = self.forward(tokens, tokens_mask=text_mask, training=training, **known)
        hidden, scores = self.of_text(tokens) + self._deep("of_forward", read), read.weights
        if not causal:
            back = self.backward(tokens, tokens_mask=text_mask, reverse=True, training=training, **known)
            hidden, scores = hidden + self._deep("of_backward", back), (scores + back.weights) / 2.0
        branch = self.output_dense(self.dropout_layer(ops.tanh(hidden), training=training))
        branch = self.dropout_layer(branch, training=training)
        return text + self.drop_branch(branch if self.gain is None else self.gain(branch), training=training), scores, read.state

    def _deep(self, name: str, read: AttentiveLSTMOutput) -> KerasTensor:
        return self.of_readers[name](read.hidden) + self.of_readers[f"{name}_context"](read.context)
