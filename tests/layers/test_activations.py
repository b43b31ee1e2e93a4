"""Activations by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gradients import to_numpy

from mmfusion.errors import ConfigError
from mmfusion.layers import FeedForward
from mmfusion.layers.activations import activation_function

X = np.linspace(-6, 6, 25).astype("float32")


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("tanh_gelu", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_formulas(name, formula):
    expected = [formula(float(x)) for x in X]
    np.testing.assert_allclose(to_numpy(activation_function(name, "here")(X)), expected, atol=1e-6)
    layer = FeedForward(hidden_dim=25, activation=name)
    layer.build((None, None, 25))
    for dense in (layer.hidden, layer.output_dense):
        dense.kernel.assign(np.eye(25))
    np.testing.assert_allclose(to_numpy(layer(X[None, None])), np.array(expected)[None, None], atol=1e-6)
    assert FeedForward.from_config(layer.get_config()).activation == name


def test_an_unknown_one_is_refused():
    with pytest.raises(ConfigError, match=r"unknown activation \[feed\]: expected quick_gelu, tanh_gelu, or Keras's name"):
        FeedForward(hidden_dim=2, activation="swosh", name="feed")
