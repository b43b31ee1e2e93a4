"""Streaming: tokens as they are written, to whoever wants to show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from keras import KerasTensor, ops

from mmfusion.decoding._stepping import StepFunction
from mmfusion.decoding.token_rules import TokenRules


def stream(
    step: StepFunction,
    state: Any,
    *,
    batch_size: int,
    start_id: int,
    end_id: int,
    pad_id: int,
    max_tokens: int,
    rules: TokenRules | None = None,
    compile_step: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Iterator[KerasTensor]:
    """Yields the tokens of `greedy` one place at a time, from a loop outside of the graph.

    Args:
        step: ``(token_ids int32[B], state) -> (logits float[B, V], state)``, see `greedy`.
        state: What `step` carries.
        batch_size: B.
        start_id: The token to begin with, not part of the result.
        end_id: The token that ends a text.
        pad_id: What follows the end; never written before it.
        max_tokens: L, most tokens to write, the end token included.
        rules: What may be written, see `TokenRules`. Default: all but the padding.
        compile_step: From what computes one place to a faster form of it, `tf.function` say. Default: as it is.

    Yields:
        ``int32[B]``, the padding for a text that has ended; it stops when all have.

    Raises:
        ConfigError: If limits cannot be kept.

    Example:
        >>> import numpy as np
        >>> from mmfusion.decoding import stream
        >>> successor = np.full((6, 6), -9.0, "float32")
        >>> successor[[1, 2, 3, 4], [2, 3, 4, 5]] = 9.0
        >>> places = stream(
        ...     lambda token_ids, state: (successor[np.asarray(token_ids)], state),
        ...     (), batch_size=1, start_id=1, end_id=5, pad_id=0, max_tokens=6)
        >>> [int(tokens[0]) for tokens in places]
        [2, 3, 4, 5]
    """
    rules = (rules or TokenRules()).checked(max_tokens)

    def place(position: KerasTensor, tokens: KerasTensor, last: KerasTensor, ended: KerasTensor, state: Any) -> tuple[Any, ...]:
        logits, state = step(last, state)
        scores = rules.scores(logits, position, tokens, end_id=end_id, pad_id=pad_id)
        possible = ops.max(scores, axis=-1) > float("-inf")
        token = ops.where(possible, ops.cast(ops.argmax(scores, axis=-1), "int32"), end_id)
        token = ops.where(ended, pad_id, token)
        tokens = ops.where(ops.arange(max_tokens, dtype="int32")[None] == position, token[:, None], tokens)
        return tokens, token, ops.logical_or(ended, token == end_id), state

    compiled = compile_step(place)
    tokens, last = ops.full((batch_size, max_tokens), pad_id, "int32"), ops.full((batch_size,), start_id, "int32")
    ended = ops.zeros((batch_size,), "bool")
    for position in range(max_tokens):
        tokens, last, ended, state = compiled(ops.convert_to_tensor(position, "int32"), tokens, last, ended, state)
        yield last
        if bool(ops.all(ended)):
            return
