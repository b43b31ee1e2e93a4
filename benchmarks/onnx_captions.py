"""Captions by onnxruntime of a model in memory: as its ONNX export writes them, without a run and its files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class OnnxCaptions:
    """Writes as `mmfusion.load` of an ONNX export does.

    Args:
        model: A model with a captioning head.
        pixels_shape: Of one picture.
        max_tokens: Most tokens to write.
        threads: Of one operator. Default: one a core.
    """

    def __init__(self, model: Any, pixels_shape: tuple[int, ...], max_tokens: int, threads: int | None = None) -> None:
        from mmfusion.export.numeric_functions import carried_state, numeric_functions
        from mmfusion.export.onnx_models import onnx_model
        from mmfusion.export.onnx_runtime import ONNXRuntime
        from mmfusion.export.portable_captions import START
        from mmfusion.export.portable_step import LOGITS, STEP
        from mmfusion.models.captioning import special_tokens

        functions = numeric_functions(model, pixels_shape, max_tokens=max_tokens)
        with tempfile.TemporaryDirectory(prefix="mmfusion-onnx-") as folder:
            for name in (START, STEP):
                Path(folder, f"{name}.onnx").write_bytes(onnx_model(name, functions[name], model.variables).SerializeToString())
            self._runtime = ONNXRuntime(Path(folder), (START, STEP), threads=threads)
        self._carried, self._vocabulary_size = carried_state(functions), functions[STEP].outputs[LOGITS].shape[-1]
        head = model.head("captioning")
        self._decoding = {**special_tokens(model), "forbidden_ids": [head.start_id, *head.forbidden_ids]}
        self._captions: dict[str, Any] = {}

    def __call__(self, images: Any, *, max_tokens: int, min_tokens: int, **options: Any) -> np.ndarray:
        """Token ids, ``int32[B, L]`` or ``int32[B, K, L]``."""
        from mmfusion.export.portable_captions import PortableCaptions

        decoding = {**self._decoding, "max_tokens": max_tokens, "min_tokens": min_tokens, "options": options}
        key = repr(decoding)
        if key not in self._captions:
            self._captions[key] = PortableCaptions(self._runtime, decoding, self._carried, self._vocabulary_size)
        return np.asarray(self._captions[key]({"pixels": np.asarray(images)}).token_ids)
