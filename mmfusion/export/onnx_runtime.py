"""Runs ``.onnx`` files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mmfusion.errors import ExportError
from mmfusion.export.runtime import imported


class ONNXRuntime:
    """One ``.onnx`` file a function, by `onnxruntime`, on the processor.

    Args:
        folder: The export's folder.
        functions: Names of the functions.
        threads: Threads of one operator. Default: one a core.

    Raises:
        ExportError: If onnxruntime is not installed, or a file is missing or broken.
    """

    def __init__(self, folder: Path, functions: Iterable[str], *, threads: int | None = None) -> None:
        runtime = imported("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._sessions = {}
        for name in functions:
            path = folder / f"{name}.onnx"
            if not path.is_file():
                raise ExportError("broken export", where=folder, expected=path.name, found="a folder without it")
            try:
                session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's errors have no base of their own
                raise ExportError("broken export", where=path, found=str(error).splitlines()[0][:200]) from error
            self._sessions[name] = session

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one function; arrays must have its dtypes."""
        session = self._sessions[function]
        names = [output.name for output in session.get_outputs()]
        # Of what no output depends on, a graph has no input.
        given = {put.name: np.asarray(inputs[put.name]) for put in session.get_inputs()}
        return dict(zip(names, session.run(names, given), strict=True))
