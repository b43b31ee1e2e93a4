"""Activations by name: Keras's, and those that published models use and Keras has no name for."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError


def quick_gelu(x: KerasTensor) -> KerasTensor:
    """``x · sigmoid(1.702 x)``, the approximation of GELU that OpenAI's CLIP was trained with.

    Example:
        >>> import numpy as np
        >>> round(float(quick_gelu(np.array(1.0, "float32"))), 4)
        0.8458

    Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415), section 2.
    """
    return x * ops.sigmoid(1.702 * x)


def tanh_gelu(x: KerasTensor) -> KerasTensor:
    """GELU by its tanh approximation, as SigLIP was trained with; Keras's name ``"gelu"`` is the exact one.

    Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415), section 2.
    """
    return ops.gelu(x, approximate=True)


#: What Keras has no name for.
ACTIVATIONS: dict[str, Callable[[KerasTensor], KerasTensor]] = {"quick_gelu": quick_gelu, "tanh_gelu": tanh_gelu}


def activation_function(name: str, where: str) -> Callable[[KerasTensor], KerasTensor]:
    """The activation of a name.

    Args:
        name: One of `ACTIVATIONS`, or Keras's name of one.
        where: Name of the layer.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> activation_function("relu", "feed_forward").__name__
        'relu'
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    try:
        return keras.activations.get(name)
    except ValueError:
        raise ConfigError(
            "unknown activation", where=where, expected=f"{', '.join(ACTIVATIONS)}, or Keras's name of one", found=repr(name)
        ) from None
