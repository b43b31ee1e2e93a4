"""Greedy decoding: always the likeliest token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import KerasTensor, ops

from mmfusion.decoding._stepping import StepFunction, Stepper, check_limits, keep_form, log_probabilities
from mmfusion.decoding.outputs import DecodeOutput


def greedy(
    step: StepFunction,
    state: Any,
    *,
    batch_size: int | KerasTensor,
    start_id: int,
    end_id: int,
    pad_id: int,
    max_tokens: int,
    min_tokens: int = 0,
    forbidden_ids: Sequence[int] = (),
) -> DecodeOutput:
    """Writes the likeliest token again and again, until each text has ended.

    Runs eagerly, in `tf.function` (with ``jit_compile`` too) and under `jax.jit`. An ended text costs nothing: its
    tokens, score and length stay as they are while others go on.

    Args:
        step: ``(token_ids int32[B], state) -> (logits float[B, V], state)``. It is called with the start tokens first,
            and at most `max_tokens` times. Logits may be of any float type, and ``-inf`` for what cannot come.
        state: What `step` carries: nested tensors (or None), whose shapes and types do not change.
        batch_size: B; an ``int32[]`` tensor where it is free.
        start_id: The token to begin with, not part of the result.
        end_id: The token that ends a text.
        pad_id: What follows the end; never written before it.
        max_tokens: L, most tokens to write, the end token included.
        min_tokens: Fewest tokens before the end token. Default 0.
        forbidden_ids: Tokens that are never written, [UNK] say. Default none.

    Returns:
        The texts. A text that no token could go on is ended there, with a score of ``-inf``.

    Raises:
        ConfigError: If limits cannot be kept, or `step` gives what it should not.

    Example:
        A model that counts, and ends after 4:

        >>> import numpy as np
        >>> from mmfusion.decoding import greedy
        >>> successor = np.full((6, 6), -9.0, "float32")
        >>> successor[[1, 2, 3, 4], [2, 3, 4, 5]] = 9.0
        >>> output = greedy(
        ...     lambda token_ids, state: (successor[np.asarray(token_ids)], state),
        ...     (), batch_size=2, start_id=1, end_id=5, pad_id=0, max_tokens=6)
        >>> output.token_ids[0].numpy().tolist(), int(output.lengths[0])
        ([2, 3, 4, 5, 0, 0], 4)
    """
    check_limits(max_tokens=max_tokens, min_tokens=min_tokens)
    stepper = Stepper(step, state)
    columns = ops.arange(max_tokens, dtype="int32")[None, :]

    def unfinished(position: KerasTensor, *carried: Any) -> KerasTensor:
        ended = carried[4]
        return ops.logical_and(position < max_tokens, ops.logical_not(ops.all(ended)))

    def write(position: KerasTensor, *carried: Any) -> tuple[Any, ...]:
        tokens, last, total, lengths, ended, leaves = carried
        logits, leaves = stepper(last, leaves)
        scores = log_probabilities(
            logits, position, end_id=end_id, pad_id=pad_id, min_tokens=min_tokens, forbidden_ids=forbidden_ids
        )
        best = ops.max(scores, axis=-1)
        # Where nothing is possible argmax would name token 0, which may be the padding.
        token = ops.where(best > float("-inf"), ops.cast(ops.argmax(scores, axis=-1), "int32"), end_id)
        token = ops.where(ended, pad_id, token)
        new = (
            ops.where(columns == position, token[:, None], tokens),
            token,
            total + ops.where(ended, 0.0, best),
            lengths + ops.cast(ops.logical_not(ended), "int32"),
            ops.logical_or(ended, token == end_id),
        )
        return position + 1, *map(keep_form, new, carried[:5]), leaves

    _, tokens, _, total, lengths, _, _ = ops.while_loop(
        unfinished,
        write,
        (
            ops.zeros((), "int32"),
            ops.full((batch_size, max_tokens), pad_id, "int32"),
            ops.full((batch_size,), start_id, "int32"),
            ops.zeros((batch_size,), "float32"),
            ops.zeros((batch_size,), "int32"),
            ops.zeros((batch_size,), "bool"),
            stepper.leaves,
        ),
    )
    return DecodeOutput(tokens, total / ops.cast(lengths, "float32"), lengths)
