"""Numbers between 0 and 1 for each row of its own seed: the same whatever stands beside it, on every backend."""

from __future__ import annotations

import numpy as np
from keras import KerasTensor, ops

# The finaliser of MurmurHash3 with the constants of Stafford's mix 13 cut to 32 bits by Wellons ("lowbias32").
_FIRST, _SECOND, _STEP = 0x7FEB352D, 0x846CA68B, 0x9E3779B9


def mixed(numbers: KerasTensor, with_numbers: KerasTensor | int) -> KerasTensor:
    """Two whole numbers to one that looks random: ``uint32[...]``.

    Args:
        numbers: ``uint32[...]``, a seed or what came of one.
        with_numbers: ``int32[...]``, what tells draws of one seed apart.
    """
    x = ops.bitwise_xor(numbers, _times(ops.cast(with_numbers, "uint32") + _word(1), _STEP))
    for _ in range(2):
        x = ops.bitwise_xor(x, ops.right_shift(x, _word(16)))
        x = _times(x, _FIRST)
        x = ops.bitwise_xor(x, ops.right_shift(x, _word(15)))
        x = _times(x, _SECOND)
        x = ops.bitwise_xor(x, ops.right_shift(x, _word(16)))
    return x


def uniform(words: KerasTensor) -> KerasTensor:
    """``uint32[...]`` to ``float32[...]`` in ``[0, 1)``, 24 bits of it."""
    return ops.cast(ops.right_shift(words, _word(8)), "float32") * float(2.0**-24)


def _word(value: int) -> KerasTensor:
    return ops.convert_to_tensor(np.uint32(value))


def _times(x: KerasTensor, factor: int) -> KerasTensor:
    return ops.multiply(x, _word(factor))
