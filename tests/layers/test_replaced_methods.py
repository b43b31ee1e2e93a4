"""Methods replaced for a while: inside and out, one in another, after an error too."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mmfusion.layers.replaced_methods import replaced_methods


def test_one_in_another_and_back():
    layer, other, ones = keras.layers.Identity(), keras.layers.Identity(), np.ones(1, "float32")

    def value(of) -> float:
        return float(keras.ops.convert_to_numpy(of(ones))[0])

    with replaced_methods(layer, call=lambda x: 2 * x):
        outer = layer.call
        with replaced_methods(layer, call=lambda x: outer(x) + 3, extra=lambda: None):
            assert value(layer) == 5.0 and value(other) == 1.0
        assert value(layer) == 2.0 and not hasattr(layer, "extra")
        with pytest.raises(ZeroDivisionError), replaced_methods(layer, call=lambda x: 7 * x):
            _ = 1 / 0
        assert value(layer) == 2.0
    assert value(layer) == 1.0 and "call" not in vars(layer)
