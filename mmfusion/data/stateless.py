"""Random numbers as pure functions of their keys, so that any step of any epoch can be computed on its own."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(*keys: int | np.ndarray) -> np.ndarray:
    """Mixes integer keys into uniform 64-bit numbers (SplitMix64), element by element.

    NumPy's generators promise no stable streams between versions; a resumed run must see the same order.

    Args:
        *keys: Integers or integer arrays; they broadcast.

    Returns:
        ``uint64[...]`` of the broadcast shape.

    Example:
        >>> bool(hash64(1, 2) == hash64(1, 2)), bool(hash64(1, 2) == hash64(2, 1))
        (True, False)

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def permutation(size: int, *keys: int) -> np.ndarray:
    """A permutation of ``range(size)`` that only the keys decide.

    Args:
        size: Number of elements.
        *keys: Integers, as seed and epoch.

    Returns:
        ``int64[size]``.

    Example:
        >>> sorted(permutation(4, 7, 0).tolist())
        [0, 1, 2, 3]
    """
    return np.argsort(hash64(*keys, np.arange(size)), kind="stable")
