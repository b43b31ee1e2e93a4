"""A model as a graph converter takes it: in float32, and without loops over tokens."""

from __future__ import annotations

from typing import Any

from mmfusion.errors import ExportError
from mmfusion.models import ImageTextModel


def portable_model(model: ImageTextModel) -> ImageTextModel:
    """The same weights in the form that LiteRT and ONNX have operators for.

    Computes in float32, lays the steps of a recurrent fusion out one after the other (LiteRT has no lists of tensors), and takes
    kernel ``"exact"`` for ``"chunked"``, which equals it to rounding.

    Args:
        model: The model, in any number format but a quantised one.

    Returns:
        The model itself where nothing has to change, else a copy.

    Raises:
        ExportError: If its weights are quantised.

    Example:
        >>> from mmfusion.export.portable_model import portable_model
        >>> from mmfusion.models import ImageTextModel
        >>> model = ImageTextModel.from_preset("clip", vocabulary_size=9, image_size=16, size="tiny", dtype="mixed_bfloat16")
        >>> model.image_encoder.compute_dtype, portable_model(model).image_encoder.compute_dtype
        ('bfloat16', 'float32')
    """
    config = model.get_config()
    changed = _portable(config)
    if changed == config:
        return model
    copy = type(model).from_config(changed)
    copy.set_weights(model.get_weights())
    return copy


def _portable(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return type(config)(_portable(item) for item in config)
    if not isinstance(config, dict):
        return config
    name = config.get("class_name")
    if name == "DTypePolicy":
        return {**config, "config": {**config["config"], "name": "float32"}}
    if isinstance(name, str) and name.endswith("DTypePolicy"):
        raise ExportError(
            "the model's weights are quantised already", expected="float32 or bfloat16", found=name,
            fix="export the model as it was trained",
        )  # fmt: skip
    config = {key: _portable(value) for key, value in config.items()}
    if config.get("kernel") == "chunked":
        config["kernel"] = "exact"
        config.pop("chunk_size", None)
    if "unroll" in config:
        config["unroll"] = True
    return config
