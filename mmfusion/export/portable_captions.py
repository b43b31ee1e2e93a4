"""Writes captions with a runtime's functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mmfusion.decoding import BeamOutput, DecodeOutput, TokenRules, compiled
from mmfusion.errors import ExportError
from mmfusion.export.portable_step import STEP, PortableStep
from mmfusion.export.runtime import Runtime
from mmfusion.models.captioning import METHODS, filled_up, power_of_two

START = "caption_start"


class PortableCaptions:
    """The runtime reads the picture and scores tokens; a graph of TensorFlow around it chooses them.

    Args:
        runtime: What runs ``caption_start`` and ``caption_step``.
        decoding: How it decodes and the special tokens, as an export's description has them under ``decoding``.
        carried: What becomes of the state, as it is under ``state``.
        vocabulary_size: V.
        batch_size: The one batch size that the runtime's functions have. Default: any, and batches are filled up to a power of
            two, since each size is a graph here.
    """

    def __init__(
        self,
        runtime: Runtime,
        decoding: Mapping[str, Any],
        carried: Mapping[str, str | None],
        vocabulary_size: int,
        batch_size: int | None = None,
    ) -> None:
        self._runtime = runtime
        self._step = PortableStep(runtime, carried, vocabulary_size)
        self._batch_size = batch_size
        self._write = compiled(self._writing(decoding))

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> DecodeOutput | BeamOutput:
        """Writes captions of B pictures.

        Args:
            inputs: Of ``caption_start``.

        Raises:
            ExportError: If the runtime fails at a token.
        """
        state = {name: tf.constant(value) for name, value in self._runtime.run(START, inputs).items()}
        rows = _rows(state)
        size = power_of_two(rows) if self._batch_size is None else -(-rows // self._batch_size) * self._batch_size
        try:
            output = self._write(filled_up(state, rows, size))
        except tf.errors.OpError as error:
            # TensorFlow makes an error of its own of one in a graph.
            failed = self._step.error or error
            raise ExportError("the runtime fails", where=STEP, found=str(failed).splitlines()[0][:200]) from failed
        return type(output)(*(part[:rows] for part in output))

    def _writing(self, decoding: Mapping[str, Any]) -> Callable[[dict[str, tf.Tensor]], DecodeOutput | BeamOutput]:
        options = dict(decoding["options"])
        method, rules = options.pop("method"), {name: decoding[name] for name in ("min_tokens", "forbidden_ids")}
        rules |= {name: options.pop(name) for name in TokenRules._fields if name in options}
        return lambda state: METHODS[method](
            self._step,
            state,
            batch_size=_rows(state),
            rules=TokenRules(**rules),
            **{name: decoding[name] for name in ("start_id", "end_id", "pad_id", "max_tokens")},
            **options,
        )


def _rows(state: Mapping[str, tf.Tensor]) -> int:
    """The batch of a state, whose tensors have it first, or are scalars."""
    return next(int(value.shape[0]) for value in state.values() if len(value.shape))
