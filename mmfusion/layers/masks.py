"""Masks: which keys a query may attend to, kept in parts so that no ``T · S`` matrix is needed."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import KerasTensor, ops


class AttentionMask(NamedTuple):
    """What query t may attend to: ``keys[s] and pattern[t, s] and s <= last[t] and (s >= first[t] or s < leading)``.

    A kernel asks for the keys that it works on; only a kernel that holds all scores at once asks for all of them.

    Attributes:
        keys: ``bool[B or 1, S or 1]``, ``True`` = may be attended to by every query; None allows all keys.
        pattern: ``bool[B or 1, T, S or 1]``, where queries differ; None allows all.
        last: ``int32[T]`` or ``int32[B or 1, T]``, the last key that each query sees; None lets it see all.
        first: ``int32[T]``, the first key that each query sees, at most `last`; None lets it see from the start.
        leading: Keys at the start that `first` does not hide. Default 0.
        causal: Whether nothing is hidden but what is after ``t + S - T``, which is all a fused kernel need know. Default False.
        never_empty: Whether every query is known to see a key. Default False.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers.masks import AttentionMask, causal_last
        >>> mask = AttentionMask(last=causal_last(2, 2))
        >>> mask.allowed(np.arange(2)).numpy()[0, 0].tolist()
        [[True, False], [True, True]]
        >>> AttentionMask(keys=np.array([[False, True]]), last=causal_last(2, 2)).sees_any(2).numpy().tolist()
        [[False, True]]
    """

    keys: KerasTensor | None = None
    pattern: KerasTensor | None = None
    last: KerasTensor | None = None
    first: KerasTensor | None = None
    leading: int = 0
    causal: bool = False
    never_empty: bool = False

    @classmethod
    def of(cls, *masks: KerasTensor | None, last: KerasTensor | None = None) -> AttentionMask:
        """What all of several masks allow, each ``bool[B, S]``, ``bool[B, T, S]`` or None, up to the last key of each query."""
        keys = pattern = None
        for mask in masks:
            if mask is None:
                continue
            if len(mask.shape) == 3 and mask.shape[1] != 1:
                pattern = both(pattern, mask)
            else:
                keys = both(keys, mask if len(mask.shape) == 2 else mask[:, 0])
        return cls(keys, pattern, last)

    @property
    def allows_all(self) -> bool:
        """Whether every query may attend to every key."""
        return all(part is None for part in (self.keys, self.pattern, self.last, self.first))

    @property
    def last_of_rows(self) -> KerasTensor:
        """`last`, where there is one, as ``int32[B or 1, T]``."""
        last: Any = self.last
        return last if len(last.shape) == 2 else last[None]

    def allowed(self, places: KerasTensor) -> KerasTensor | None:
        """The mask of the keys at `places`, ``int32[C]``: ``bool[B or 1, 1, T or 1, C or 1]``, or None if all are allowed."""
        result = None
        if self.keys is not None:
            result = _at(self.keys, places)[:, None, None, :]
        if self.pattern is not None:
            result = both(result, _at(self.pattern, places)[:, None])
        if self.last is not None:
            result = both(result, (places <= self.last_of_rows[:, :, None])[:, None])
        if self.first is not None:
            inside = places[None] >= self.first[:, None]
            result = both(result, (ops.logical_or(inside, places < self.leading) if self.leading else inside)[None, None])
        return result

    def sees_any(self, key_length: int | KerasTensor) -> KerasTensor | None:
        """Whether a query sees any of the S keys: ``bool[B or 1, T or 1]``, or None if every query does."""
        if self.never_empty:
            return None
        if self.pattern is not None:
            return ops.any(self.allowed(ops.arange(key_length, dtype="int32")), axis=-1)[:, 0]
        last = None if self.last is None else self.last_of_rows
        if self.keys is None:
            return None if last is None else last >= 0
        if last is None:
            return ops.any(self.keys, axis=-1)[:, None]
        if self.first is None:
            # The first real key decides, so causality needs no T · S matrix here either.
            first = ops.cast(ops.argmax(ops.cast(self.keys, "int32"), axis=-1), "int32")
            return ops.logical_and(ops.any(self.keys, axis=-1)[:, None], first[:, None] <= last)
        return self._any_inside(key_length, last)

    def _any_inside(self, key_length: int | KerasTensor, last: KerasTensor) -> KerasTensor:
        # Real keys before each place; a window has some where the count differs at its ends.
        keys: Any = ops.cast(self.keys, "int32")
        before = ops.pad(ops.cumsum(keys, axis=-1), [[0, 0], [1, 0]])
        if keys.shape[-1] == 1:
            before = ops.arange(key_length + 1, dtype="int32")[None] * keys
        rows = ops.shape(before)[0] if last.shape[0] == 1 else ops.shape(last)[0]
        before, last = (ops.broadcast_to(x, (rows, ops.shape(x)[1])) for x in (before, last))

        def count(places: KerasTensor) -> KerasTensor:
            return ops.take_along_axis(before, ops.clip(places, 0, key_length), axis=1)

        start: Any = self.first
        first = ops.broadcast_to(start[None], (rows, ops.shape(start)[0]))
        inside = count(last + 1) > count(first)
        if not self.leading:
            return inside
        return ops.logical_or(inside, count(ops.minimum(last + 1, self.leading)) > 0)


def causal_last(query_length: int | KerasTensor, key_length: int | KerasTensor) -> KerasTensor:
    """The last key that each of T causal queries sees, ``t + S - T``: ``int32[T]``."""
    return ops.arange(query_length, dtype="int32") + (key_length - query_length)


def both(first: KerasTensor | None, second: KerasTensor | None) -> KerasTensor | None:
    """What two masks of one rank allow, where None allows everything."""
    if first is None or second is None:
        return second if first is None else first
    return ops.logical_and(first, second)


def real_keys(mask: KerasTensor | None) -> KerasTensor | None:
    """Keys that any query may attend to: of ``bool[B, S]`` or ``bool[B, T, S]``, ``bool[B, S]``."""
    return mask if mask is None or len(mask.shape) == 2 else ops.any(mask, axis=1)


def real_queries(mask: KerasTensor | None) -> KerasTensor | None:
    """Tokens of self-attention that ask for anything: of ``bool[B, S]`` the real ones, of ``bool[B, T, S]`` those with a key."""
    return mask if mask is None or len(mask.shape) == 2 else ops.any(mask, axis=2)


def real_tokens(mask: KerasTensor | None) -> KerasTensor | None:
    """Tokens that take any part in self-attention: of ``bool[B, S]`` the real ones, of ``bool[B, T, S]`` who asks or is asked."""
    if mask is None or len(mask.shape) == 2:
        return mask
    return ops.logical_or(ops.any(mask, axis=2), ops.any(mask, axis=1))


def without_masked(x: KerasTensor, real: KerasTensor | None, axis: int = 1) -> KerasTensor:
    """Zeros where `real`, ``bool[B, N]``, is False, in ``float[B, N, ...]``, or where else `axis` says that N is.

    A weight of exactly 0 times NaN is NaN, forward and in the gradient: what stands in the padding must not even be multiplied.
    """
    if real is None:
        return x
    rows, length = _sizes(real)
    shape = (rows, *[1] * (axis - 1), length, *[1] * (len(x.shape) - axis - 1))
    return ops.where(ops.reshape(real, shape), x, ops.zeros_like(x))


def joined_mask(*streams: tuple[KerasTensor | None, KerasTensor]) -> KerasTensor | None:
    """The mask of streams one behind the other, ``bool[B, N1 + N2 + …]``, or None if all tokens of all of them are real.

    Args:
        *streams: Of each its mask, ``bool[B, N]`` or None, and a tensor ``[B, N, ...]`` that has its sizes.
    """
    if all(mask is None for mask, _ in streams):
        return None
    masks = []
    for mask, tokens in streams:
        ones = ops.ones((length_of(tokens, 0), length_of(tokens)), "bool")
        masks.append(ones if mask is None else ops.logical_and(mask, ones))
    return ops.concatenate(masks, axis=1)


def length_of(x: KerasTensor, axis: int = 1) -> int | KerasTensor:
    """The size of an axis: a number where it is known, else a tensor."""
    return x.shape[axis] if x.shape[axis] is not None else ops.shape(x)[axis]


def _sizes(x: KerasTensor) -> tuple[int | KerasTensor, ...]:
    return tuple(length_of(x, axis) for axis in range(len(x.shape)))


def _at(mask: KerasTensor, places: KerasTensor) -> KerasTensor:
    # A key axis of 1 speaks for all keys. Places past the end are the caller's to mask; clamping spares a padded copy.
    if mask.shape[-1] == 1:
        return mask
    return ops.take(mask, ops.minimum(places, length_of(mask, -1) - 1), axis=-1)
