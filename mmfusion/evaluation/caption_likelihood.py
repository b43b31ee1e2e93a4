"""How surely a model says or guesses what people wrote, beside a model that knows only how often each token occurs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from mmfusion.errors import DataError
from mmfusion.losses import captioning_loss, mask_tokens, masked_language_loss
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
        batches: Dictionaries with ``image`` (``float[B, H, W, 3]``) and ``image_id`` (``int[B]``), of clips
            ``image_mask`` too, as `build_eval_images` gives.
        captions: Each image's captions, by its id.

    Returns:
        The mean over tokens; e to its power is the perplexity.

    Raises:
        DataError: If there is no caption.
    """

    def cost(patches: tf.Tensor, patch_mask: tf.Tensor | None, token_ids: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, ...]:
        logits = model.caption_logits(patches, token_ids[:, :-1], mask[:, :-1], training=False, patch_mask=patch_mask)
        loss = captioning_loss(logits, token_ids[:, 1:], mask[:, 1:])
        return tf.reduce_sum(loss.tokens), tf.reduce_sum(loss.loss_sum)

    return mean_over_captions(model, tokenizer, batches, captions, cost)[0]


def masked_language_figures(
    model: ImageTextModel,
    tokenizer: WordPieceTokenizer,
    batches: Iterable[Mapping[str, tf.Tensor]],
    captions: Mapping[int, Sequence[str]],
    *,
    rate: float = 0.15,
) -> dict[str, float]:
    """How well a model guesses hidden words of all captions of all images, the same places each time.

    Args:
        model: A model with a masked language head.
        tokenizer: Its tokenizer.
        batches: As in `caption_loss`.
        captions: Each image's captions, by its id.
        rate: Share of the words that are hidden, at least one a caption. Default 0.15.

    Returns:
        ``masked_language_loss``, nats a hidden word, and ``masked_language_accuracy``, from 0 to 1.

    Raises:
        DataError: If there is no caption.
    """
    head = model.head("masked_language")
    vocabulary_size = model.text_encoder.vocabulary_size

    def cost(patches: tf.Tensor, patch_mask: tf.Tensor | None, token_ids: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, ...]:
        hidden = mask_tokens(
            token_ids,
            mask,
            vocabulary_size=vocabulary_size,
            mask_id=head.mask_id,
            special_ids=head.special_ids,
            rate=rate,
            seed=0,
        )
        logits = model.masked_language_logits(patches, hidden.token_ids, mask, training=False, patch_mask=patch_mask)
        loss = masked_language_loss(logits, token_ids, hidden.chosen)
        right = tf.logical_and(tf.argmax(logits, axis=-1, output_type=token_ids.dtype) == token_ids, hidden.chosen)
        return tf.reduce_sum(loss.tokens), tf.reduce_sum(loss.loss_sum), tf.reduce_sum(tf.cast(right, tf.float32))

    loss, accuracy = mean_over_captions(model, tokenizer, batches, captions, cost)
    return {"masked_language_loss": loss, "masked_language_accuracy": accuracy}


def mean_over_captions(
    model: ImageTextModel,
    tokenizer: WordPieceTokenizer,
    batches: Iterable[Mapping[str, tf.Tensor]],
    captions: Mapping[int, Sequence[str]],
    cost: Callable[[tf.Tensor, tf.Tensor | None, tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]],
) -> list[float]:
    """Means of what `cost` sums over all captions of all images.

    Args:
        model: The model, whose image encoder reads the images.
        tokenizer: Its tokenizer.
        batches: Dictionaries with ``image`` and ``image_id``, of clips ``image_mask`` too.
        captions: Each image's captions, by its id.
        cost: From patches ``float[B, P, Di]``, their mask ``bool[B, P]`` or None, ``int[B, T]`` and ``bool[B, T]`` to a count and
            one or more sums.

    Returns:
        Each sum over the count.

    Raises:
        DataError: If there is no caption.
    """
    encode = tf.function(
        lambda images, mask: model.encode_patches(images, mask, training=False), reduce_retracing=True, autograph=False
    )
    compiled = tf.function(cost, reduce_retracing=True, autograph=False)
    totals: list[float] = []
    for batch in batches:
        patches, patch_mask = encode(batch["image"], batch.get("image_mask"))
        rows = [captions[int(key)] for key in batch["image_id"].numpy()]
        # One caption of every image at a time: the images are encoded once, and a batch stays a batch.
        for turn in range(max(map(len, rows), default=0)):
            chosen = [row for row, texts in enumerate(rows) if turn < len(texts)]
            tokens = tokenizer(tf.constant([rows[row][turn] for row in chosen]))
            real = None if patch_mask is None else tf.gather(patch_mask, chosen)
            answer = compiled(tf.gather(patches, chosen), real, tokens.token_ids, tokens.token_mask)
            sums = [float(value) for value in answer]
            totals = [a + b for a, b in zip(totals or [0.0] * len(sums), sums, strict=True)]
    if not totals or not totals[0]:
        raise DataError("no caption to score", where="captions")
    return [total / totals[0] for total in totals[1:]]


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
