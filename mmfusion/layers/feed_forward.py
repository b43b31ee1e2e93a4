"""The feed-forward part of a transformer block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor

from mmfusion.errors import ConfigError
from mmfusion.layers.activations import activation_function
from mmfusion.layers.checks import check_rate, check_tokens, check_width
from mmfusion.layers.rows import by_rows


@keras.saving.register_keras_serializable(package="mmfusion")
class FeedForward(keras.layers.Layer):
    """``W_2 · dropout(activation(W_1 x + b_1)) + b_2``, token by token.

    Gated, ``W_2 · dropout(activation(W_g x + b_g) * (W_1 x + b_1)) + b_2``; with ``"silu"`` that is SwiGLU.

    Args:
        hidden_dim: Width between the two projections.
        activation: Keras's name of it (``"gelu"`` is the exact one), or ``"quick_gelu"`` (CLIP) or ``"tanh_gelu"`` (SigLIP).
            Default ``"gelu"``.
        dropout: Rate between the two projections. Default 0.
        use_bias: Whether the projections have biases. Default True.
        gated: Whether a third projection passes through the activation and gates the first. Default False.

    Call arguments:
        tokens: ``float[B, N, D]``.
        training: Whether dropout is active.

    Returns:
        ``float[B, N, D]``.

    Raises:
        ConfigError: If a constructor argument is impossible, or rank, width or dtype of the tokens is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import FeedForward
        >>> tuple(FeedForward(hidden_dim=16)(np.ones((2, 3, 4), "float32")).shape)
        (2, 3, 4)

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.3; gated: Shazeer 2020 (arXiv:2002.05202).
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        activation: str = "gelu",
        dropout: float = 0.0,
        use_bias: bool = True,
        gated: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.activation = activation
        self.dropout = dropout
        self.use_bias = use_bias
        self.gated = gated
        self.supports_masking = True
        check_rate(dropout, "dropout", self.name)
        if hidden_dim < 1:
            raise ConfigError("impossible hidden_dim", where=self.name, expected="at least 1", found=hidden_dim)
        options = {"use_bias": use_bias, "dtype": self.dtype_policy}
        function = activation_function(activation, self.name)
        self.hidden = keras.layers.Dense(hidden_dim, activation=None if gated else function, name="hidden", **options)
        self.gate = keras.layers.Dense(hidden_dim, activation=function, name="gate", **options) if gated else None
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        """Builds both projections for the width of the tokens."""
        self._dim = check_width(tokens_shape, "tokens", self.name)
        self.output_dense = keras.layers.Dense(self._dim, use_bias=self.use_bias, dtype=self.dtype_policy, name="output")
        self.hidden.build((None, self._dim))
        if self.gate is not None:
            self.gate.build((None, self._dim))
        self.output_dense.build((None, self.hidden_dim))
        self.built = True

    def call(self, tokens: KerasTensor, training: bool | None = None) -> KerasTensor:
        """Applies it; see the class."""
        check_tokens(tokens, "tokens", self.name, self._dim)
        return by_rows(lambda rows: self._applied(rows, training), tokens)

    def _applied(self, rows: KerasTensor, training: bool | None) -> KerasTensor:
        hidden = self.hidden(rows)
        if self.gate is not None:
            hidden = self.gate(rows) * hidden
        return self.output_dense(self.dropout_layer(hidden, training=training))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "activation": self.activation,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "gated": self.gated,
        }
