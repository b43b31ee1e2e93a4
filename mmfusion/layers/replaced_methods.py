"""Methods of one layer replaced for a while, so that a running model can be looked into without changing its classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras


@contextmanager
def replaced_methods(layer: keras.layers.Layer, **methods: Callable[..., Any]) -> Iterator[None]:
    """While the context is open, a layer has these methods instead of its own; then those that it had before, whatever happens.

    Contexts of one layer may stand in each other. Only calls outside of graphs that were traced before see the replacement.

    Args:
        layer: The layer; others of its class stay as they are.
        **methods: By name, ``call`` say; without ``self``.

    Example:
        >>> import keras, numpy as np
        >>> from mmfusion.layers.replaced_methods import replaced_methods
        >>> layer = keras.layers.Identity()
        >>> with replaced_methods(layer, call=lambda x: 2 * x):
        ...     inside = float(layer(np.ones(1))[0])
        >>> inside, float(layer(np.ones(1))[0])
        (2.0, 1.0)
    """
    # An instance's own attributes hide the methods of its class, and Keras's tracking need not know.
    own = vars(layer)
    before = {name: own[name] for name in methods if name in own}
    own.update(methods)
    try:
        yield
    finally:
        for name in methods:
            own.pop(name, None)
        own.update(before)
