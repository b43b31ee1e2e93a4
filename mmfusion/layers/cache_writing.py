"""How new tokens are written into a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import keras
from keras import KerasTensor, ops

_SCATTERED: ContextVar[bool] = ContextVar("scattered", default=False)


def write_at(cache: KerasTensor, position: int | KerasTensor, new: KerasTensor) -> KerasTensor:
    """A cache with new tokens from a place on.

    Args:
        cache: ``[B, H, L, d]``.
        position: The first place, ``int32[]``; there must be room.
        new: ``[B, H, n, d]``, of the cache's type.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers.cache_writing import write_at
        >>> np.asarray(write_at(np.zeros((1, 1, 4, 1), "float32"), 2, np.ones((1, 1, 1, 1), "float32")))[0, 0, :, 0].tolist()
        [0.0, 0.0, 1.0, 0.0]
    """
    if new.shape[2] == 1 and keras.backend.backend() == "tensorflow":
        # Keras updates slices by an operator of XLA there, whose call alone costs more than this.
        places = ops.arange(ops.shape(cache)[2], dtype="int32")[:, None]
        return ops.where(places == position, new, cache)
    if not _SCATTERED.get():
        return ops.slice_update(cache, [0, 0, position, 0], new)
    rows, heads, number, width = ops.shape(new)
    sizes = (rows, heads, number)
    axes = (ops.arange(rows, dtype="int32"), ops.arange(heads, dtype="int32"), position + ops.arange(number, dtype="int32"))
    grid = [
        ops.broadcast_to(ops.reshape(axis, [-1 if other == own else 1 for other in range(3)]), sizes)
        for own, axis in enumerate(axes)
    ]
    index = ops.stack([ops.reshape(places, (-1,)) for places in grid], axis=-1)
    return ops.scatter_update(cache, index, ops.reshape(new, (-1, width)))


@contextmanager
def scattered_writes() -> Iterator[None]:
    """While graphs are traced in it, caches are written by scattering.

    Keras updates slices by an operator of XLA on TensorFlow, which TensorFlow Serving runs only if it is told to compile
    (``--xla_cpu_compilation_enabled``). The numbers are the same.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers.cache_writing import scattered_writes, write_at
        >>> with scattered_writes():
        ...     np.asarray(write_at(np.zeros((1, 1, 4, 1), "float32"), 2, np.ones((1, 1, 2, 1), "float32")))[0, 0, :, 0].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    token = _SCATTERED.set(True)
    try:
        yield
    finally:
        _SCATTERED.reset(token)
