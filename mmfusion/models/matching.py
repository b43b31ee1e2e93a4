"""Many texts against each image: what depends on the image alone is computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from keras import KerasTensor, ops

from mmfusion.decoding import is_eager
from mmfusion.errors import ConfigError
from mmfusion.fusion import FusionCache
from mmfusion.models.fusing import fusion_of, image_read

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel


class ReadImages(NamedTuple):
    """Images as many texts are matched with them.

    Attributes:
        patches: ``float[B, P, Di]``; None where `known` says all of them.
        patch_mask: ``bool[B, P]``, ``True`` = real patch; None if all are, or where `known` says it.
        known: Keys and values of each layer; None where what is made of an image depends on the text.
    """

    patches: KerasTensor | None
    patch_mask: KerasTensor | None
    known: FusionCache | None


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
    check_groups(text)
    return match_read(model, read_images(model, patches, patch_mask), text, token_mask)


def check_groups(text: KerasTensor) -> None:
    """Refuses texts without an axis for those of an image."""
    if len(text.shape) != 4:
        raise ConfigError("texts come in groups", where="text", expected="float[B, C, T, D]", found=list(text.shape))


def read_images(model: ImageTextModel, patches: KerasTensor, patch_mask: KerasTensor | None = None) -> ReadImages:
    """All that the matching head's fusion makes of images before it knows a text; arguments are those of `match_groups`."""
    model.head("matching")
    if model.matching_tokens == "text":
        known = fusion_of(model).read_image(*image_read(model, patches, patch_mask))
        if known is not None:
            return ReadImages(None, None, known)
    return ReadImages(patches, patch_mask, None)


def match_read(model: ImageTextModel, images: ReadImages, text: KerasTensor, token_mask: KerasTensor | None) -> KerasTensor:
    """As `match_groups`, of images that are read."""
    _, count, length, width = ops.shape(text)
    text = ops.reshape(text, (-1, length, width))
    token_mask = None if token_mask is None else ops.reshape(token_mask, (-1, length))
    if images.known is None:
        patches, patch_mask = (None if x is None else ops.repeat(x, count, axis=0) for x in images[:2])
        logits = model.match_tokens(patches, text, token_mask, training=False, patch_mask=patch_mask)
    else:
        logits = model.match_fused(fusion_of(model)(text, text_mask=token_mask, cache=images.known, training=False))
    return ops.reshape(logits, (-1, count))


def match_matrix(
    model: ImageTextModel,
    images: KerasTensor,
    token_ids: KerasTensor,
    token_mask: KerasTensor | None = None,
    *,
    top_k: int | None = None,
    candidates: KerasTensor | None = None,
    image_mask: KerasTensor | None = None,
) -> KerasTensor:
    """Logits of every image with every text, or with its likeliest ones alone.

    Outside of a graph it runs graphs of few sizes, see `mmfusion.models.matcher.Matcher`: an image is read once, and texts are
    padded little more than the length of their neighbours asks for.

    Args:
        model: A model with a matching head; with a contrastive head too where `top_k` is given.
        images: ``float[I, H, W, 3]``.
        token_ids: ``int[N, T]``.
        token_mask: ``bool[N, T]``, ``True`` = real token. Default: all real.
        top_k: So many texts of each image are scored, those that the contrastive head finds likeliest. Default None, all.
        candidates: ``int[I, K]``, the texts of each image that are scored, as an index found them, say; instead of `top_k`.
        image_mask: Of clips, ``bool[I, F]``, ``True`` = real picture. Default: all real.

    Returns:
        ``float32[I, N]``, ``-inf`` for what was not scored.

    Raises:
        ConfigError: If a head is missing, `top_k` is below 1, or there are candidates beside it.

    Example:
        >>> import numpy as np
        >>> from mmfusion.models import ImageTextModel, match_matrix
        >>> model = ImageTextModel.from_preset("albef", vocabulary_size=50, image_size=32, size="tiny")
        >>> images, texts = np.zeros((2, 32, 32, 3), "float32"), np.ones((5, 7), "int32")
        >>> scores = match_matrix(model, images, texts, candidates=[[0, 3], [4, 1]])
        >>> np.isfinite(scores).astype(int).tolist()
        [[1, 0, 0, 1, 0], [0, 1, 0, 0, 1]]
    """
    if top_k is not None and top_k < 1:
        raise ConfigError("impossible number of candidates", where="top_k", expected="at least 1", found=top_k)
    if top_k is not None and candidates is not None:
        raise ConfigError("candidates are given and looked for", where="match_matrix", expected="candidates or top_k")
    model.head("matching")
    if top_k is not None:
        model.head("contrastive")
    images = ops.convert_to_tensor(images)
    if is_eager(images):
        return model.matcher(images, token_ids, token_mask, top_k=top_k, candidates=candidates, image_mask=image_mask)
    patches, patch_mask = model.encode_patches(images, image_mask, training=False)
    text = model.text_encoder(token_ids, token_mask=token_mask, training=False)
    rows, count = ops.shape(patches)[0], ops.shape(text)[0]
    everything = candidates is None and (top_k is None or (isinstance(count, int) and top_k >= count))
    if everything:
        chosen = ops.broadcast_to(ops.arange(count, dtype="int32")[None], (rows, count))
    elif candidates is not None:
        chosen = ops.cast(candidates, "int32")
    else:
        embeddings = model.embed_patches(patches, training=False, patch_mask=patch_mask)
        words = model.encode_text(token_ids, token_mask, training=False, text=text)
        chosen = likeliest(embeddings, words, top_k)
    mask = None if token_mask is None else ops.take(ops.convert_to_tensor(token_mask), chosen, axis=0)
    scores = match_groups(model, patches, ops.take(text, chosen, axis=0), mask, patch_mask)
    return scores if everything else spread(scores, chosen, count)


def likeliest(images: KerasTensor, texts: KerasTensor, top_k: int | None) -> KerasTensor:
    """The texts that are likeliest by ``float[I, E]`` and ``float[N, E]`` embeddings: ``int32[I, K]``, best first."""
    return ops.cast(ops.top_k(ops.matmul(images, ops.transpose(texts)), top_k)[1], "int32")


def spread(scores: KerasTensor, chosen: KerasTensor, count: int | KerasTensor) -> KerasTensor:
    """``float[I, K]`` scores of ``int[I, K]`` texts among all N of them: ``float[I, N]``, ``-inf`` elsewhere."""
    places = ops.cast(chosen, "int32")[..., None] == ops.arange(count, dtype="int32")
    # The highest, not the sum: a text that is named twice has one score.
    return ops.max(ops.where(places, scores[..., None], float("-inf")), axis=1)
