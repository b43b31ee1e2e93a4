"""A short word for a model's weights, by which an export knows the model that it was made from."""

from __future__ import annotations

import hashlib

import keras
import numpy as np


def fingerprint(model: keras.Model) -> str:
    """The SHA-256 of the values of all weights, in their order, with their shapes and dtypes.

    Args:
        model: The model, built.

    Returns:
        64 hexadecimal digits: the same for the same weights, on every machine.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> first = fingerprint(model)
        >>> model.layers[0].bias.assign([1.0])  # doctest: +ELLIPSIS
        <...>
        >>> len(first), first == fingerprint(model)
        (64, False)
    """
    digest = hashlib.sha256()
    for weight in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        digest.update(f"{value.dtype.name}{list(value.shape)}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
