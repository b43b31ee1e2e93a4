"""What runs an export's functions of numbers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmfusion.errors import ExportError


class Runtime(Protocol):
    """Runs functions of named arrays."""

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named arrays in, named arrays out; the names are those of the export's description."""


def open_runtime(folder: Path, description: dict[str, Any]) -> Runtime:
    """Opens the functions of an export with the runtime of its kind.

    Args:
        folder: The export's folder.
        description: What is in its ``mmfusion.json``.

    Returns:
        The runtime.

    Raises:
        ExportError: If the runtime is not installed, or a file is missing or broken.
    """
    from mmfusion.export.fixed_batch import FixedBatch
    from mmfusion.export.litert_runtime import LiteRTRuntime
    from mmfusion.export.onnx_runtime import ONNXRuntime

    opened: Runtime
    if description["kind"] == "onnx":
        opened = ONNXRuntime(folder, description["functions"])
    else:
        opened = LiteRTRuntime(folder)
    size = description["batch_size"]
    return opened if size is None else FixedBatch(opened, size)


def imported(module: str, extra: str) -> Any:
    """A package that only some exports need.

    Args:
        module: What to import.
        extra: The extra of this package that brings it.

    Raises:
        ExportError: If it is not installed, with the extra's name.

    Example:
        >>> from mmfusion.export.runtime import imported
        >>> imported("no_such_package", "onnx")
        Traceback (most recent call last):
        mmfusion.errors.ExportError: a package is missing: expected no_such_package; pip install 'mmfusion[onnx]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError("a package is missing", expected=module, fix=f"pip install 'mmfusion[{extra}]'") from error
