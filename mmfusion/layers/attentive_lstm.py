"""An LSTM that looks at a memory before each of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.additive_attention import AdditiveAttention
from mmfusion.layers.checks import check_rate, check_tokens, check_width, checked_mask
from mmfusion.layers.masks import length_of, without_masked
from mmfusion.layers.memory_attention import ProjectedMemory
from mmfusion.layers.multiplicative_attention import MultiplicativeAttention


class LSTMState(NamedTuple):
    """Where an LSTM stands.

    Attributes:
        hidden: ``float[B, U]``.
        cell: ``float[B, U]``.
    """

    hidden: KerasTensor
    cell: KerasTensor


class AttentiveLSTMOutput(NamedTuple):
    """What an `AttentiveLSTM` returns.

    Attributes:
        hidden: ``float[B, T, U]``, the hidden state after each token.
        context: ``float[B, T, Dm]``, what was seen of the memory before it, gated.
        weights: ``float32[B, H, T, S]``, where it looked.
        state: The `LSTMState` after the last token.
    """

    hidden: KerasTensor
    context: KerasTensor
    weights: KerasTensor
    state: LSTMState


@keras.saving.register_keras_serializable(package="mmfusion")
class AttentiveLSTM(keras.layers.Layer):
    """``z = σ(f(h)) · Attention(h, memory); h, c = LSTM([x, z], (h, c))``, token by token, from a state that the memory gives.

    The first state is ``tanh(W_h m̄)`` and ``tanh(W_c m̄)`` of the memory's mean m̄ over real tokens. A masked token leaves the
    state as it is.

    Args:
        units: Width of the state, U.
        attention: ``"additive"`` or ``"multiplicative"`` (general). Default ``"additive"``.
        num_heads: Heads of the attention. Default 1.
        attention_dropout: Rate at which attention weights are dropped in training. Default 0.
        unroll: Whether a known number of steps is laid out in the graph one after the other: larger, sometimes faster. Default
            False.
        seed: Seed of the dropout.

    Call arguments:
        tokens: ``float[B, T, D]``.
        memory: ``float[B, S, Dm]``; None with `projected` and `state`.
        tokens_mask: ``bool[B, T]``, ``True`` = real token. Default: all real.
        memory_mask: ``bool[B, S]``, ``True`` = real token. Default: all real.
        state: An `LSTMState` to go on from. Default: the memory's.
        projected: A `ProjectedMemory` of `project_memory`, in place of the memory.
        reverse: Whether to read from the last token to the first. Default False.
        training: Whether dropout is active.

    Returns:
        An `AttentiveLSTMOutput`.

    Raises:
        ConfigError: If an option is impossible, or rank, width or dtype of tokens, memory or masks is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import AttentiveLSTM
        >>> output = AttentiveLSTM(units=4)(np.ones((2, 3, 6), "float32"), np.ones((2, 5, 8), "float32"))
        >>> tuple(output.hidden.shape), tuple(output.context.shape), tuple(output.weights.shape)
        ((2, 3, 4), (2, 3, 8), (2, 1, 3, 5))

    Source: Xu et al., Show, Attend and Tell, 2015 (arXiv:1502.03044), section 3.1.2 and 4.2.1; Hochreiter and Schmidhuber 1997.
    """

    def __init__(
        self,
        *,
        units: int,
        attention: str = "additive",
        num_heads: int = 1,
        attention_dropout: float = 0.0,
        unroll: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.attention = attention
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.unroll = unroll
        self.seed = seed
        if units < 1:
            raise ConfigError("impossible units", where=self.name, expected="at least 1", found=units)
        if attention not in ("additive", "multiplicative"):
            expected = "'additive' or 'multiplicative'"
            raise ConfigError("unknown attention", where=self.name, expected=expected, found=repr(attention))
        check_rate(attention_dropout, "attention_dropout", self.name)
        options = {"num_heads": num_heads, "dtype": self.dtype_policy, "name": "attention"}
        self.attend: Any = AdditiveAttention(**options) if attention == "additive" else MultiplicativeAttention(**options)
        self.dropout_layer = keras.layers.Dropout(attention_dropout, seed=seed, dtype=self.dtype_policy, name="dropout")

    def build(self, tokens_shape: Sequence[int | None], memory_shape: Sequence[int | None]) -> None:
        """Builds the cell, its attention and its first state for the widths of tokens and memory."""
        self._dim = check_width(tokens_shape, "tokens", self.name)
        self._memory_dim = memory_dim = check_width(memory_shape, "memory", self.name)
        self.attend.build((None, None, self.units), (None, None, memory_dim))
        self.inputs = self._dense("inputs", self._dim, 4 * self.units)
        self.recurrent = self._dense("recurrent", self.units, 4 * self.units, use_bias=False, kernel_initializer=_orthogonal)
        self.seen = self._dense("seen", memory_dim, 4 * self.units, use_bias=False)
        self.gate = self._dense("gate", self.units, 1)
        self.first_hidden = self._dense("first_hidden", memory_dim, self.units, activation="tanh")
        self.first_cell = self._dense("first_cell", memory_dim, self.units, activation="tanh")
        self.built = True

    def _dense(self, name: str, width: int, units: int, **options: Any) -> keras.layers.Dense:
        dense = keras.layers.Dense(units, dtype=self.dtype_policy, name=name, **options)
        dense.build((None, width))
        return dense

    def project_memory(self, memory: KerasTensor, memory_mask: KerasTensor | None = None) -> ProjectedMemory:
        """What is the same at every step; memory and mask are those of the call."""
        return self.attend.project_memory(memory, memory_mask)

    def first_state(self, projected: ProjectedMemory) -> LSTMState:
        """The state before the first token, of the memory's mean; of zeros where no token is real."""
        shape, length = ops.shape(projected.value), length_of(projected.value, 2)
        total = ops.reshape(ops.sum(ops.cast(projected.value, "float32"), axis=2), (shape[0], self._memory_dim))
        if projected.mask is None:
            count: Any = length
        else:
            count = ops.sum(ops.cast(projected.mask, "float32"), axis=1, keepdims=True)
            if projected.mask.shape[1] == 1:
                count = count * ops.cast(length, "float32")
        mean = ops.cast(total / ops.maximum(ops.cast(count, "float32"), 1.0), self.compute_dtype)
        return LSTMState(self.first_hidden(mean), self.first_cell(mean))

    def call(
        self,
        tokens: KerasTensor,
        memory: KerasTensor | None = None,
        tokens_mask: KerasTensor | None = None,
        memory_mask: KerasTensor | None = None,
        state: LSTMState | None = None,
        projected: ProjectedMemory | None = None,
        reverse: bool = False,
        training: bool | None = None,
    ) -> AttentiveLSTMOutput:
        """Reads the tokens; see the class."""
        check_tokens(tokens, "tokens", self.name, self._dim)
        tokens_mask = checked_mask(tokens_mask, "tokens_mask", self.name, tokens.shape, tokens.shape[1], ranks=(2,))
        known = self.project_memory(memory, memory_mask) if projected is None else projected
        start = self.first_state(known) if state is None else state
        # All that does not wait for the state is computed for all steps at once.
        steps: dict[str, KerasTensor] = {"inputs": self.inputs(without_masked(tokens, tokens_mask))}
        rows, length, patches = ops.shape(tokens)[0], length_of(tokens), ops.shape(known.key)[2]
        if tokens_mask is not None:
            steps["real"] = ops.broadcast_to(tokens_mask, (rows, length))[:, :, None]
        if training and self.attention_dropout:
            # A loop cannot draw anew at each step on every backend.
            kept = ops.ones((rows, length, self.num_heads, patches), self.compute_dtype)
            steps["keep"] = self.dropout_layer(kept, training=training)[:, :, :, None]
        steps = {name: ops.swapaxes(x, 0, 1) for name, x in steps.items()}

        def step(carry: tuple, now: dict[str, KerasTensor]) -> tuple[tuple, tuple]:
            hidden, cell = carry[0], carry[1]
            context, weights = self.attend(hidden[:, None], projected=known, keep=now.get("keep"))
            weights = weights[:, None] if self.num_heads == 1 else weights
            context = ops.sigmoid(self.gate(hidden)) * context[:, 0]
            gates = now["inputs"] + self.recurrent(hidden) + self.seen(context)
            enter, forget, candidate, leave = ops.split(gates, 4, axis=-1)
            # Forgetting starts rare, as the bias of 1 does elsewhere.
            new_cell = ops.sigmoid(forget + 1.0) * cell + ops.sigmoid(enter) * ops.tanh(candidate)
            new_hidden = ops.sigmoid(leave) * ops.tanh(new_cell)
            if "real" in now:
                new_hidden, new_cell = ops.where(now["real"], new_hidden, hidden), ops.where(now["real"], new_cell, cell)
            after = new_hidden, new_cell, context, weights[:, :, 0]
            return after, after

        # The loop of TensorFlow wants outputs of the form of what it carries.
        nothing = ops.zeros((rows, self._memory_dim), self.compute_dtype), ops.zeros((rows, self.num_heads, patches))
        begin = (*(ops.cast(x, self.compute_dtype) for x in start), *nothing)
        last, outputs = self._scan(step, begin, steps, length, reverse)
        hidden, _, context, weights = (ops.swapaxes(x, 0, 1) for x in outputs)
        return AttentiveLSTMOutput(hidden, context, ops.swapaxes(weights, 1, 2), LSTMState(last[0], last[1]))

    def _scan(self, step: Any, carry: tuple, steps: dict[str, KerasTensor], length: Any, reverse: bool) -> tuple[tuple, tuple]:
        if not isinstance(length, int):
            return self._scan_unknown(step, carry, steps, reverse)
        if length > 1 and not self.unroll:
            return ops.scan(step, carry, steps, reverse=reverse)
        outputs = []
        for index in reversed(range(length)) if reverse else range(length):
            carry, output = step(carry, {name: x[index] for name, x in steps.items()})
            outputs.append(output)
        ordered = outputs[::-1] if reverse else outputs
        return carry, tuple(ops.stack(parts, axis=0) for parts in zip(*ordered, strict=True))

    def _scan_unknown(self, step: Any, carry: tuple, steps: dict[str, KerasTensor], reverse: bool) -> tuple[tuple, tuple]:
        # Keras's scan on TensorFlow compares the lengths of several tensors, and cannot if it does not know them: one has all.
        width, rows = 4 * self.units, ops.shape(steps["inputs"])[1]
        length = ops.shape(steps["inputs"])[0]
        parts = [ops.reshape(ops.cast(x, self.compute_dtype), (length, rows, -1)) for x in steps.values()]

        def unpacked(carry: tuple, now: KerasTensor) -> tuple[tuple, tuple]:
            known = {"inputs": now[:, :width]}
            if "real" in steps:
                known["real"] = now[:, width : width + 1] > 0
            if "keep" in steps:
                keep = now[:, width + ("real" in steps) :]
                known["keep"] = ops.reshape(keep, (rows, self.num_heads, 1, -1))
            return step(carry, known)

        return ops.scan(unpacked, carry, ops.concatenate(parts, axis=-1), reverse=reverse)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("units", "attention", "num_heads", "attention_dropout", "unroll", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _orthogonal(shape: Sequence[int], dtype: str | None = None) -> KerasTensor:
    # Of bfloat16 no backend decomposes a matrix.
    return ops.cast(keras.initializers.Orthogonal()(shape, "float32"), dtype or keras.config.floatx())
