"""From a table of examples to batches of pictures and of texts, for evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from mmfusion.data.clip_transform import Transform
from mmfusion.data.image_loader import ImageLoader
from mmfusion.data.pipeline_options import Tokenizer, pipeline_options
from mmfusion.data.quarantine import Quarantine
from mmfusion.data.source import Source
from mmfusion.data.translation import has_sources, with_source
from mmfusion.errors import ConfigError


def build_eval_images(
    source: Source,
    split: str,
    *,
    transform: Transform,
    batch_size: int,
    quarantine: Quarantine,
    tokenizer: Tokenizer | None = None,
) -> tf.data.Dataset:
    """Every picture of a split once, in order.

    Args:
        source: The data.
        split: Its split; ``"all"`` is all splits.
        transform: How pictures, or clips, become pixels.
        batch_size: Pictures a batch; the last batch may be smaller, and so is one with a bad picture.
        quarantine: Where bad pictures are recorded; they are left out.
        tokenizer: Tokenizes the texts of examples that have one to translate; see `build_train_dataset`. Default none.

    Returns:
        A dataset of ``image: float32[B, H, W, 3]`` and ``image_id: int32[B]``; of clips, ``image: float32[B, F, H, W, 3]`` and
        ``image_mask: bool[B, F]``, ``True`` = real picture. Of examples with a text to translate as in `build_train_dataset`.

    Raises:
        DataError: If there is no such split.

    Example:
        >>> import pathlib, tempfile, tensorflow as tf
        >>> from mmfusion.data import Example, ImageReference, ImageTransform, Quarantine, Source, build_eval_images
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "1.png").write_bytes(tf.io.encode_png(tf.zeros([4, 4, 3], tf.uint8)).numpy())
        >>> rows = [Example(ImageReference(str(folder / "1.png")), ("a dot",), i, f"row {i}") for i in range(3)]
        >>> batches = build_eval_images(
        ...     Source("dots", {"val": rows}), "val", transform=ImageTransform(size=2), batch_size=2,
        ...     quarantine=Quarantine(None, total=3))
        >>> [batch["image_id"].numpy().tolist() for batch in batches]
        [[0, 1], [2]]
    """
    examples = source.examples(split)
    loader = ImageLoader(examples, transform, quarantine)
    translates = has_sources(examples)
    if translates and tokenizer is None:
        raise ConfigError("texts to translate need a tokenizer", where=source.name, fix="pass tokenizer=...")

    def load(start: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = range(int(start), min(int(start) + batch_size, len(examples)))
        loaded = [(row, pixels) for row in rows if (pixels := loader.load(row)) is not None]
        pixels = np.stack([row[1] for row in loaded]) if loaded else np.empty((0, *transform.shape), np.uint8)
        image_ids = np.asarray([examples[row].image_id for row, _ in loaded], np.int32)
        sources = np.asarray([(examples[row].source_text or "").encode("utf-8") for row, _ in loaded], object)
        return pixels, loader.masks([row for row, _ in loaded]), sources, image_ids

    def load_batch(start: tf.Tensor) -> dict[str, Any]:
        pixels, masks, sources, image_ids = tf.numpy_function(
            load, [start], (tf.uint8, tf.bool, tf.string, tf.int32), name="load_batch"
        )
        batch = {
            "image": transform.normalize(tf.ensure_shape(pixels, [None, *transform.shape])),
            "image_id": tf.ensure_shape(image_ids, [None]),
        }
        if tokenizer is not None and translates:
            return batch | with_source(batch["image"], tf.ensure_shape(sources, [None]), tokenizer)
        return {**batch, "image_mask": tf.ensure_shape(masks, [None, transform.frames])} if transform.frames > 1 else batch

    dataset = tf.data.Dataset.range(0, len(examples), batch_size)
    dataset = dataset.map(load_batch, num_parallel_calls=tf.data.AUTOTUNE)
    # A model need not know what to do with no picture at all.
    dataset = dataset.filter(lambda batch: tf.size(batch["image_id"]) > 0)
    return dataset.with_options(pipeline_options()).prefetch(tf.data.AUTOTUNE)


def build_eval_texts(source: Source, split: str, *, tokenizer: Tokenizer, batch_size: int) -> tf.data.Dataset:
    """Every caption of a split once, in order, with the id of its picture.

    Args:
        source: The data.
        split: Its split; ``"all"`` is all splits.
        tokenizer: As for `build_train_dataset`.
        batch_size: Captions a batch; the last batch may be smaller.

    Returns:
        A dataset of ``token_ids: int32[B, T]``, ``token_mask: bool[B, T]`` and ``image_id: int32[B]``.

    Raises:
        DataError: If there is no such split.

    Example:
        >>> import tensorflow as tf
        >>> from mmfusion.data import Example, ImageReference, Source, build_eval_texts
        >>> rows = [Example(ImageReference("a.jpg"), ("a dog", "a pet"), i, f"row {i}") for i in range(2)]
        >>> def tokenizer(text):
        ...     token_ids = tf.cast(tf.strings.length(text), tf.int32)[:, None]
        ...     return token_ids, token_ids > 0
        >>> batches = build_eval_texts(Source("dogs", {"val": rows}), "val", tokenizer=tokenizer, batch_size=3)
        >>> [batch["image_id"].numpy().tolist() for batch in batches]
        [[0, 0, 1], [1]]
    """
    examples = source.examples(split)
    texts = [caption.encode("utf-8") for example in examples for caption in example.captions]
    image_ids = [example.image_id for example in examples for _ in example.captions]

    def tokenize(texts: tf.Tensor, image_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        token_ids, token_mask = tokenizer(texts)
        return {"token_ids": token_ids, "token_mask": token_mask, "image_id": image_ids}

    columns = (tf.constant(texts, tf.string, [len(texts)]), tf.constant(image_ids, tf.int32, [len(texts)]))
    dataset = tf.data.Dataset.from_tensor_slices(columns).batch(batch_size)
    dataset = dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.with_options(pipeline_options()).prefetch(tf.data.AUTOTUNE)
