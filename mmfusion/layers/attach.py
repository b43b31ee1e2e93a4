"""Attention inserted into a model that someone else built."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor

from mmfusion.errors import ConfigError
from mmfusion.layers.attention import Attention
from mmfusion.layers.map_attention import MapAttention


def attach(
    backbone: keras.Model, layer_name: str | Sequence[str], *, attention: Attention | None = None, **options: Any
) -> keras.Model:
    """A functional model with attention after a layer: what that layer gives is attended to by itself, place by place.

    The new model shares the layers, and so the weights, of the old one, which stays as it is; a `MapAttention` is added after
    each layer named. Its gain starts at 0, so both models compute the same until it is trained. It can be attached to again,
    saved as ``.keras`` and loaded.

    Args:
        backbone: A functional or sequential Keras model, of any number of inputs and branches.
        layer_name: The layer, or several, each with one output: a feature map ``[B, rows, columns, C]`` or tokens ``[B, N, C]``.
            A layer called several times is followed by the same attention each time.
        attention: An `Attention`, copied for each layer by its configuration. Default: ``Attention(num_heads=4)``.
        **options: In place of `attention`, the options to make it of, ``num_heads=8``, say.

    Returns:
        The new model.

    Raises:
        ConfigError: If a layer is unknown or an input, or has several outputs, or one that is neither a map nor tokens; if the
            model is subclassed, so that its graph is not known; if both `attention` and options are given.

    Example:
        >>> import keras
        >>> from mmfusion.layers import attach
        >>> cnn = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten()])
        >>> model = attach(cnn, "conv", num_heads=2)
        >>> [layer.name for layer in model.layers][1:]
        ['conv', 'conv_attention', 'flatten']
        >>> model.get_layer("conv").kernel is cnn.get_layer("conv").kernel
        True
    """
    names = [layer_name] if isinstance(layer_name, str) else layer_name
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        expected = "the name of a layer, or a list of names"
        raise ConfigError("no layer is named", where="attach", expected=expected, found=repr(layer_name))
    if attention is not None and options:
        raise ConfigError("attention and options exclude each other", where="attach", found=f"both, {', '.join(options)}")
    if isinstance(backbone, keras.Sequential) and backbone.built:
        backbone = keras.Model(backbone.inputs, backbone.outputs, name=backbone.name)
    if not isinstance(backbone, keras.Model) or not hasattr(backbone, "operations"):
        raise ConfigError(
            "the graph of this model is not known",
            where=getattr(backbone, "name", "attach"),
            expected="a functional or a built sequential keras.Model",
            found=type(backbone).__name__,
            fix="attach to the functional model inside of it, or put MapAttention into its call",
        )
    attached = {name: _attention_after(backbone, name, attention, options) for name in names}

    def call(layer: Any, *arguments: Any, **keywords: Any) -> KerasTensor:
        outputs = layer(*arguments, **keywords)
        return attached[layer.name](outputs) if layer.name in attached else outputs

    return keras.models.clone_model(backbone, clone_function=lambda layer: layer, call_function=call)


def _attention_after(backbone: Any, name: str, attention: Attention | None, options: dict[str, Any]) -> MapAttention:
    layers = {operation.name: operation for operation in backbone.operations}
    if name not in layers:
        nearest = difflib.get_close_matches(name, layers, 1, 0.0)
        inside = [model.name for model in backbone.layers if isinstance(model, keras.Model) and _knows(model, name)]
        raise ConfigError(
            "no such layer",
            where=backbone.name,
            expected=f"one of {len(layers)} layers, the nearest is {nearest[0]!r}",
            found=repr(name),
            fix=f"it is a layer of the model {inside[0]!r} inside: attach to that" if inside else None,
        )
    if isinstance(layers[name], keras.layers.InputLayer):
        raise ConfigError("an input cannot be attended to", where=name, fix="name the layer after it")
    outputs = keras.tree.flatten(layers[name].output)
    if len(outputs) != 1:
        raise ConfigError("a layer with several outputs", where=name, expected="one output", found=len(outputs))
    shape = outputs[0].shape
    if len(shape) not in (3, 4) or shape[-1] is None:
        expected = "[batch, rows, columns, channels] or [batch, tokens, channels]"
        raise ConfigError("its output is neither a map nor tokens", where=name, expected=expected, found=list(shape))
    if len(shape) == 4 and keras.config.image_data_format() == "channels_first":
        raise ConfigError("feature maps have their channels first", where=name, expected="channels last")
    taken, new = set(layers), f"{name}_attention"
    while new in taken:
        new = f"{new}_again"
    if attention is None:
        made = Attention(**{"num_heads": 4, "name": "attention", **options})
    else:
        made = Attention.from_config(attention.get_config())
    return MapAttention(attention=made, name=new)


def _knows(model: keras.Model, name: str) -> bool:
    return any(layer.name == name for layer in model.layers)
