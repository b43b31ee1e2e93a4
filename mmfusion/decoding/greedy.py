"""Greedy decoding: always the likeliest token."""

from __future__ import annotations

from typing import Any

from keras import KerasTensor, ops

from mmfusion.decoding._stepping import StepFunction, Stepper
from mmfusion.decoding._writing import write_rows
from mmfusion.decoding.outputs import DecodeOutput
from mmfusion.decoding.token_rules import TokenRules


def greedy(
    step: StepFunction,
    state: Any,
    *,
    batch_size: int | KerasTensor,
    start_id: int,
    end_id: int,
    pad_id: int,
    max_tokens: int,
    rules: TokenRules | None = None,
    shared: Any = None,
    limit: int | KerasTensor | None = None,
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
        rules: What may be written, see `TokenRules`. Default: all but the padding.
        shared: Which tensors of the state belong to the example, see `beam_search`; with one text an example it saves nothing.
        limit: Most tokens to write this time, 1 to L: a number, or a scalar tensor where one graph is to serve all. Default: L.

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
    rules = (rules or TokenRules()).checked(max_tokens)
    return write_rows(
        Stepper(step, state, shared),
        lambda scores, position: ops.cast(ops.argmax(scores, axis=-1), "int32"),
        rows=batch_size,
        start_id=start_id,
        end_id=end_id,
        pad_id=pad_id,
        max_tokens=max_tokens,
        rules=rules,
        limit=limit,
    )
