"""A checkpoint as a dictionary of arrays, and its configuration as a dictionary of values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfusion.errors import CheckpointError, ConfigError

State = Mapping[str, Any]
Array = npt.NDArray[Any]


def read_state(source: State | str | Path) -> dict[str, Array]:
    """The tensors of a checkpoint by name.

    Args:
        source: A mapping of names to arrays or to torch's tensors, as ``state_dict()`` gives it; or a ``.safetensors`` file.

    Returns:
        NumPy arrays; those of torch share its memory where they can.

    Raises:
        CheckpointError: If there is no such file, it is not safetensors, or it cannot be read.

    Example:
        >>> read_state({"norm.weight": [1.0, 2.0]})["norm.weight"].shape
        (2,)
        >>> read_state("model.bin")
        Traceback (most recent call last):
        ...
        mmfusion.errors.CheckpointError: weights are read from safetensors alone [model.bin]: expected .safetensors, found .bin; \
a pickle can run code of whoever made it: load it where you trust it and save it with safetensors
    """
    if isinstance(source, Mapping):
        return {name: _array(tensor) for name, tensor in source.items()}
    path = Path(source)
    if path.suffix != ".safetensors":
        fix = "a pickle can run code of whoever made it: load it where you trust it and save it with safetensors"
        raise CheckpointError(
            "weights are read from safetensors alone",
            where=path,
            expected=".safetensors",
            found=path.suffix or "a folder",
            fix=fix,
        )
    if not path.is_file():
        raise CheckpointError("there is no such checkpoint", where=path)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError("the checkpoint cannot be read", where=path, found=error) from error


def read_config(source: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """The configuration that goes with a checkpoint.

    Args:
        source: A mapping, or a JSON file.

    Raises:
        ConfigError: If the file is not there or holds no JSON object.

    Example:
        >>> read_config({"embed_dim": 512})
        {'embed_dim': 512}
    """
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("the configuration cannot be read", where=path, expected="a JSON file", found=error) from error
    if not isinstance(config, dict):
        raise ConfigError("the configuration cannot be read", where=path, expected="a JSON object", found=type(config).__name__)
    return config


def _array(tensor: Any) -> Array:
    # By what it can do, so that torch need not be there.
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16.
        tensor = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.asarray(tensor)
