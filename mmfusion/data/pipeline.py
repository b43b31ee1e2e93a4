"""From a table of examples to training batches, with `tf.data`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from mmfusion.data.augmentation import Augmentation
from mmfusion.data.clip_transform import Transform
from mmfusion.data.epoch_order import EpochOrder
from mmfusion.data.image_loader import ImageLoader
from mmfusion.data.pipeline_options import Tokenizer, pipeline_options
from mmfusion.data.quarantine import Quarantine
from mmfusion.data.source import Source
from mmfusion.data.translation import has_sources, with_source
from mmfusion.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mmfusion.config import AugmentConfig


def steps_per_epoch(source: Source, split: str, batch_size: int, captions: str = "sample") -> int:
    """Batches in an epoch; what is left over of an epoch's order is dropped.

    Args:
        source: The data.
        split: Its split.
        batch_size: The global batch: with shards, that of all of them together.
        captions: As for `build_train_dataset`. Default ``"sample"``.

    Returns:
        The number of whole batches.

    Example:
        >>> from mmfusion.data import Example, ImageReference, Source, steps_per_epoch
        >>> rows = [Example(ImageReference("a.jpg"), ("a dog", "a pet"), i, f"row {i}") for i in range(10)]
        >>> source = Source("dogs", {"train": rows})
        >>> steps_per_epoch(source, "train", 4), steps_per_epoch(source, "train", 4, captions="all")
        (2, 5)
    """
    return EpochOrder(source.examples(split), seed=0, captions=captions).size // batch_size


def build_train_dataset(
    source: Source,
    split: str = "train",
    *,
    tokenizer: Tokenizer,
    transform: Transform,
    batch_size: int,
    seed: int,
    quarantine: Quarantine,
    augment: AugmentConfig | Augmentation | None = None,
    start_step: int = 0,
    shard: tuple[int, int] = (1, 0),
    cache: str = "memory",
    captions: str = "sample",
) -> tf.data.Dataset:
    """Training batches without end, a pure function of the seed and the number of the step.

    Each epoch has an order of its own. Nothing is shuffled in buffers: the dataset from step *k* on is bit for bit the
    full one without its first *k* batches, and starts at once.

    An example whose picture is bad is replaced by the next good one and recorded in the quarantine. Past the
    quarantine's share, iterating raises a `tf.errors.OpError`; the clear error is then `quarantine.error`.

    Args:
        source: The data.
        split: Its split. Default ``"train"``.
        tokenizer: Such as `mmfusion.text.WordPieceTokenizer`; called in graph on ``string[B]``.
        transform: How pictures, or clips, become pixels.
        batch_size: Batch of this shard.
        seed: Seed of orders, choices of captions, and augmentation.
        quarantine: Where bad examples are recorded.
        augment: Random changes of the pictures, applied after resizing. Default none.
        start_step: Number of the first batch, counted from the run's begin. Default 0.
        shard: ``(count, index)``: with *n* workers each takes its part of every global batch. Default ``(1, 0)``.
        cache: ``"memory"`` keeps decoded pictures (see `ImageLoader`), ``"none"`` decodes every time. Default
            ``"memory"``.
        captions: ``"sample"``: an epoch has each picture once, with another of its captions each time, so that *n*
            epochs see all *n*; ``"all"``: an epoch has each pair of picture and caption once. Default ``"sample"``.

    Returns:
        An infinite dataset of ``image: float32[B, H, W, 3]``, ``token_ids: int32[B, T]``, ``token_mask: bool[B, T]``
        and ``image_id: int32[B]``, where pairs with one `image_id` are positives of each other. Of clips,
        ``image: float32[B, F, H, W, 3]`` and ``image_mask: bool[B, F]``, ``True`` = real picture. Of examples with a text to
        translate, ``image`` is a dictionary of ``pixels: float32[B, H, W, 3]`` and ``source_ids: int32[B, T]``; ``image_mask``
        is ``bool[B, T]``, ``True`` = real token of it.

    Raises:
        DataError: If the split is empty or smaller than a global batch.
        ConfigError: If an argument is impossible.

    Example:
        >>> import pathlib, tempfile, tensorflow as tf
        >>> from mmfusion.data import Example, ImageReference, ImageTransform, Quarantine, Source, build_train_dataset
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "1.png").write_bytes(tf.io.encode_png(tf.zeros([4, 4, 3], tf.uint8)).numpy())
        >>> rows = [Example(ImageReference(str(folder / "1.png")), ("a dot",), i, f"row {i}") for i in range(4)]
        >>> def tokenizer(text):
        ...     token_ids = tf.cast(tf.strings.length(text), tf.int32)[:, None]
        ...     return token_ids, token_ids > 0
        >>> batches = build_train_dataset(
        ...     Source("dots", {"train": rows}), tokenizer=tokenizer, transform=ImageTransform(size=2), batch_size=2,
        ...     seed=1, quarantine=Quarantine(None, total=4))
        >>> batch = next(iter(batches))
        >>> batch["image"].shape, batch["token_ids"].numpy().tolist()
        (TensorShape([2, 2, 2, 3]), [[5], [5]])
    """
    examples = source.examples(split)
    shards, index = shard
    if batch_size < 1 or start_step < 0 or not 0 <= index < shards:
        raise ConfigError(
            "impossible batches",
            expected="batch_size >= 1, start_step >= 0 and shard (count, index) with index < count",
            found=f"{batch_size}, {start_step} and {shard}",
        )
    order = EpochOrder(examples, seed=seed, captions=captions)
    if order.size < batch_size * shards:
        raise DataError(
            "the split is smaller than a batch",
            where=f"{source.name}: {split}",
            expected=f"at least {batch_size * shards}",
            found=order.size,
            fix="lower train.batch_size",
        )
    loader = ImageLoader(examples, transform, quarantine, cache=cache)
    augmentation = augment if isinstance(augment, Augmentation) or augment is None else Augmentation.from_config(augment)
    moves, translates = transform.frames > 1, has_sources(examples)

    def load(step: np.ndarray) -> tuple[np.ndarray, ...]:
        part = slice(index * batch_size, (index + 1) * batch_size)
        rows, numbers, seeds = (column[part] for column in order.batch(int(step), batch_size * shards))
        pixels = np.empty((batch_size, *transform.shape), np.uint8)
        loaded = np.empty(batch_size, np.int64)
        texts, sources = np.empty(batch_size, object), np.full(batch_size, b"", object)
        image_ids = np.empty(batch_size, np.int32)
        for place in range(batch_size):
            row, pixels[place] = loader.load_or_next(int(rows[place]))
            loaded[place], example = row, examples[row]
            texts[place] = example.captions[int(numbers[place]) % len(example.captions)].encode("utf-8")
            sources[place] = (example.source_text or "").encode("utf-8")
            image_ids[place] = example.image_id
        return pixels, loader.masks(loaded), texts, sources, image_ids, seeds

    def load_batch(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        pixels, masks, texts, sources, image_ids, seeds = tf.numpy_function(
            load, [step], (tf.uint8, tf.bool, tf.string, tf.string, tf.int32, tf.int64), name="load_batch"
        )
        return (
            tf.ensure_shape(pixels, [batch_size, *transform.shape]),
            tf.ensure_shape(masks, [batch_size, transform.frames]),
            tf.ensure_shape(texts, [batch_size]),
            tf.ensure_shape(sources, [batch_size]),
            tf.ensure_shape(image_ids, [batch_size]),
            tf.ensure_shape(seeds, [batch_size, 2]),
        )

    def to_pixels(
        pixels: tf.Tensor, mask: tf.Tensor, text: tf.Tensor, source: tf.Tensor, image_id: tf.Tensor, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        if augmentation is not None:
            pixels = augmentation(pixels, seed, mask if moves else None)
        row = {"image": transform.normalize(pixels), "text": text, "image_id": image_id}
        row |= {"source": source} if translates else {}
        return {**row, "image_mask": mask} if moves else row

    def tokenize(batch: dict[str, tf.Tensor]) -> dict[str, Any]:
        batch = dict(batch)
        token_ids, token_mask = tokenizer(batch.pop("text"))
        if translates:
            batch |= with_source(batch["image"], batch.pop("source"), tokenizer)
        return {**batch, "token_ids": token_ids, "token_mask": token_mask}

    dataset = tf.data.Dataset.counter(start=start_step)
    dataset = dataset.map(load_batch, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
    dataset = dataset.map(to_pixels, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size, drop_remainder=True).map(tokenize)
    return dataset.with_options(pipeline_options()).prefetch(tf.data.AUTOTUNE)
