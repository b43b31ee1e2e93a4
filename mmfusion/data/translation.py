"""Examples whose captions translate a text that comes with the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mmfusion.data.example import Example
from mmfusion.data.pipeline_options import Tokenizer


def has_sources(examples: Sequence[Example]) -> bool:
    """Whether the examples have a text to translate; a source has one for all of its examples, or for none.

    Example:
        >>> from mmfusion.data import Example, ImageReference
        >>> has_sources([Example(ImageReference("a.png"), ("rotes Herz",), 0, "row 1", source_text="2de red heart")])
        True
    """
    return bool(examples) and examples[0].source_text is not None


def with_source(pixels: tf.Tensor, source: tf.Tensor, tokenizer: Tokenizer) -> dict[str, Any]:
    """Pictures and texts as `mmfusion.encoders.SourceImageEncoder` takes them.

    Args:
        pixels: ``float32[B, H, W, 3]``.
        source: ``string[B]``, the texts to translate.
        tokenizer: Their tokenizer.

    Returns:
        ``image``: ``pixels`` and ``source_ids: int32[B, T]``; and ``image_mask: bool[B, T]``, ``True`` = real token.

    Example:
        >>> def tokenizer(text):
        ...     token_ids = tf.cast(tf.strings.length(text), tf.int32)[:, None]
        ...     return token_ids, token_ids > 0
        >>> batch = with_source(tf.zeros([1, 2, 2, 3]), tf.constant(["2de red heart"]), tokenizer)
        >>> batch["image"]["source_ids"].numpy().tolist(), batch["image_mask"].numpy().tolist()
        ([[13]], [[True]])
    """
    source_ids, source_mask = tokenizer(source)
    return {"image": {"pixels": pixels, "source_ids": source_ids}, "image_mask": source_mask}
