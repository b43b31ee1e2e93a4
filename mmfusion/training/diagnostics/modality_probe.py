"""The share of each modality in what a model says, on a fixed batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from mmfusion.training.diagnostics.modality_measures import share_by_ablation, share_by_gradient

Output = Callable[[dict[str, tf.Tensor]], tf.Tensor]


class ModalityProbe:
    """Says how much of an output comes from each modality: `share_by_ablation` and `share_by_gradient`.

    A share near 0 means that the model does without that modality: a caption from language alone, a match from the text alone
    (answers: modality dropout, hard negatives, a weaker language part).

    Args:
        outputs: Functions from token streams to ``float[B, ...]``, by name.
        streams: ``float[B, N, D]`` by name: tokens of a fixed batch.
        masks: ``bool[B, N]`` by name, ``True`` = real token. Default: all real.

    Returns:
        Calling it returns ``{output: {"ablation": {stream: share}, "gradient": {stream: share}}}``.

    Example:
        >>> import keras, tensorflow as tf
        >>> from mmfusion.training.diagnostics import ModalityProbe
        >>> image, text = keras.Input((2, 3)), keras.Input((4, 3))
        >>> model = keras.Model([image, text], keras.layers.GlobalAveragePooling1D()(text))
        >>> streams = {"image": tf.random.normal((8, 2, 3)), "text": tf.random.normal((8, 4, 3))}
        >>> report = ModalityProbe({"answer": lambda s: model([s["image"], s["text"]])}, streams)()
        >>> report["answer"]["ablation"], report["answer"]["gradient"]
        ({'image': 0.0, 'text': 1.0}, {'image': 0.0, 'text': 1.0})
    """

    name = "modality"

    def __init__(self, outputs: Mapping[str, Output], streams: Mapping[str, Any], masks: Mapping[str, Any] | None = None) -> None:
        self.outputs = dict(outputs)
        self.streams = dict(streams)
        self.masks = dict(masks or {})

    def __call__(self) -> dict[str, dict[str, dict[str, float]]]:
        """Measures; see the class."""
        return {
            name: {
                "ablation": share_by_ablation(output, self.streams, self.masks),
                "gradient": share_by_gradient(output, self.streams, self.masks),
            }
            for name, output in self.outputs.items()
        }
