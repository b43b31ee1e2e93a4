"""One text a row, token by token: the loop of all decoders that never go back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import KerasTensor, ops

from mmfusion.decoding._stepping import Stepper, check_limit, keep_form
from mmfusion.decoding.outputs import DecodeOutput
from mmfusion.decoding.token_rules import TokenRules

Choose = Callable[[KerasTensor, KerasTensor], KerasTensor]


def write_rows(
    stepper: Stepper,
    choose: Choose,
    *,
    rows: int | KerasTensor,
    start_id: int,
    end_id: int,
    pad_id: int,
    max_tokens: int,
    rules: TokenRules,
    limit: int | KerasTensor | None = None,
) -> DecodeOutput:
    """Writes until each text has ended. An ended text stays as it is while others go on.

    Args:
        stepper: The step function and its state, of so many rows.
        choose: From the scores of the next token, ``float32[N, V]`` with ``-inf`` for what may not come, and the position,
            ``int32[]``, to the tokens, ``int32[N]``.
        rows: N.
        start_id: The token to begin with.
        end_id: The token that ends a text.
        pad_id: What follows the end.
        max_tokens: L, most tokens to write.
        rules: What may be written.
        limit: Most tokens to write this time, 1 to L; may be a scalar tensor. Default: L.

    Returns:
        The texts. One that no token could go on is ended there, with a score of ``-inf``.
    """
    columns = ops.arange(max_tokens, dtype="int32")[None, :]
    most = check_limit(limit, max_tokens)

    def unfinished(position: KerasTensor, *carried: Any) -> KerasTensor:
        return ops.logical_and(position < most, ops.logical_not(ops.all(carried[4])))

    def write(position: KerasTensor, *carried: Any) -> tuple[Any, ...]:
        tokens, last, total, lengths, ended, leaves = carried
        logits, leaves = stepper(last, leaves)
        scores = rules.scores(logits, position, tokens, end_id=end_id, pad_id=pad_id)
        possible = ops.max(scores, axis=-1) > float("-inf")
        # Where nothing is possible the choice would be token 0, which may be the padding.
        token = ops.where(possible, choose(scores, position), end_id)
        own = ops.take_along_axis(scores, token[:, None], axis=-1)[:, 0]
        token = ops.where(ended, pad_id, token)
        new = (
            ops.where(columns == position, token[:, None], tokens),
            token,
            total + ops.where(ended, 0.0, ops.where(possible, own, float("-inf"))),
            lengths + ops.cast(ops.logical_not(ended), "int32"),
            ops.logical_or(ended, token == end_id),
        )
        return position + 1, *map(keep_form, new, carried[:5]), leaves

    _, tokens, _, total, lengths, _, _ = ops.while_loop(
        unfinished,
        write,
        (
            ops.zeros((), "int32"),
            ops.full((rows, max_tokens), pad_id, "int32"),
            ops.full((rows,), start_id, "int32"),
            ops.zeros((rows,), "float32"),
            ops.zeros((rows,), "int32"),
            ops.zeros((rows,), "bool"),
            stepper.leaves,
        ),
    )
    return DecodeOutput(tokens, total / ops.cast(lengths, "float32"), lengths)
