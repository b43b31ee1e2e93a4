"""How attention is cut into tiles, and what one tile needs: logits under its part of the mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.layers.kernels.soft_cap import soft_cap
from mmfusion.layers.masks import AttentionMask, both, length_of

MASKED = -1e30
# Numbers between queries and keys of one tile, 8 MiB in float32; tried out with benchmarks/attention.py on two cores.
CACHED = 2**21
_TRACED_FOR_ELSEWHERE: ContextVar[bool] = ContextVar("traced_for_elsewhere", default=False)


class Tile(NamedTuple):
    """How much is computed at once.

    Attributes:
        heads: Key/value heads of one example, a divisor of their number; None takes all heads of all examples.
        queries: Queries, about; None takes all.
        keys: Keys, about; None takes all.
    """

    heads: int | None
    queries: int | None
    keys: int | None

    @classmethod
    def of(cls, query: KerasTensor, key: KerasTensor, queries: int | None = None, keys: int | None = None) -> Tile:
        """About so many queries and keys, and as many heads as the processor's cache holds; on an accelerator all.

        Args:
            query: ``float[B, H, T, d]``.
            key: ``float[B, Hkv, S, d]``.
            queries: Queries at a time. Default: all.
            keys: Keys at a time. Default: all.
        """
        lengths = query.shape[2], key.shape[2]
        if None in lengths or not on_processor():
            return cls(None, queries, keys)
        size = Split.of(lengths[0], queries).size * Split.of(lengths[1], keys).size * (query.shape[1] // key.shape[1])
        heads = [heads for heads in range(1, key.shape[1] + 1) if key.shape[1] % heads == 0 and heads * size <= CACHED]
        return cls(max(heads, default=1), queries, keys)


def on_processor() -> bool:
    """Whether TensorFlow computes on the processor, operator by operator; what compiles, or has many cores, wants large tiles."""
    if is_traced_for_elsewhere():
        return False
    return keras.backend.backend() == "tensorflow" and keras.distribution.list_devices()[0].startswith("cpu")


def is_traced_for_elsewhere() -> bool:
    """Whether `traced_for_elsewhere` is open."""
    return _TRACED_FOR_ELSEWHERE.get()


@contextmanager
def traced_for_elsewhere() -> Iterator[None]:
    """While it is open, graphs are for another runtime.

    Nothing is cut to fit this processor's cache, which would need loops, and where it is not known how many texts are about an
    image, each has a row of its keys and values.
    """
    token = _TRACED_FOR_ELSEWHERE.set(True)
    try:
        yield
    finally:
        _TRACED_FOR_ELSEWHERE.reset(token)


class Split(NamedTuple):
    """Equal parts of an axis: `number` of `size`, of which the last may reach past the end."""

    length: int | KerasTensor
    number: int | KerasTensor
    size: int | KerasTensor

    @classmethod
    def of(cls, length: int | KerasTensor, size: int | None) -> Split:
        """Parts of about `size`, between two thirds and one and a half of it; None makes one of all."""
        if size is None:
            return cls(length, 1, max(length, 1) if isinstance(length, int) else length)
        if isinstance(length, int):
            number = max((length + size // 2) // size, 1)
            return cls(length, number, max((length + number - 1) // number, 1))
        number = ops.maximum((length + size // 2) // size, 1)
        return cls(length, number, ops.maximum((length + number - 1) // number, 1))

    @property
    def whole(self) -> bool:
        """Whether there is one part."""
        return isinstance(self.number, int) and self.number == 1

    @property
    def extra(self) -> int | KerasTensor:
        """Places past the end."""
        return 0 if self.size is self.length else self.number * self.size - self.length

    @property
    def even(self) -> bool:
        """Whether it is known that no part reaches past the end."""
        return isinstance(self.extra, int) and self.extra == 0


@dataclass(frozen=True)
class Tiling:
    """Cuts queries and keys into tiles.

    Legend: B examples; H heads, of which g share one of Hkv; n groups of R key/value heads; a tile has M = g · Q rows and K keys.

    Attributes:
        mask: Which keys a query may attend to, or None.
        logit_cap: See `soft_cap`.
        heads: R, of one example; None where R is of all.
        key_heads: Hkv.
        shared: g.
        rows: Of the queries of one head.
        columns: Of the keys.
    """

    mask: AttentionMask | None
    logit_cap: float | None
    heads: int | None
    key_heads: int
    shared: int
    rows: Split
    columns: Split

    @classmethod
    def of(
        cls, query: KerasTensor, key: KerasTensor, mask: AttentionMask | None, tile: Tile, logit_cap: float | None = None
    ) -> Tiling:
        """The tiling of queries ``[B, H, T, d]`` and keys ``[B, Hkv, S, d]``."""
        rows, columns = Split.of(length_of(query, 2), tile.queries), Split.of(length_of(key, 2), tile.keys)
        if mask is not None and mask.allows_all:
            mask = None
        return cls(mask, logit_cap, tile.heads, key.shape[1], query.shape[1] // key.shape[1], rows, columns)

    @property
    def masked(self) -> bool:
        """Whether a query may have no key at all, as far as is known: none may be allowed, or there may be none."""
        some = self.columns.even or (isinstance(self.columns.length, int) and self.columns.length > 0)
        return not some or (self.mask is not None and not self.mask.never_empty)

    def cut_queries(self, x: KerasTensor) -> KerasTensor:
        """``[B, H, T, d]`` as ``[n, parts, R, M, d]``."""
        return self._cut(x, self.rows, self.shared)

    def cut_keys(self, x: KerasTensor) -> KerasTensor:
        """``[B, Hkv, S, d]`` as ``[n, parts, R, K, d]``."""
        return self._cut(x, self.columns, 1)

    def join_queries(self, x: KerasTensor) -> KerasTensor:
        """The inverse of `cut_queries`."""
        return self._join(x, self.rows, self.shared)

    def join_keys(self, x: KerasTensor) -> KerasTensor:
        """The inverse of `cut_keys`."""
        return self._join(x, self.columns, 1)

    def _cut(self, x: KerasTensor, split: Split, shared: int) -> KerasTensor:
        if not split.even:
            x = ops.pad(x, [[0, 0], [0, 0], [0, split.extra], [0, 0]])
        groups, heads = (1, -1) if self.heads is None else (-1, self.heads)
        if split.whole:
            return ops.reshape(x, (groups, 1, heads, shared * split.size, x.shape[-1]))
        x = ops.reshape(x, (groups, heads, shared, split.number, split.size, x.shape[-1]))
        shape = ops.shape(x)
        x = ops.transpose(x, (0, 3, 1, 2, 4, 5))
        return ops.reshape(x, (shape[0], split.number, shape[1], shared * split.size, x.shape[-1]))

    def _join(self, x: KerasTensor, split: Split, shared: int) -> KerasTensor:
        if not split.whole:
            shape = ops.shape(x)
            x = ops.reshape(x, (shape[0], split.number, shape[2], shared, split.size, x.shape[-1]))
            x = ops.transpose(x, (0, 2, 3, 1, 4, 5))
        x = ops.reshape(x, (-1, self.key_heads * shared, split.number * split.size, x.shape[-1]))
        return x if split.even else x[:, :, : split.length]

    def allowed(self, group: KerasTensor, row: KerasTensor, column: KerasTensor) -> KerasTensor | None:
        """The mask of a tile, ``bool[B or 1, 1, Q or 1, K or 1]``, or None if all is allowed."""
        places = ops.arange(self.columns.size, dtype="int32")
        if not self.columns.whole:
            places = places + column * self.columns.size
        mask = self.mask
        if mask is not None and self.heads is not None:
            mask = _of_example(mask, group // (self.key_heads // self.heads))
        if mask is not None and not self.rows.whole:
            mask = _of_queries(mask, self._places(row))
        allowed = None if mask is None else mask.allowed(places)
        return allowed if self.columns.even else both(allowed, (places < self.columns.length)[None, None, None])

    def reaches(self, row: KerasTensor, column: KerasTensor) -> KerasTensor | None:
        """Whether any query of a tile may see that far, or None if that is not known without looking at each."""
        if self.mask is None or self.mask.last is None or self.columns.whole:
            return None
        last = self.mask.last if self.rows.whole else _of_queries(AttentionMask(last=self.mask.last), self._places(row)).last
        return ops.max(last) >= column * self.columns.size

    def _places(self, row: KerasTensor) -> KerasTensor:
        return ops.minimum(row * self.rows.size + ops.arange(self.rows.size, dtype="int32"), self.rows.length - 1)

    def logits(self, q: KerasTensor, k: KerasTensor, allowed: KerasTensor | None) -> KerasTensor:
        """``float32[R, M, K]``."""
        logits = soft_cap(ops.cast(ops.matmul(q, ops.swapaxes(k, -1, -2)), "float32"), self.logit_cap)
        if allowed is None:
            return logits
        return self._filled(logits, allowed[:, :, None], MASKED, self.shared, self.rows.size, self.columns.size)

    def turned_logits(self, q: KerasTensor, k: KerasTensor, allowed: KerasTensor | None) -> KerasTensor:
        """``float32[R, K, M]``: turned, no large matrix of the gradient is read across its rows."""
        logits = soft_cap(ops.cast(ops.matmul(k, ops.swapaxes(q, -1, -2)), "float32"), self.logit_cap)
        if allowed is None:
            return logits
        turned = ops.swapaxes(allowed, -1, -2)[:, :, :, None]
        return self._filled(logits, turned, MASKED, self.columns.size, self.shared, self.rows.size)

    def without_empty(self, output: KerasTensor, allowed: KerasTensor | None) -> KerasTensor:
        """What queries read, ``float[R, M, d]``: zeros for those that the mask of all keys allows none."""
        if allowed is None or not self.masked:
            return output
        some = ops.any(allowed, axis=-1, keepdims=True)[:, :, None]
        return self._filled(output, some, 0, self.shared, self.rows.size, output.shape[-1])

    def slope(self, logits: KerasTensor) -> KerasTensor:
        """The derivative of the cap, ``1 - tanh²``, from what the cap gave; at masked logits, which have no weight, 0."""
        return 1.0 - ops.square(ops.clip(logits / self.logit_cap, -1.0, 1.0))

    def _filled(self, x: KerasTensor, kept: KerasTensor, value: float, *sizes: Any) -> KerasTensor:
        examples = (-1, self.key_heads) if self.heads is None else (1, self.heads)
        filled = ops.where(kept, ops.reshape(x, (*examples, *sizes)), ops.cast(value, x.dtype))
        return ops.reshape(filled, ops.shape(x))


def _of_example(mask: AttentionMask, index: KerasTensor) -> AttentionMask:
    def one(x: KerasTensor | None, rank: int = 2) -> KerasTensor | None:
        if x is None or len(x.shape) < rank or x.shape[0] == 1:
            return x
        # One example may stand for all where only the graph's run knows.
        return ops.take(x, ops.minimum(index, length_of(x, 0) - 1)[None], axis=0)

    return mask._replace(keys=one(mask.keys), pattern=one(mask.pattern, 3), last=one(mask.last))


def _of_queries(mask: AttentionMask, places: KerasTensor) -> AttentionMask:
    def some(x: KerasTensor | None, axis: int) -> KerasTensor | None:
        return None if x is None else ops.take(x, places, axis=axis)

    return mask._replace(pattern=some(mask.pattern, 1), last=some(mask.last, -1), first=some(mask.first, 0))
