"""Many texts against each image: what depends on the image alone is computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.models.fusing import fusion_of, image_read

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel


def match_groups(
    model: ImageTextModel,
    patches: KerasTensor,
    text: KerasTensor,
    token_mask: KerasTensor | None = None,
    patch_mask: KerasTensor | None = None,
) -> KerasTensor:
    """Logits that each of C texts describes its image, in one pass.

    Args:
        model: A model with a matching head.
        patches: ``float[B, P, Di]``, encoded.
        text: ``float[B, C, T, D]``, encoded: C texts for each image.
        token_mask: ``bool[B, C, T]``, ``True`` = real token. Default: all real.
        patch_mask: ``bool[B, P]``, ``True`` = real patch. Default: all real.

    Returns:
        ``float32[B, C]``: as `ImageTextModel.match_tokens` says of each pair. Keys and values of an image's tokens are computed
        once where the fusion's `read_image` can, and its patches repeated where it cannot.

    Raises:
        ConfigError: If the model has no matching head, or the text no axis for the texts of an image.
    """
    model.head("matching")
    if len(text.shape) != 4:
        raise ConfigError("texts come in groups", where="text", expected="float[B, C, T, D]", found=list(text.shape))
    rows, count, length, width = ops.shape(text)
    text = ops.reshape(text, (-1, length, width))
    token_mask = None if token_mask is None else ops.reshape(token_mask, (-1, length))
    known = None
    if model.matching_tokens == "text":
        known = fusion_of(model).read_image(*image_read(model, patches, patch_mask))
    if known is None:
        patches, patch_mask = (None if x is None else ops.repeat(x, count, axis=0) for x in (patches, patch_mask))
        logits = model.match_tokens(patches, text, token_mask, training=False, patch_mask=patch_mask)
    else:
        logits = model.match_fused(fusion_of(model)(text, text_mask=token_mask, cache=known, training=False))
    return ops.reshape(logits, (rows, count))


def match_matrix(
    model: ImageTextModel,
    images: KerasTensor,
    token_ids: KerasTensor,
    token_mask: KerasTensor | None = None,
    *,
    top_k: int | None = None,
    image_mask: KerasTensor | None = None,
) -> KerasTensor:
    """Logits of every image with every text, or with its likeliest ones alone.

    Args:
        model: A model with a matching head; with a contrastive head too where `top_k` is given.
        images: ``float[I, H, W, 3]``.
        token_ids: ``int[N, T]``.
        token_mask: ``bool[N, T]``, ``True`` = real token. Default: all real.
        top_k: So many texts of each image are scored, those that the contrastive head finds likeliest. Default None, all.
        image_mask: Of clips, ``bool[I, F]``, ``True`` = real picture. Default: all real.

    Returns:
        ``float32[I, N]``, ``-inf`` for what was not scored.

    Raises:
        ConfigError: If a head is missing, or `top_k` is below 1.
    """
    if top_k is not None and top_k < 1:
        raise ConfigError("impossible number of candidates", where="top_k", expected="at least 1", found=top_k)
    model.head("matching")
    patches, patch_mask = model.encode_patches(images, image_mask, training=False)
    text = model.text_encoder(token_ids, token_mask=token_mask, training=False)
    rows, count = ops.shape(patches)[0], ops.shape(text)[0]
    if top_k is None or (isinstance(count, int) and top_k >= count):
        chosen = ops.broadcast_to(ops.arange(count, dtype="int32")[None], (rows, count))
    else:
        embeddings = model.embed_patches(patches, training=False, patch_mask=patch_mask)
        words = model.encode_text(token_ids, token_mask, training=False, text=text)
        chosen = ops.cast(ops.top_k(ops.matmul(embeddings, ops.transpose(words)), top_k)[1], "int32")
    mask = None if token_mask is None else ops.take(ops.convert_to_tensor(token_mask), chosen, axis=0)
    scores = match_groups(model, patches, ops.take(text, chosen, axis=0), mask, patch_mask)
    if top_k is None or (isinstance(count, int) and top_k >= count):
        return scores
    places = chosen[..., None] == ops.arange(count, dtype="int32")
    found = ops.sum(ops.where(places, scores[..., None], 0.0), axis=1)
    return ops.where(ops.any(places, axis=1), found, float("-inf"))
