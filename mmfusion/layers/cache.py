"""What attention remembers between the steps of decoding."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import KerasTensor

from mmfusion.layers.kernels.tiling import is_traced_for_elsewhere


class KeyValueCache(NamedTuple):
    """Keys and values of self-attention so far, in room for L tokens.

    Attributes:
        key: ``float[B, Hkv, L, d]``, as kernels read them.
        value: ``float[B, Hkv, L, d]``.
        position: ``int32[]``, how many of the L places are filled.
    """

    key: KerasTensor
    value: KerasTensor
    position: KerasTensor


class ContextCache(NamedTuple):
    """Keys and values of cross-attention, computed once for all steps and for all texts about one image.

    Attributes:
        key: ``float[B, Hkv, S, d]``, as kernels read them.
        value: ``float[B, Hkv, S, d]``.
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


def may_share(query: KerasTensor, cache: ContextCache) -> bool:
    """Whether consecutive rows of a query share a row of a cache of fewer rows, or may, as far as sizes are known.

    Where graphs are `traced_for_elsewhere`, only if they are known to: tf2onnx 1.17 mistakes a reshape to two sizes that are not.

    Args:
        query: ``float[N, T, D]``.
        cache: Of B rows; N must be a multiple of B.
    """
    rows, own = query.shape[0], cache.key.shape[0]
    if None in (rows, own):
        return not is_traced_for_elsewhere()
    return 0 < own < rows and rows % own == 0


def shared_by_texts(state: Any) -> Any:
    """Which tensors of a state of decoding belong to the image, not to the text that is written about it.

    Args:
        state: Nested caches.

    Returns:
        The same structure with a bool for each tensor: True in a `ContextCache`, whose rows serve all texts about an image.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import ContextCache
        >>> from mmfusion.layers.cache import shared_by_texts
        >>> shared_by_texts((ContextCache(np.ones((1, 1, 2, 4)), np.ones((1, 1, 2, 4)), None), np.ones(1)))
        (ContextCache(key=True, value=True, mask=None), False)
    """
    if isinstance(state, ContextCache):
        return ContextCache(*(None if part is None else True for part in state))
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*map(shared_by_texts, state))
    if isinstance(state, tuple | list):
        return type(state)(map(shared_by_texts, state))
    return None if state is None else False
