"""One example of what a model attends to, for reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.explain.overlay import draw_attention_overlay

if TYPE_CHECKING:
    from mmfusion.data import Example, Transform
    from mmfusion.models import ImageTextModel
    from mmfusion.text import WordPieceTokenizer


def draw_attention_example(
    model: ImageTextModel,
    tokenizer: WordPieceTokenizer,
    transform: Transform,
    examples: list[Example],
    path: str | Path,
) -> str:
    """Draws where each word of a caption looks, for the example with the longest caption among the first hundred.

    Args:
        model: A model with a fusion.
        tokenizer: Its tokenizer.
        transform: From image files to its pixels.
        examples: Where to choose from.
        path: Where the picture goes, as PNG.

    Returns:
        The caption that was drawn.

    Raises:
        DataError: If no image can be read.
    """
    import tensorflow as tf

    example, text = max(
        ((example, caption) for example in examples[:100] for caption in example.captions), key=lambda pair: len(pair[1])
    )
    pixels, count = transform.read([image.read() for image in example.images])
    mask = {} if transform.frames == 1 else {"image_mask": tf.range(transform.frames)[None] < count}
    tokens = tokenizer(tf.constant([text]))
    attention = model.attend(transform.normalize(pixels)[None], tokens.token_ids, tokens.token_mask, **mask)
    words = [word.decode("utf-8", "replace") for word in tokenizer.id_to_token(tokens.token_ids[0]).numpy()]
    maps = np.asarray(tf.cast(attention[0], tf.float32))
    if mask:
        # Of a clip that is shorter than there is room for, only what is real.
        share = transform.frames // maps.shape[3]
        pixels, maps = pixels[:count], maps[:, :, :, : -(-count // share)]
    draw_attention_overlay(pixels, maps, words, path, title=text)
    return text
