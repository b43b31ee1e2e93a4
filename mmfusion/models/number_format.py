"""A trained model in another number format, for inference."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from mmfusion.errors import ConfigError

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel

NUMBER_FORMATS = ("float32", "bfloat16", "float16", "int8")
"""What a model can compute in after its training, by the name that `in_number_format` knows."""
FEWEST_QUANTISED = 1024
"""Smaller weights stay float32 in int8, as LiteRT leaves them: they save nothing, and their error counts the same."""


def in_number_format(model: ImageTextModel, precision: str) -> ImageTextModel:
    """A copy of a model that holds its weights, and computes, in another number format; the model itself stays as it is.

    - ``"bfloat16"``, ``"float16"``: weights and computation, half the memory. What layers compute in float32 whatever their
      format stays so: softmax, normalisation, temperature, the matching head's output, scores of decoding. float16 has the finer
      steps, but holds nothing above 65,504: activations beyond it become infinite.
    - ``"int8"``: large weights (see `FEWEST_QUANTISED`) of Keras's ``Dense``, ``EinsumDense`` and ``Embedding`` by Keras's own
      ``quantize("int8")``: ``W ≈ Wq / s`` with ``s = 127 / max|W|`` for each output, and activations the same way for each token,
      as they come; products are summed in int32. All else is float32: token and position embeddings (and so the scores of words
      where these are tied), learned queries, class tokens, normalisations, biases, what is computed between two weights
      (attention). Keras has no int8 for those.
    - ``"float32"``: of a model that was trained in another.

    Args:
        model: The model, built, as it was trained or converted.
        precision: One of `NUMBER_FORMATS`.

    Returns:
        The copy; embeddings, matching logits and scores of captions stay float32. One in int8 is for use in this process, or for
        `mmfusion.export.export_model`: it cannot be saved as ``.keras``, since the layers' configurations do not say that they
        are quantised.

    Raises:
        ConfigError: If there is no such format, or the model is quantised already.

    Example:
        >>> from mmfusion.models import ImageTextModel
        >>> from mmfusion.models.number_format import in_number_format, weight_bytes
        >>> model = ImageTextModel.from_preset("coca", vocabulary_size=50, image_size=32, size="tiny")
        >>> half = in_number_format(model, "bfloat16")
        >>> round(weight_bytes(model) / weight_bytes(half), 2)
        2.0

    Source: bfloat16: Kalamkar et al. 2019 (arXiv:1905.12322); int8 with integer products: Jacob et al. 2018 (arXiv:1712.05877),
    in the form of Keras's ``Layer.quantize``: symmetric, a scale for each channel and each token.
    """
    if precision not in NUMBER_FORMATS:
        raise ConfigError("unknown number format", where="precision", expected=" or ".join(NUMBER_FORMATS), found=repr(precision))
    policy = "float32" if precision == "int8" else precision
    copy = type(model).from_config(_with_policy(model.get_config(), policy))
    for weight, original in zip(copy.weights, model.weights, strict=True):
        weight.assign(ops.cast(original, weight.dtype))
    if precision == "int8":
        with _quick_collections():
            copy.quantize("int8", filters=_is_quantised)
    return copy


def weight_bytes(model: keras.Model) -> int:
    """The memory of a model's weights in bytes.

    Args:
        model: The model, built.

    Example:
        >>> import keras
        >>> from mmfusion.models.number_format import weight_bytes
        >>> weight_bytes(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, dtype="bfloat16")]))
        18
    """
    return sum(math.prod(weight.shape) * _bits(weight.dtype) for weight in model.weights) // 8


def quantised_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model whose weights are quantised."""
    return [layer for layer in model._flatten_layers(include_self=False) if getattr(layer, "quantization_mode", None) is not None]


def _bits(dtype: str) -> int:
    number = re.search(r"\d+", dtype)
    return 8 if number is None else int(number[0])


@contextmanager
def _quick_collections() -> Iterator[None]:
    # Keras collects garbage for each layer that it quantises, which takes a third of a second beside TensorFlow: a minute for a
    # model of usual depth. What is there already is left out of it meanwhile.
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def _is_quantised(layer: keras.layers.Layer) -> bool:
    # The classes themselves: Keras quantises no subclass of them. One that two parts share is met twice.
    known = type(layer) in (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)
    return (
        known and layer.quantization_mode is None and max(math.prod(weight.shape) for weight in layer.weights) >= FEWEST_QUANTISED
    )


def _with_policy(config: Any, policy: str) -> Any:
    """A configuration with all dtype policies in it replaced."""
    if isinstance(config, list | tuple):
        return type(config)(_with_policy(item, policy) for item in config)
    if not isinstance(config, dict):
        return config
    name = config.get("class_name")
    if name == "DTypePolicy":
        return {**config, "config": {**config["config"], "name": policy}}
    if isinstance(name, str) and name.endswith("DTypePolicy"):
        raise already_quantised(name)
    return {key: _with_policy(value, policy) for key, value in config.items()}


def already_quantised(where: str) -> ConfigError:
    """What to say of a model that cannot be built again since its weights are quantised.

    Args:
        where: The model's, or the policy's name.
    """
    return ConfigError(
        "the model's weights are quantised: it cannot be built again, nor saved as a .keras file", where=where,
        expected="a model as it was trained", fix="use the model that it was made from, or export a SavedModel",
    )  # fmt: skip
