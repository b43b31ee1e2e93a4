"""Runs a ``.tflite`` file."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.errors import ExportError
from mmfusion.export.runtime import imported

MODEL = "model.tflite"


class LiteRTRuntime:
    """The signatures of ``model.tflite``, by `ai_edge_litert`.

    Args:
        folder: The export's folder.

    Raises:
        ExportError: If ai-edge-litert is not installed, or the file is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        interpreter = imported("ai_edge_litert.interpreter", "litert")
        path = folder / MODEL
        if not path.is_file():
            raise ExportError("broken export", where=folder, expected=MODEL, found="a folder without it")
        try:
            self._interpreter = interpreter.Interpreter(model_path=str(path))
            names = list(self._interpreter.get_signature_list())
            self._runners: dict[str, Any] = {name: self._interpreter.get_signature_runner(name) for name in names}
        except (ValueError, RuntimeError) as error:
            raise ExportError("broken export", where=path, found=str(error).splitlines()[0][:200]) from error
        # A runner keeps its tensors from call to call.
        self._lock = threading.Lock()

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one signature; arrays must have its dtypes."""
        with self._lock:
            return dict(self._runners[function](**inputs))
