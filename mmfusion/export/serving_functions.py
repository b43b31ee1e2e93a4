"""From image bytes and strings to answers, as TensorFlow functions with fixed signatures."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from mmfusion.config import DecodingConfig
from mmfusion.data import Clip, Transform
from mmfusion.data.translation import with_source
from mmfusion.encoders import SourceImageEncoder
from mmfusion.export.caption_functions import caption_functions
from mmfusion.export.serving_function import ServingFunction
from mmfusion.models import ImageTextModel
from mmfusion.models.captioning import best_caption
from mmfusion.text import TokenBatch, WordPieceTokenizer


def serving_functions(
    model: ImageTextModel,
    tokenizer: WordPieceTokenizer,
    transform: Transform,
    *,
    with_options: DecodingConfig | None = None,
    batch_size: int | None = None,
    **decoding: Any,
) -> dict[str, ServingFunction]:
    """The signatures that a model can serve; what it has no head for is left out.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        transform: From image files to its pixels.
        with_options: The recipe's section on decoding, where ``caption_sample`` and ``caption_beam`` are wanted too, see
            `mmfusion.export.caption_functions`. Default: they are not.
        batch_size: The one batch size of all signatures. Default: free.
        **decoding: Options of ``caption``, see `mmfusion.models.write_captions`; of several captions an image it says the best.

    Returns:
        Signatures by name: ``encode_image``, ``encode_text``, ``encode_text_ids``, ``match``, ``caption``, ``attend``. A model of
        several images takes ``image_bytes: string[B, N]``, empty where an example has fewer; all others ``string[B]``: a file
        holds a clip's frames. A model that translates has ``translate`` alone.
    """

    # A function of its own: traced once, not once a signature.
    @functools.partial(tf.function, autograph=False)
    def pictures(image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        image = tf.TensorSpec(transform.shape, tf.float32)
        clip = Clip(image, tf.TensorSpec([transform.frames], tf.bool))
        of_clips = transform.frames > 1
        seen = tf.map_fn(transform, image_bytes, fn_output_signature=clip if of_clips else image, parallel_iterations=16)
        return seen if of_clips else (seen, None)

    def encode_image(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images, mask = pictures(image_bytes)
        return {"embedding": model.encode_image(images, training=False, image_mask=mask)}

    def tokenized(text: tf.Tensor) -> TokenBatch:
        tokens = tokenizer(text)
        for part in tokens:
            # The ragged tensors between forget a fixed batch.
            part.set_shape([text.shape[0], None])
        return tokens

    def encode_text(text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = tokenized(text)
        return {"embedding": model.encode_text(tokens.token_ids, tokens.token_mask, training=False)}

    def encode_text_ids(token_ids: tf.Tensor, token_mask: tf.Tensor) -> dict[str, tf.Tensor]:
        longest, size = model.text_encoder.max_length, model.text_encoder.vocabulary_size
        shapes, known = "token_ids and token_mask: expected one shape, [B, T]", f"token_ids: expected ids from 0 to {size - 1}"
        checks = [
            tf.debugging.assert_equal(tf.shape(token_ids), tf.shape(token_mask), shapes),
            tf.debugging.assert_less_equal(tf.shape(token_ids)[1], longest, f"token_ids: expected at most {longest} a text"),
            tf.debugging.assert_non_negative(token_ids, known),
            tf.debugging.assert_less(token_ids, size, known),
        ]
        with tf.control_dependencies(checks):
            token_ids = tf.identity(token_ids)
        return {"embedding": model.encode_text(token_ids, token_mask, training=False)}

    def match(image_bytes: tf.Tensor, text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = tokenized(text)
        images, image_mask = pictures(image_bytes)
        patches, patch_mask = model.encode_patches(images, image_mask, training=False)
        words = model.text_encoder(tokens.token_ids, token_mask=tokens.token_mask, training=False)
        logits = model.match_tokens(patches, words, tokens.token_mask, training=False, patch_mask=patch_mask)
        answer = {"score": tf.sigmoid(logits)}
        if model.contrastive_head is not None:
            image = model.embed_patches(patches, training=False, patch_mask=patch_mask)
            sentence = model.encode_text(tokens.token_ids, tokens.token_mask, training=False, text=words)
            # Every score lies in [0, 1]: the cosine is moved there.
            answer["similarity"] = (1.0 + tf.reduce_sum(image * sentence, axis=-1)) / 2.0
        return answer

    def written(images: Any, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        penalty = decoding.get("length_penalty", 1.0) if decoding.get("method", "beam") == "beam" else 1.0
        token_ids, score = best_caption(model.caption(images, mask, **decoding), penalty)
        return tokenizer.detokenize(token_ids), score

    def caption(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        text, score = written(*pictures(image_bytes))
        return {"caption": text, "score": score}

    def translate(image_bytes: tf.Tensor, text: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels, _ = pictures(image_bytes)
        source = with_source(pixels, text, tokenizer)
        translation, score = written(source["image"], source["image_mask"])
        return {"translation": translation, "score": score}

    def attend(image_bytes: tf.Tensor, text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = tokenized(text)
        images, mask = pictures(image_bytes)
        attention = model.attend(images, tokens.token_ids, tokens.token_mask, image_mask=mask)
        return {"attention": tf.cast(attention, tf.float32), "tokens": tokenizer.id_to_token(tokens.token_ids)}

    batch = batch_size
    image_bytes = tf.TensorSpec([batch, None] if takes_several(model) else [batch], tf.string, name="image_bytes")
    text = tf.TensorSpec([batch], tf.string, name="text")
    if translates(model):
        return {"translate": ServingFunction(translate, [image_bytes, text])}
    functions: dict[str, ServingFunction] = {}
    if model.contrastive_head is not None:
        functions["encode_image"] = ServingFunction(encode_image, [image_bytes])
        functions["encode_text"] = ServingFunction(encode_text, [text])
        functions["encode_text_ids"] = ServingFunction(
            encode_text_ids,
            [tf.TensorSpec([batch, None], tf.int32, name="token_ids"), tf.TensorSpec([batch, None], tf.bool, name="token_mask")],
        )
    if model.matching_head is not None:
        functions["match"] = ServingFunction(match, [image_bytes, text])
    if model.captioning_head is not None:
        functions["caption"] = ServingFunction(caption, [image_bytes])
        if with_options is not None:
            functions |= caption_functions(model, tokenizer, pictures, image_bytes, with_options)
    if model.fusion is not None:
        functions["attend"] = ServingFunction(attend, [image_bytes, text])
    return functions


def translates(model: ImageTextModel) -> bool:
    """Whether a model writes from a picture with a text, not from a picture alone."""
    return isinstance(model.image_encoder, SourceImageEncoder)


def takes_several(model: ImageTextModel) -> bool:
    """Whether an example of a model is several files, not one."""
    return hasattr(model.image_encoder, "max_images")
