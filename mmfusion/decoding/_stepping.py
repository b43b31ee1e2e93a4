"""What every decoder does at each token: carry a state of any structure through a loop, and score the next token."""

from __future__ import annotations

from collections.abc import Callable
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
        shared: The same structure with a bool for each tensor, True for one that belongs to the example, not to one of its
            texts: it does not enter the loop. Default: none does.

    Attributes:
        leaves: The state's tensors that a loop carries.
    """

    def __init__(self, step: StepFunction, state: Any, shared: Any = None) -> None:
        self._step = step
        self._structure = state
        flat = [None if leaf is None else ops.convert_to_tensor(leaf) for leaf in keras.tree.flatten(state)]
        own = [False] * len(flat) if shared is None else [bool(leaf) for leaf in keras.tree.flatten(shared)]
        if len(own) != len(flat):
            raise ConfigError(
                "shared has another structure than the state", where="shared", expected=f"{len(flat)} leaves", found=len(own)
            )
        # Fixed by not entering the loop, not by identity: what a graph hands back is never the same object.
        self._fixed = [leaf if is_own else None for leaf, is_own in zip(flat, own, strict=True)]
        self._is_carried = [leaf is not None and not is_own for leaf, is_own in zip(flat, own, strict=True)]
        self.leaves = [leaf for leaf, carried in zip(flat, self._is_carried, strict=True) if carried]

    def __call__(self, token_ids: KerasTensor, leaves: list[KerasTensor]) -> tuple[KerasTensor, list[KerasTensor]]:
        """``int32[N]`` and the tensors of a state to ``float[N, V]`` and the tensors of the next."""
        remaining = iter(leaves)
        flat = [next(remaining) if carried else fixed for carried, fixed in zip(self._is_carried, self._fixed, strict=True)]
        logits, state = self._step(token_ids, keras.tree.pack_sequence_as(self._structure, flat))
        if len(logits.shape) != 2:
            raise ConfigError(
                "a decoding step gives one row of logits for each token",
                where="step",
                expected="float[N, V]",
                found=f"shape {tuple(logits.shape)}",
            )
        new = keras.tree.flatten(state)
        found, expected = ([leaf is not None for leaf in tensors] for tensors in (new, flat))
        if found != expected:
            raise _state_error(f"{sum(expected)} tensors", f"{sum(found)}")
        new = [leaf for leaf, carried in zip(new, self._is_carried, strict=True) if carried]
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


def repeat_rows(leaf: KerasTensor, times: int, batch_size: int | KerasTensor) -> KerasTensor:
    """A tensor of a state for so many texts about each example; scalars are the same for all."""
    if not len(leaf.shape):
        return leaf
    if isinstance(batch_size, int) and leaf.shape[0] not in (None, batch_size):
        raise ConfigError(
            "the first axis of a decoding state is the batch",
            where="state",
            expected=f"[{batch_size}, ...]",
            found=str(list(leaf.shape)),
        )
    return ops.repeat(leaf, times, axis=0)


def known_vocabulary(scores: KerasTensor) -> int:
    """The number of token ids, V.

    Raises:
        ConfigError: If it is not known, or there is no choice.
    """
    size = scores.shape[-1]
    if size is None or size < 2:
        raise ConfigError("decoding needs a known vocabulary", where="step", expected="V of 2 or more", found=size)
    return int(size)


def check_options(*options: tuple[str, Any, bool, str]) -> None:
    """Raises `ConfigError` for the first option that is impossible.

    Args:
        *options: Name, value, whether it fits, and what would.
    """
    for name, value, fits, expected in options:
        if not fits:
            raise ConfigError("impossible decoding option", where=name, expected=expected, found=value)


def check_limit(limit: int | KerasTensor | None, max_tokens: int) -> int | KerasTensor:
    """How many tokens to write at most: the room, unless there is a limit.

    Raises:
        ConfigError: If there is no room for a limit that is a number.
    """
    if limit is None:
        return max_tokens
    if ops.is_tensor(limit):
        return ops.cast(limit, "int32")
    check_options(("limit", limit, 1 <= limit <= max_tokens, f"1 to max_tokens ({max_tokens})"))
    return limit


def check_at_least_one(**sizes: int) -> None:
    """Raises `ConfigError` for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError("impossible decoding option", where=name, expected="at least 1", found=value)
