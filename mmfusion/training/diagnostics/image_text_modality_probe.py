"""The share of image and text in what an image-text model says, head by head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from mmfusion.models import ImageTextModel
from mmfusion.training.diagnostics.modality_probe import ModalityProbe


class ImageTextModalityProbe:
    """A `ModalityProbe` of an `ImageTextModel`: encodes a batch anew at each call, and asks each head that it has.

    ``matching``: the logit of the pair; ``captioning``: the mean log-probability of the caption's tokens; ``contrastive``: the
    cosine of the pair.
    """

    name = "modality"

    def __init__(self, model: ImageTextModel, batch: dict[str, tf.Tensor]) -> None:
        self.model = model
        self.batch = batch

    def __call__(self) -> dict[str, dict[str, dict[str, float]]]:
        """Measures; see the class."""
        model, ids, mask = self.model, self.batch["token_ids"], self.batch["token_mask"]
        patches, patch_mask = model.encode_patches(self.batch["image"], self.batch.get("image_mask"), training=False)
        masks = {} if patch_mask is None else {"image": patch_mask}
        report: dict[str, dict[str, dict[str, float]]] = {}
        for head, output in _OUTPUTS.items():
            if head in model.heads:
                writes = head == "captioning"
                causal = writes or (head == "contrastive" and model.causal_text)
                read_ids, read_mask = (ids[:, :-1], mask[:, :-1]) if writes else (ids, mask)
                text = model.text_encoder(read_ids, token_mask=read_mask, causal=causal, training=False)

                def ask(streams: dict[str, tf.Tensor], output: Any = output) -> tf.Tensor:
                    return output(model, streams["image"], patch_mask, streams["text"], ids, mask)

                report |= ModalityProbe({head: ask}, {"image": patches, "text": text}, {"text": read_mask, **masks})()
        return report


def _contrastive(
    model: ImageTextModel, image: tf.Tensor, real: tf.Tensor | None, text: tf.Tensor, ids: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    embedded = model.encode_text(ids, mask, training=False, text=text)
    return tf.reduce_sum(model.embed_patches(image, training=False, patch_mask=real) * embedded, axis=-1)


def _matching(
    model: ImageTextModel, image: tf.Tensor, real: tf.Tensor | None, text: tf.Tensor, ids: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    return model.match_tokens(image, text, mask, training=False, patch_mask=real)


def _captioning(
    model: ImageTextModel, image: tf.Tensor, real: tf.Tensor | None, text: tf.Tensor, ids: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    with _reading(model.text_encoder, text):
        logits = tf.cast(model.caption_logits(image, ids[:, :-1], mask[:, :-1], training=False, patch_mask=real), tf.float32)
    targets, counted = ids[:, 1:], tf.cast(mask[:, 1:], tf.float32)
    said = tf.gather(tf.nn.log_softmax(logits), targets, batch_dims=2)
    return tf.reduce_sum(said * counted, axis=-1) / tf.maximum(tf.reduce_sum(counted, axis=-1), 1.0)


@contextmanager
def _reading(encoder: keras.layers.Layer, tokens: tf.Tensor) -> Iterator[None]:
    """While it is open, the encoder reads the given tokens, whatever it is asked to read."""
    encoder.__dict__["call"] = lambda *arguments, **options: tokens
    try:
        yield
    finally:
        del encoder.__dict__["call"]


_OUTPUTS = {"contrastive": _contrastive, "matching": _matching, "captioning": _captioning}
