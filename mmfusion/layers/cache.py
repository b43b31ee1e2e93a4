"""What attention remembers between the steps of decoding."""

from __future__ import annotations

from typing import NamedTuple

from keras import KerasTensor


class KeyValueCache(NamedTuple):
    """Keys and values of self-attention so far, in room for L tokens.

    Attributes:
        key: ``float[B, L, Hkv, d]``.
        value: ``float[B, L, Hkv, d]``.
        position: ``int32[]``, how many of the L places are filled.
    """

    key: KerasTensor
    value: KerasTensor
    position: KerasTensor


class ContextCache(NamedTuple):
    """Keys and values of cross-attention, computed once for all steps.

    Attributes:
        key: ``float[B, S, Hkv, d]``.
        value: ``float[B, S, Hkv, d]``.
        mask: ``bool[B, S]``, ``True`` = real token, or None.
    """

    key: KerasTensor
    value: KerasTensor
    mask: KerasTensor | None


class BlockCache(NamedTuple):
    """The caches of one transformer block.

    Attributes:
        self_attention: Of its self-attention, or None where it has none.
        cross_attention: Of its cross-attention, or None where it has none.
        prefix_mask: ``bool[B, M]``, ``True`` = real token, of the M tokens that fill the first places of `self_attention` from
            the start; None where there are none.
    """

    self_attention: KeyValueCache | None
    cross_attention: ContextCache | None
    prefix_mask: KerasTensor | None = None
