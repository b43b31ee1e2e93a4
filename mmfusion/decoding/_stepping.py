"""What every decoder does at each token: carry a state of any structure, and score the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError

StepFunction = Callable[[KerasTensor, Any], tuple[KerasTensor, Any]]


class Stepper:
    """Calls a step function with its state held flat.

    A loop carries tensors of fixed form, while a state may be nested and hold None.

    Args:
        step: ``(token_ids int32[N], state) -> (logits float[N, V], state)``.
        state: Nested tensors or None.

    Attributes:
        leaves: The state's tensors.
    """

    def __init__(self, step: StepFunction, state: Any) -> None:
        self._step = step
        self._structure = state
        flat = keras.tree.flatten(state)
        self._is_tensor = [leaf is not None for leaf in flat]
        self.leaves = [ops.convert_to_tensor(leaf) for leaf in flat if leaf is not None]

    def __call__(self, token_ids: KerasTensor, leaves: list[KerasTensor]) -> tuple[KerasTensor, list[KerasTensor]]:
        """``int32[N]`` and the tensors of a state to ``float[N, V]`` and the tensors of the next."""
        remaining = iter(leaves)
        flat = [next(remaining) if is_tensor else None for is_tensor in self._is_tensor]
        logits, state = self._step(token_ids, keras.tree.pack_sequence_as(self._structure, flat))
        if len(logits.shape) != 2:
            raise ConfigError(
                "a decoding step gives one row of logits for each token",
                where="step",
                expected="float[N, V]",
                found=f"shape {tuple(logits.shape)}",
            )
        new = keras.tree.flatten(state)
        if [leaf is not None for leaf in new] != self._is_tensor:
            raise _state_error(f"{sum(self._is_tensor)} tensors", f"{sum(leaf is not None for leaf in new)}")
        new = [leaf for leaf in new if leaf is not None]
        return logits, [keep_form(leaf, old) for leaf, old in zip(new, leaves, strict=True)]


def keep_form(new: Any, old: KerasTensor) -> KerasTensor:
    """`new` with all that is known of `old`'s shape, since a loop's variables must not lose theirs."""
    if new is old:
        return old
    new = ops.convert_to_tensor(new)
    old_type, new_type = (keras.backend.standardize_dtype(x.dtype) for x in (old, new))
    known, shape = tuple(old.shape), tuple(new.shape)
    fits = len(known) == len(shape) and all(a is None or b is None or a == b for a, b in zip(known, shape, strict=True))
    if old_type != new_type or not fits:
        raise _state_error(f"{old_type}{list(known)}", f"{new_type}{list(shape)}")
    if all(a is None or b is not None for a, b in zip(known, shape, strict=True)):
        return new
    dynamic = ops.shape(new)
    return ops.reshape(new, [dynamic[i] if size is None else size for i, size in enumerate(known)])


def _state_error(expected: str, found: str) -> ConfigError:
    return ConfigError(
        "a decoding step must return a state like the one it was given",
        where="step",
        expected=expected,
        found=found,
        fix="give the state its full size from the start",
    )


def log_probabilities(
    logits: KerasTensor,
    position: KerasTensor,
    *,
    end_id: int,
    pad_id: int,
    min_tokens: int,
    forbidden_ids: Sequence[int] = (),
) -> KerasTensor:
    """The model's log-probabilities of the next token, ``-inf`` for what may not come next.

    They are not spread anew over what is allowed, so that a text's score is what the model itself says of it. A row
    without any finite logit comes out as ``-inf``, never NaN.

    Args:
        logits: ``float[N, V]``.
        position: ``int32[]``, how many tokens were written so far.
        end_id: The end token, forbidden before `min_tokens`.
        pad_id: Forbidden, unless it is the end token too.
        min_tokens: Fewest tokens before the end token.
        forbidden_ids: Tokens that are never written. Default none.

    Returns:
        ``float32[N, V]``.
    """
    scores = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    token_ids = ops.arange(logits.shape[-1], dtype="int32")[None, :]
    forbidden = ops.isnan(scores)
    for never in sorted({pad_id, *forbidden_ids} - {end_id}):
        forbidden = ops.logical_or(forbidden, token_ids == never)
    if min_tokens > 0:
        forbidden = ops.logical_or(forbidden, ops.logical_and(token_ids == end_id, position < min_tokens))
    return ops.where(forbidden, float("-inf"), scores)


def check_limits(*, max_tokens: int, min_tokens: int, beam_size: int = 1) -> None:
    """Raises `ConfigError` for limits that cannot be kept."""
    for name, value, fits, expected in (
        ("beam_size", beam_size, beam_size >= 1, "at least 1"),
        ("max_tokens", max_tokens, max_tokens >= 1, "at least 1"),
        ("min_tokens", min_tokens, 0 <= min_tokens <= max_tokens, f"0 to max_tokens ({max_tokens})"),
    ):
        if not fits:
            raise ConfigError("impossible decoding option", where=name, expected=expected, found=value)
