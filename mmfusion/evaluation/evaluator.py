"""A model against a split: losses, retrieval, reranking, captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mmfusion.data import Quarantine, Source, Transform, build_eval_images, build_eval_texts
from mmfusion.errors import DataError
from mmfusion.evaluation.caption_likelihood import caption_loss, masked_language_figures
from mmfusion.evaluation.caption_metrics import caption_metrics
from mmfusion.evaluation.grouping import GROUP, grouped
from mmfusion.evaluation.reranking import rerank
from mmfusion.evaluation.retrieval_metrics import retrieval_metrics
from mmfusion.models import ImageTextModel, match_groups
from mmfusion.text import WordPieceTokenizer

Progress = Callable[[int, int], None]


class EncodedGallery(NamedTuple):
    """All images and texts of a gallery, encoded; rows of one text or image in the order of the source.

    Attributes:
        image_embedding: ``float32[I, E]``.
        image_id: ``int32[I]``.
        image_query: ``bool[I]``, whether the image is asked about (belongs to the split), not only there to be confused with.
        text_embedding: ``float32[T, E]``.
        text_image_id: ``int32[T]``, the image that a text belongs to.
        text_query: ``bool[T]``.
        patches: ``float[I, P, Di]`` for reranking, or None.
        patch_mask: ``bool[I, P]`` of them, or None where all are real.
        text_tokens: ``float[T, L, D]`` for reranking, or None.
        text_mask: ``bool[T, L]`` for reranking, or None.
    """

    image_embedding: np.ndarray
    image_id: np.ndarray
    image_query: np.ndarray
    text_embedding: np.ndarray
    text_image_id: np.ndarray
    text_query: np.ndarray
    patches: np.ndarray | None
    patch_mask: np.ndarray | None
    text_tokens: np.ndarray | None
    text_mask: np.ndarray | None

    @property
    def similarity(self) -> np.ndarray:
        """``float32[I, T]``, cosines."""
        return self.image_embedding @ self.text_embedding.T


class CaptionsResult(NamedTuple):
    """What a model wrote.

    Attributes:
        metrics: ``bleu_1`` … ``cider_d``, and ``distinct``: the share of different captions.
        image_id: Image of each caption.
        captions: The captions.
        references: What people wrote of the same images.
    """

    metrics: dict[str, float]
    image_id: list[int]
    captions: list[str]
    references: list[list[str]]


class Evaluator:
    """Measures a model on a split of a source.

    Args:
        model: The model.
        source: The data.
        split: The split whose images and texts are asked about.
        tokenizer: The model's tokenizer.
        transform: From image files to the model's pixels.
        gallery: ``"split"`` retrieves within the split; ``"all"`` among the images and texts of all splits. Default ``"split"``.
        batch_size: Images or texts at a time. Default 64.
        limit: Only the first so many images of the split. Default all.
        quarantine: Where unreadable images are recorded.
        progress: Called with (done, total) while encoding.

    Raises:
        DataError: If the source has no such split.
    """

    def __init__(
        self,
        model: ImageTextModel,
        *,
        source: Source,
        split: str,
        tokenizer: WordPieceTokenizer,
        transform: Transform,
        gallery: str = "split",
        batch_size: int = 64,
        limit: int | None = None,
        quarantine: Quarantine | None = None,
        progress: Progress | None = None,
    ) -> None:
        if split not in source.splits:
            raise DataError("no such split", where=source.name, expected=", ".join(sorted(source.splits)), found=split)
        self.model = model
        self.tokenizer = tokenizer
        self.transform = transform
        self.batch_size = batch_size
        self.progress = progress
        self.examples = source.splits[split][:limit]
        gallery_examples = list(self.examples)
        if gallery == "all":
            asked = {example.image_id for example in self.examples}
            gallery_examples = [
                example
                for name in sorted(source.splits)
                for example in source.splits[name]
                if example.image_id in asked or name != split
            ]
        self.gallery = Source(name=source.name, splits={"gallery": gallery_examples}, bad_rows=[])
        self.queries = Source(name=source.name, splits={"queries": list(self.examples)}, bad_rows=[])
        self.quarantine = quarantine or Quarantine(None, total=max(len(gallery_examples), 1), max_share=1.0)
        self._encoded: EncodedGallery | None = None
        # One traced function an operation, however many times an evaluation is repeated.
        self._encode_image = tf.function(self._image_step, reduce_retracing=True, autograph=False)
        self._encode_text = tf.function(self._text_step, reduce_retracing=True, autograph=False)
        self._match = tf.function(self._match_step, reduce_retracing=True, autograph=False)
        self._captioners: dict[tuple, Any] = {}
        self._losses: Any = None

    def losses(self, compute: Callable[[dict[str, tf.Tensor]], dict[str, tuple[tf.Tensor, tf.Tensor]]]) -> dict[str, float]:
        """Means over the split of what `compute` says of a batch, each image with one of its captions.

        Args:
            compute: From a batch to figures as (mean, count), like `Trainer.compute_losses`.

        Returns:
            The figures.
        """
        if self._losses is None:
            self._losses = tf.function(compute, reduce_retracing=True, autograph=False)
        captions = {example.image_id: example.captions for example in self.examples}
        totals: dict[str, list[float]] = {}
        for batch in self._image_batches(self.queries, "queries"):
            ids = batch["image_id"].numpy()
            # A fixed choice that still uses all of the captions over the split.
            texts = [captions[int(key)][int(key) % len(captions[int(key)])] for key in ids]
            tokens = self.tokenizer(tf.constant(texts))
            figures = self._losses({**batch, "token_ids": tokens.token_ids, "token_mask": tokens.token_mask})
            for name, (mean, count) in figures.items():
                total = totals.setdefault(name, [0.0, 0.0])
                total[0] += float(mean) * float(count)
                total[1] += float(count)
        return {name: total / max(count, 1e-9) for name, (total, count) in totals.items()}

    def encode(self, *, tokens: bool = False) -> EncodedGallery:
        """Encodes the gallery.

        Args:
            tokens: Whether to keep the token streams for reranking, and not only the embeddings.

        Returns:
            The `EncodedGallery`.
        """
        asked = {example.image_id for example in self.examples}
        images: list[tuple] = []
        for batch in self._image_batches(self.gallery, "gallery"):
            patches, patch_mask, embedding = self._encode_image(batch["image"], batch.get("image_mask"))
            real = None if patch_mask is None or not tokens else patch_mask.numpy()
            images.append((embedding.numpy(), batch["image_id"].numpy(), _half(patches) if tokens else None, real))
        texts: list[tuple] = []
        dataset = build_eval_texts(self.gallery, "gallery", tokenizer=self.tokenizer, batch_size=self.batch_size)
        for batch in dataset:
            text, embedding = self._encode_text(batch["token_ids"], batch["token_mask"])
            texts.append(
                (
                    embedding.numpy(),
                    batch["image_id"].numpy(),
                    _half(text) if tokens else None,
                    batch["token_mask"].numpy() if tokens else None,
                )
            )
        if not images or not texts:
            raise DataError("nothing to evaluate", where=self.gallery.name, found="no readable image with a caption")
        image_id, text_image_id = (np.concatenate([row[1] for row in rows]) for rows in (images, texts))
        # Captions of images that could not be read have nothing to be found with.
        readable = np.isin(text_image_id, image_id)

        def joined(rows: list[tuple], column: int) -> np.ndarray | None:
            return None if rows[0][column] is None else np.concatenate([row[column] for row in rows])

        def text_column(column: int) -> np.ndarray | None:
            values = joined(texts, column)
            return None if values is None else values[readable]

        return EncodedGallery(
            image_embedding=np.concatenate([row[0] for row in images]),
            image_id=image_id,
            image_query=np.isin(image_id, list(asked)),
            text_embedding=np.concatenate([row[0] for row in texts])[readable],
            text_image_id=text_image_id[readable],
            text_query=np.isin(text_image_id[readable], list(asked)),
            patches=joined(images, 2),
            patch_mask=joined(images, 3),
            text_tokens=text_column(2),
            text_mask=text_column(3),
        )

    def retrieval(self, encoded: EncodedGallery | None = None) -> dict[str, float]:
        """Recalls and ranks of the dual encoder in both directions; see `retrieval_metrics`."""
        encoded = self.encode() if encoded is None else encoded
        return retrieval_metrics(
            encoded.similarity,
            encoded.image_id,
            encoded.text_image_id,
            image_query=encoded.image_query,
            text_query=encoded.text_query,
        )

    def reranked(
        self, encoded: EncodedGallery, *, top_k: int, fuse: float = 0.0, progress: Progress | None = None
    ) -> dict[str, float]:
        """As `retrieval`, with the first `top_k` candidates reordered by the matching head; see `rerank`."""
        return rerank(
            encoded.similarity,
            encoded.image_id,
            encoded.text_image_id,
            lambda images, texts: self.match_pairs(encoded, images, texts),
            top_k=top_k,
            fuse=fuse,
            image_query=encoded.image_query,
            text_query=encoded.text_query,
            progress=progress,
        )

    def match_pairs(self, encoded: EncodedGallery, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Logits ``float32[N]`` of the matching head for pairs given by their rows in the gallery."""
        if encoded.patches is None or encoded.text_tokens is None or encoded.text_mask is None:
            raise DataError("reranking needs the token streams", fix="encode(tokens=True)")
        owners, members = grouped(images, GROUP)
        real = None if encoded.patch_mask is None else tf.constant(encoded.patch_mask[owners])
        logits = self._match(
            tf.constant(encoded.patches[owners]),
            real,
            tf.constant(encoded.text_tokens[texts[members]]),
            tf.constant(encoded.text_mask[texts[members]]),
        ).numpy()
        scores = np.empty(len(images), logits.dtype)
        scores[members] = logits
        return scores

    def captions(self, *, limit: int | None = None, **options: Any) -> CaptionsResult:
        """Captions the split's images and scores them against their references.

        Args:
            limit: Only the first so many images.
            **options: Of `ImageTextModel.caption`; of several captions an image the best counts.

        Returns:
            The `CaptionsResult`.
        """
        key = tuple(sorted(options.items()))
        if key not in self._captioners:
            self._captioners[key] = tf.function(
                lambda images, mask: _best(self.model.caption(images, mask, **options)),
                reduce_retracing=True,
                autograph=False,
            )
        references = {example.image_id: list(example.captions) for example in self.examples[:limit]}
        chosen = Source(name=self.queries.name, splits={"queries": self.examples[:limit]}, bad_rows=[])
        ids: list[int] = []
        captions: list[str] = []
        for batch in self._image_batches(chosen, "queries"):
            token_ids = self._captioners[key](batch["image"], batch.get("image_mask"))
            captions += [text.decode("utf-8", "replace") for text in self.tokenizer.detokenize(token_ids).numpy()]
            ids += [int(image_id) for image_id in batch["image_id"].numpy()]
        aligned = [references[image_id] for image_id in ids]
        metrics = caption_metrics(captions, aligned)
        metrics["distinct"] = len(set(captions)) / max(len(captions), 1)
        return CaptionsResult(metrics, ids, captions, aligned)

    def caption_loss(self) -> float:
        """Nats a token of the split's captions; see `mmfusion.evaluation.caption_likelihood.caption_loss`."""
        captions = {example.image_id: example.captions for example in self.examples}
        return caption_loss(self.model, self.tokenizer, self._image_batches(self.queries, "queries"), captions)

    def masked_language(self, *, rate: float = 0.15) -> dict[str, float]:
        """Loss and accuracy of hidden words; see `mmfusion.evaluation.caption_likelihood.masked_language_figures`."""
        captions = {example.image_id: example.captions for example in self.examples}
        batches = self._image_batches(self.queries, "queries")
        return masked_language_figures(self.model, self.tokenizer, batches, captions, rate=rate)

    def _image_batches(self, source: Source, split: str) -> Iterator[dict[str, tf.Tensor]]:
        total = len(source.splits[split])
        done = 0
        for batch in build_eval_images(
            source,
            split,
            transform=self.transform,
            batch_size=self.batch_size,
            quarantine=self.quarantine,
            tokenizer=self.tokenizer,
        ):
            yield batch
            done += int(batch["image_id"].shape[0])
            if self.progress is not None:
                self.progress(done, total)

    def _image_step(self, images: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor]:
        patches, patch_mask = self.model.encode_patches(images, mask, training=False)
        if self.model.contrastive_head is None:
            return patches, patch_mask, tf.zeros((tf.shape(images)[0], 1))
        return patches, patch_mask, self.model.embed_patches(patches, training=False, patch_mask=patch_mask)

    def _text_step(self, token_ids: tf.Tensor, token_mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        text = self.model.text_encoder(token_ids, token_mask=token_mask, training=False)
        if self.model.contrastive_head is None:
            return text, tf.zeros((tf.shape(token_ids)[0], 1))
        return text, self.model.encode_text(token_ids, token_mask, training=False, text=text)

    def _match_step(self, patches: tf.Tensor, patch_mask: tf.Tensor | None, text: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        dtype = self.model.compute_dtype
        patches, text = tf.cast(patches, dtype), tf.cast(text, dtype)
        return match_groups(self.model, patches, text, mask, patch_mask)


def _half(values: tf.Tensor) -> np.ndarray:
    # Token streams of a whole gallery: half the memory, and far finer than what training in bfloat16 tells apart.
    return tf.cast(values, tf.float16).numpy()


def _best(output: Any) -> tf.Tensor:
    token_ids = output.token_ids
    return token_ids[:, 0] if len(token_ids.shape) == 3 else token_ids
