"""Attention inserted into other people's models: nothing changes until it is trained, and nothing is copied."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import tensorflow_only, to_numpy, value_and_gradients
from layer_reference import attention as attention_in_numpy
from layer_reference import layer_norm, stream

from mmfusion.errors import ConfigError
from mmfusion.layers import Attention, MapAttention, attach

NETWORKS = {
    "MobileNetV2": ({"alpha": 0.35}, ["block_6_expand_relu", "block_12_add"]),
    "MobileNet": ({"alpha": 0.25}, ["conv_pw_5_relu"]),
}


@tensorflow_only  # where one operation after the other is quick
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_keras(name, tmp_path):
    options, layers = NETWORKS[name]
    network = getattr(keras.applications, name)(input_shape=(32, 32, 3), weights=None, include_top=False, **options)
    before = [weight.path for weight in network.weights]
    model, images = attach(network, layers, num_heads=8), stream(2, 32, 32, 3)
    np.testing.assert_array_equal(to_numpy(model(images)), to_numpy(network(images)))
    assert [weight.path for weight in network.weights] == before
    shared = {id(weight) for weight in network.weights}
    new = [weight for weight in model.weights if id(weight) not in shared]
    assert len(new) == 11 * len(layers) and len(model.weights) == len(before) + len(new)

    for layer in layers:
        gain = model.get_layer(f"{layer}_attention").gain
        gain.assign(0.1 * np.ones(gain.shape))
    _, found = value_and_gradients(lambda x: keras.ops.sum(model(x) ** 2), [images], new)
    # Softmax does not see the bias of a key.
    assert all(np.abs(x).max() > 0 for weight, x in zip(new, found[1:], strict=True) if "key/bias" not in weight.path)
    assert np.abs(to_numpy(model(images)) - to_numpy(network(images))).max() > 0
    if name == "MobileNetV2":
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(to_numpy(loaded(images)), to_numpy(model(images)), atol=1e-6)


def branched() -> keras.Model:
    """Two inputs, a layer that is called twice, a map and a token stream, two outputs."""
    image, text = keras.Input((4, 6, 3), name="image"), keras.Input((5, 8), name="text")
    twice = keras.layers.Conv2D(8, 1, name="twice")
    tokens = keras.layers.Dense(8, name="tokens")(text)
    pixels = twice(keras.layers.Conv2D(3, 1)(twice(image)[..., :3]))
    joint = keras.layers.Add(name="joint")([keras.layers.GlobalAveragePooling2D()(pixels), keras.ops.mean(tokens, axis=1)])
    return keras.Model({"image": image, "text": text}, {"joint": joint, "pixels": pixels}, name="branched")


INPUTS = {"image": stream(2, 4, 6, 3), "text": stream(2, 5, 8)}


def test_inputs_branches_and_streams(tmp_path):
    network = randomized(branched())
    expected = {name: to_numpy(x) for name, x in network(INPUTS).items()}
    model = attach(network, ["twice", "tokens"], attention=Attention(num_heads=2, rotary="2d", grid=(1, 5), kernel="chunked"))
    model = attach(model, "tokens", num_heads=1)
    for name, x in model(INPUTS).items():
        np.testing.assert_array_equal(to_numpy(x), expected[name])
    inserted = [layer for layer in model.layers if isinstance(layer, MapAttention)]
    assert sorted(layer.name for layer in inserted) == ["tokens_attention", "tokens_attention_again", "twice_attention"]
    for layer in inserted:
        layer.gain.assign(np.ones(8))
    found = {name: to_numpy(x) for name, x in model(INPUTS).items()}
    assert all(np.abs(found[name] - expected[name]).max() > 1e-3 for name in expected)
    for name, x in network(INPUTS).items():
        np.testing.assert_array_equal(to_numpy(x), expected[name])
    model.save(tmp_path / "model.keras")
    for name, x in keras.models.load_model(tmp_path / "model.keras")(INPUTS).items():
        np.testing.assert_allclose(to_numpy(x), found[name], atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 5, 8)])
def test_a_map_equals_numpy(shape):
    layer, features = MapAttention(attention=Attention(num_heads=2)), stream(*shape)
    layer.build(shape)
    randomized(layer, scale=0.5)
    tokens = features.reshape(2, -1, 8)
    attended, _ = attention_in_numpy(layer.attention, layer_norm(layer.norm, tokens))
    expected = tokens + attended * to_numpy(layer.gain)
    np.testing.assert_allclose(to_numpy(layer(features)), expected.reshape(shape), atol=2e-5)


def test_the_gain_learns_first():
    layer = MapAttention(attention=Attention(num_heads=2))
    layer.build((None, 5, 8))
    _, found = value_and_gradients(lambda x: keras.ops.sum(layer(x) ** 2), [stream(2, 5, 8)], layer.trainable_weights)
    for weight, x in zip(layer.trainable_weights, found[1:], strict=True):
        assert (np.abs(x).max() > 0) == (weight is layer.gain)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def call(self, x):
        return x


def split_network() -> keras.Model:
    x = keras.Input((4, 8), name="in")
    both = keras.layers.LSTM(4, return_state=True, name="lstm")(x)
    return keras.Model(x, keras.layers.Dense(2, name="dense")(both[0]), name="m")


@pytest.mark.parametrize(("network", "layer", "options", "message"), [
    (branched, 5, {}, r"no layer is named \[attach\]: expected the name of a layer, or a list of names, found 5$"),
    (branched, ["twice", 5], {}, "no layer is named"),
    (branched, [], {}, "no layer is named"),
    (branched, "twice", {"rotary": "2d", "grid": 5}, "impossible grid"),
    (branched, "twise", {}, r"no such layer \[branched\]: expected one of \d+ layers, the nearest is 'twice', found 'twise'$"),
    (branched, "image", {}, r"an input cannot be attended to \[image\]"),
    (branched, "joint", {}, r"neither a map nor tokens \[joint\]: .*found \[None, 8\]"),
    (split_network, "lstm", {}, r"several outputs \[lstm\]: expected one output, found 3"),
    (lambda: Subclassed(name="s"), "dense", {}, r"the graph of this model is not known \[s\]: .*found Subclassed"),
    (branched, "twice", {"num_heads": 3}, "the heads do not divide the width"),
    (branched, "twice", {"attention": Attention(num_heads=2), "num_heads": 2}, "exclude each other"),
])  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(network, layer, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        attach(network(), layer, **options)
    assert "\n" not in str(caught.value)


def test_a_layer_of_a_model_inside_is_pointed_to():
    x = keras.Input((4, 8))
    inner = keras.Model(x, keras.layers.Dense(8, name="deep")(x), name="inner")
    outer = keras.Sequential([keras.Input((4, 8)), inner], name="outer")
    with pytest.raises(ConfigError, match="found 'deep'; it is a layer of the model 'inner' inside: attach to that"):
        attach(outer, "deep")
