"""Layers that treat each token alone, given all tokens as the rows of one matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.layers.kernels.tiling import is_traced_for_elsewhere


def by_rows(layer: Callable[[KerasTensor], KerasTensor], tokens: KerasTensor) -> KerasTensor:
    """What a layer makes of each token, computed on TensorFlow for ``[B·N, D]``.

    Where nothing stands between, TensorFlow makes one operator of a product, its bias and ``relu`` or ``gelu``. Keras's ``Dense``
    puts the shape of tokens back between product and bias.

    Args:
        layer: From ``float[..., D]`` to ``float[..., E]``, each row by itself.
        tokens: ``float[B, N, D]``.

    Returns:
        ``float[B, N, E]``.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> from mmfusion.layers.rows import by_rows
        >>> tuple(by_rows(keras.layers.Dense(8, activation="gelu"), np.ones((2, 3, 4), "float32")).shape)
        (2, 3, 8)
    """
    # tf2onnx 1.17 mistakes a reshape to two sizes that are not known.
    if keras.backend.backend() != "tensorflow" or is_traced_for_elsewhere():
        return layer(tokens)
    sizes: Any = ops.shape(tokens)
    rows = layer(ops.reshape(tokens, (-1, tokens.shape[-1])))
    return ops.reshape(rows, (*sizes[:-1], rows.shape[-1]))
