"""The share of image and text in what an image-text model says, head by head."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from mmfusion.layers.replaced_methods import replaced_methods
from mmfusion.losses import mask_tokens
from mmfusion.models import ImageTextModel
from mmfusion.training.diagnostics.modality_probe import ModalityProbe


class ImageTextModalityProbe:
    """A `ModalityProbe` of an `ImageTextModel`: encodes a batch anew at each call, and asks each head that it has.

    ``matching``: the logit of the pair; ``captioning``: the mean log-probability of the caption's tokens; ``masked_language``:
    that of hidden tokens, the same places each time; ``contrastive``: the cosine of the pair.
    """

    name = "modality"

    def __init__(self, model: ImageTextModel, batch: dict[str, tf.Tensor]) -> None:
        self.model = model
        self.batch = batch

    def __call__(self) -> dict[str, dict[str, dict[str, float]]]:
        """Measures; see the class."""
        model = self.model
        patches, patch_mask = model.encode_patches(self.batch["image"], self.batch.get("image_mask"), training=False)
        masks = {} if patch_mask is None else {"image": patch_mask}
        report: dict[str, dict[str, dict[str, float]]] = {}
        for head, output in _OUTPUTS.items():
            if head in model.heads:
                asked = _asked(model, head, self.batch["token_ids"], self.batch["token_mask"])
                by_class = head == "contrastive" and model.contrastive_text == "class_token"
                read = model.text_encoder.class_token_of if by_class else model.text_encoder
                text = read(asked.token_ids, token_mask=asked.token_mask, causal=asked.causal, training=False)
                text_mask = tf.ones_like(asked.token_mask[:, :1]) if by_class else asked.token_mask

                def ask(streams: dict[str, tf.Tensor], output: Any = output, asked: _Asked = asked) -> tf.Tensor:
                    return output(model, streams["image"], patch_mask, streams["text"], asked)

                report |= ModalityProbe({head: ask}, {"image": patches, "text": text}, {"text": text_mask, **masks})()
        return report


class _Asked(NamedTuple):
    """What a head reads, and the tokens whose probability is asked for, if it gives one."""

    token_ids: tf.Tensor
    token_mask: tf.Tensor
    causal: bool
    targets: tf.Tensor | None = None
    counted: tf.Tensor | None = None


def _asked(model: ImageTextModel, head: str, ids: tf.Tensor, mask: tf.Tensor) -> _Asked:
    if head == "captioning":
        return _Asked(ids[:, :-1], mask[:, :-1], True, ids[:, 1:], mask[:, 1:])
    if head == "masked_language":
        known = model.head("masked_language")
        size = model.text_encoder.vocabulary_size
        hidden = mask_tokens(ids, mask, vocabulary_size=size, mask_id=known.mask_id, special_ids=known.special_ids, seed=0)
        return _Asked(tf.cast(hidden.token_ids, ids.dtype), mask, False, ids, hidden.chosen)
    return _Asked(ids, mask, head == "contrastive" and model.causal_text)


def _contrastive(model: ImageTextModel, image: tf.Tensor, real: tf.Tensor | None, text: tf.Tensor, asked: _Asked) -> tf.Tensor:
    given = lambda *arguments, **options: text  # noqa: E731
    methods = {"call": given, "class_token_of": given} if model.contrastive_text == "class_token" else {"call": given}
    with replaced_methods(model.text_encoder, **methods):
        embedded = model.encode_text(asked.token_ids, asked.token_mask, training=False)
    return tf.reduce_sum(model.embed_patches(image, training=False, patch_mask=real) * embedded, axis=-1)


def _matching(model: ImageTextModel, image: tf.Tensor, real: tf.Tensor | None, text: tf.Tensor, asked: _Asked) -> tf.Tensor:
    return model.match_tokens(image, text, asked.token_mask, training=False, patch_mask=real)


def _log_probability(
    logits: str, model: ImageTextModel, image: tf.Tensor, real: tf.Tensor | None, text: tf.Tensor, asked: _Asked
) -> tf.Tensor:
    """The mean over the tokens that are asked for, ``float32[B]``, by the logits of a method of the model."""
    with replaced_methods(model.text_encoder, call=lambda *arguments, **options: text):
        scores = getattr(model, logits)(image, asked.token_ids, asked.token_mask, training=False, patch_mask=real)
    said = tf.gather(tf.nn.log_softmax(tf.cast(scores, tf.float32)), asked.targets, batch_dims=2)
    counted = tf.cast(asked.counted, tf.float32)
    return tf.reduce_sum(said * counted, axis=-1) / tf.maximum(tf.reduce_sum(counted, axis=-1), 1.0)


_OUTPUTS: dict[str, Any] = {
    "contrastive": _contrastive,
    "matching": _matching,
    "masked_language": partial(_log_probability, "masked_language_logits"),
    "captioning": partial(_log_probability, "caption_logits"),
}
