"""Captions by onnxruntime of a model in memory: as its ONNX export writes them, without a run and its files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class OnnxCaptions:
    """Writes as `mmfusion.load` of an ONNX export does: the runtime computes, a graph of TensorFlow chooses the tokens.

    Args:
        model: A model with a captioning head.
        pixels_shape: Of one picture.
        max_tokens: Most tokens to write.
    """

    def __init__(self, model: Any, pixels_shape: tuple[int, ...], max_tokens: int) -> None:
        from mmfusion.export.numeric_functions import carried_state, numeric_functions
        from mmfusion.export.onnx_models import onnx_model
        from mmfusion.export.onnx_runtime import ONNXRuntime
        from mmfusion.export.portable_step import PortableStep
        from mmfusion.models.captioning import special_tokens

        functions = numeric_functions(model, pixels_shape, max_tokens=max_tokens)
        names = ("caption_start", "caption_step")
        with tempfile.TemporaryDirectory(prefix="mmfusion-onnx-") as folder:
            for name in names:
                Path(folder, f"{name}.onnx").write_bytes(onnx_model(name, functions[name], model.variables).SerializeToString())
            self.runtime = ONNXRuntime(Path(folder), names)
        vocabulary_size = functions["caption_step"].outputs["logits"].shape[-1]
        self.step = PortableStep(self.runtime, carried_state(functions), vocabulary_size)
        head = model.head("captioning")
        self.given = special_tokens(model)
        self.forbidden_ids = (head.start_id, *head.forbidden_ids)
        self.graphs: dict[str, Any] = {}

    def __call__(self, images: Any, *, method: str, max_tokens: int, min_tokens: int, **options: Any) -> np.ndarray:
        """Token ids, ``int32[B, L]`` or ``int32[B, K, L]``."""
        from mmfusion.decoding import TokenRules, compiled
        from mmfusion.models.captioning import METHODS

        key = repr((method, max_tokens, min_tokens, options))
        if key not in self.graphs:
            rules = TokenRules(min_tokens=min_tokens, forbidden_ids=self.forbidden_ids)
            self.graphs[key] = compiled(
                lambda state: METHODS[method](
                    self.step, state, batch_size=len(images), max_tokens=max_tokens, rules=rules, **self.given, **options
                )
            )
        state = self.runtime.run("caption_start", {"pixels": np.asarray(images)})
        return np.asarray(self.graphs[key](state).token_ids)
