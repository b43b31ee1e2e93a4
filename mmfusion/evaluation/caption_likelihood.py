"""How surely a model says what people wrote, beside a model that knows only how often each token occurs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from mmfusion.errors import DataError
from mmfusion.losses import captioning_loss
from mmfusion.models import ImageTextModel
from mmfusion.text import WordPieceTokenizer


def caption_loss(
    model: ImageTextModel,
    tokenizer: WordPieceTokenizer,
    batches: Iterable[Mapping[str, tf.Tensor]],
    captions: Mapping[int, Sequence[str]],
) -> float:
    """Mean cross-entropy a token, in nats, of all captions of all images, the end token included.

    Args:
        model: A model with a captioning head.
        tokenizer: Its tokenizer.
        batches: Dictionaries with ``image`` (``float[B, H, W, 3]``) and ``image_id`` (``int[B]``), as `build_eval_images` gives.
        captions: Each image's captions, by its id.

    Returns:
        The mean over tokens; e to its power is the perplexity.

    Raises:
        DataError: If there is no caption.
    """

    @tf.autograph.experimental.do_not_convert
    def cost(patches: tf.Tensor, token_ids: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = model.caption_logits(patches, token_ids[:, :-1], mask[:, :-1], training=False)
        loss = captioning_loss(logits, token_ids[:, 1:], mask[:, 1:])
        return tf.reduce_sum(loss.loss_sum), tf.reduce_sum(loss.tokens)

    encode = tf.function(lambda images: model.image_encoder(images, training=False), reduce_retracing=True, autograph=False)
    compiled = tf.function(cost, reduce_retracing=True)
    total = count = 0.0
    for batch in batches:
        patches = encode(batch["image"])
        rows = [captions[int(key)] for key in batch["image_id"].numpy()]
        # One caption of every image at a time: the images are encoded once, and a batch stays a batch.
        for turn in range(max(map(len, rows), default=0)):
            chosen = [row for row, texts in enumerate(rows) if turn < len(texts)]
            tokens = tokenizer(tf.constant([rows[row][turn] for row in chosen]))
            loss, tokens_seen = compiled(tf.gather(patches, chosen), tokens.token_ids, tokens.token_mask)
            total, count = total + float(loss), count + float(tokens_seen)
    if not count:
        raise DataError("no caption to score", where="caption_loss")
    return total / count


def unigram_loss(tokenizer: WordPieceTokenizer, corpus: Sequence[str], captions: Sequence[str]) -> float:
    """As `caption_loss`, of a model that only knows how often each token occurs: what captions cost without any image.

    ``loss = -mean_t log((n(t) + 1) / (N + V))`` with n counted on `corpus`, N its tokens and V the vocabulary.

    Args:
        tokenizer: The tokenizer.
        corpus: Captions to count on, those of the training split.
        captions: Captions to score.

    Returns:
        Nats a token.

    Raises:
        DataError: If there is no caption.

    Example:
        >>> from mmfusion.text import WordPieceTokenizer
        >>> tokenizer = WordPieceTokenizer(vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog"], max_length=8)
        >>> round(unigram_loss(tokenizer, ["a dog", "a"], ["a dog"]), 3)  # (3, 2 and 3 of 11)
        1.434
    """
    if not captions:
        raise DataError("no caption to score", where="unigram_loss")
    seen, wanted = _tokens(tokenizer, corpus), _tokens(tokenizer, captions)
    counts = np.bincount(seen, minlength=tokenizer.vocabulary_size) + 1.0
    return float(-np.log(counts / counts.sum())[wanted].mean())


def _tokens(tokenizer: WordPieceTokenizer, captions: Sequence[str], size: int = 4096) -> np.ndarray:
    parts = [np.zeros(0, "int64")]
    for start in range(0, len(captions), size):
        tokens = tokenizer(tf.constant(list(captions[start : start + size])))
        # Everything but the start token, which nobody has to guess.
        parts.append(tokens.token_ids.numpy()[:, 1:][tokens.token_mask.numpy()[:, 1:]])
    return np.concatenate(parts)
