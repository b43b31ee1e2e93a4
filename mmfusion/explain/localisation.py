"""Where in a picture what a phrase names is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.errors import ConfigError, DataError
from mmfusion.explain.overlay import SPECIAL_TOKENS, attention_maps

if TYPE_CHECKING:
    from mmfusion.models import ImageTextModel
    from mmfusion.text import WordPieceTokenizer

METHODS = ("attention", "similarity", "gradient", "input")
_ROUNDING = 1e-5
Floats = npt.NDArray[np.floating[Any]]


class Localisation(NamedTuple):
    """Where a phrase is, in one picture or in several.

    Attributes:
        heat: ``float32[B, rows, cols]`` over the patches, not negative, each map summing to 1. Of one picture
            ``float32[rows, cols]``.
        score: ``float32[B]`` in 0..1, how well the phrase fits the whole picture: the matching head's probability, else the
            cosine of the dual encoder moved there, else NaN. Of one picture a number.
    """

    heat: Floats
    score: Any


def localise(
    model: ImageTextModel,
    tokenizer: WordPieceTokenizer,
    images: Any,
    phrases: Sequence[str],
    *,
    method: str = "attention",
    sentences: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Localisation:
    """Scores every patch of each picture for a phrase.

    With patches p and the tokens w of the phrase, before what is negative becomes 0 and the map is scaled to sum to 1:

    - ``"attention"``: ``mean_w A[w, p] - mean_s A[s, p]``, A the attention from text to image, mean over layers and heads, s the
      special tokens, which see what any text sees. Any model with a fusion; styles that go through latents or pool the image say
      A as a product, or the same for all words.
    - ``"similarity"``: ``cos(patch p, phrase)``, each patch embedded alone by the contrastive head, less the least of them. Any
      model with that head; no fusion is asked.
    - ``"gradient"``: ``mean A[w, p] · max(∂m/∂A[w, p], 0)``, m the match logit (ALBEF's Grad-CAM). Fusions in which text attends
      to patches in one step (cross, co, gated, merged), with the exact kernel.
    - ``"input"``: ``Σ_d (x[p, d] - x̄[d]) · ∂m/∂x[p, d]``, x the patches that the fusion reads and x̄ their mean: to first order,
      what m would lose were patch p like the mean one. Any model with a matching head; the whole text counts, not the phrase
      alone.

    Runs eagerly.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        images: ``float[B, H, W, 3]``, as the model sees them.
        phrases: B phrases.
        method: See above. Default ``"attention"``.
        sentences: B sentences that hold the phrases, read instead of the phrases alone. Default: the phrases.
        layers: Layers of the fusion to average, for attention and gradient; negative ones count from the last. Default all.
        heads: Heads to average. Default all.

    Returns:
        The `Localisation` of all.

    Raises:
        ConfigError: If the method is unknown or not for this model, or there is no such layer or head.
        DataError: If a phrase is empty or not in its sentence, or the numbers of pictures and phrases differ.

    Example:
        >>> from mmfusion.encoders import TextTransformer, VisionTransformer
        >>> from mmfusion.explain import localise
        >>> from mmfusion.models import ContrastiveHead, ImageTextModel
        >>> from mmfusion.text import WordPieceTokenizer
        >>> tokenizer = WordPieceTokenizer(vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "heart"], max_length=5)
        >>> model = ImageTextModel(
        ...     image_encoder=VisionTransformer(image_size=(16, 24), patch_size=8, dim=8, depth=1, num_heads=1),
        ...     text_encoder=TextTransformer(vocabulary_size=6, max_length=5, dim=8, depth=1, num_heads=1),
        ...     contrastive_head=ContrastiveHead(embedding_dim=4),
        ... )
        >>> found = localise(model, tokenizer, np.ones((1, 16, 24, 3), "float32"), ["red heart"], method="similarity")
        >>> found.heat.shape, round(float(found.heat.sum()), 4)
        ((1, 2, 3), 1.0)

    Source: Li et al., ALBEF, 2021 (arXiv:2107.07651), section 5.4; Selvaraju et al., Grad-CAM, 2017 (arXiv:1610.02391).
    """
    if method not in METHODS:
        raise ConfigError("unknown method", where="method", expected=" or ".join(METHODS), found=repr(method))
    if model.fusion is None and method in ("attention", "gradient"):
        expected = "a model with a fusion, or method similarity"
        raise ConfigError("no text looks at the image in this model", where="method", expected=expected, found=method)
    sentences = list(phrases) if sentences is None else list(sentences)
    if not len(phrases) == len(sentences) == len(images):
        found = f"{len(images)} pictures, {len(phrases)} phrases, {len(sentences)} sentences"
        raise DataError("each picture needs a phrase", expected="as many of each", found=found)
    # Here, since it imports TensorFlow, and naming this package should not.
    from mmfusion.explain.text_to_patches import gradient_of_match_by_attention, gradient_of_match_by_patches

    ids, mask = tokenizer(sentences)
    tokens = _strings(tokenizer, ids)
    wanted = _strings(tokenizer, tokenizer(list(phrases)).token_ids)
    places = np.stack([phrase_places(*pair) for pair in zip(tokens, wanted, strict=True)])
    score = _score(model, images, ids, mask)
    if method == "similarity":
        return Localisation(_normalised(_similarity(model, images, ids, mask)), score)
    if method == "input":
        return Localisation(_normalised(_on_grid(model, gradient_of_match_by_patches(model, images, ids, mask))), score)
    if method == "gradient":
        maps = _on_grid(model, gradient_of_match_by_attention(model, images, ids, mask))
    else:
        maps = np.asarray(model.attend(images, ids, mask))
    heat = [
        phrase_heat(one, place, special_places(row) if method == "attention" else None, layers=layers, heads=heads)
        for one, place, row in zip(maps, places, tokens, strict=True)
    ]
    return Localisation(np.stack(heat), score)


def phrase_heat(
    maps: npt.ArrayLike,
    places: npt.ArrayLike,
    background: npt.ArrayLike | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Floats:
    """From where each token looks to where the phrase is.

    Args:
        maps: ``float[layers, heads, T, rows, cols]``.
        places: ``bool[T]``, the tokens of the phrase.
        background: ``bool[T]``, tokens whose mean map is subtracted. Default: none.
        layers: Layers to average. Default all.
        heads: Heads to average. Default all.

    Returns:
        ``float32[rows, cols]``, not negative, summing to 1; even where nothing is left.

    Example:
        >>> maps = np.zeros((1, 1, 3, 1, 4), "float32")
        >>> maps[0, 0, 0] = 0.25  # [CLS] looks everywhere
        >>> maps[0, 0, 1, 0] = [0.75, 0.25, 0.0, 0.0]
        >>> phrase_heat(maps, [False, True, False], [True, False, False]).tolist()
        [[1.0, 0.0, 0.0, 0.0]]
    """
    looks = attention_maps(maps, layers=layers, heads=heads)
    places = np.asarray(places, bool)
    heat = looks[places].mean(axis=0)
    if background is not None and np.any(background):
        heat = heat - looks[np.asarray(background, bool)].mean(axis=0)
        # Where all tokens see the same, what is left is rounding.
        heat = np.where(heat > _ROUNDING * looks.max(), heat, 0.0)
    return _normalised(heat)


def phrase_places(tokens: Sequence[str], phrase: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Where in a sentence a phrase stands, the first time.

    Args:
        tokens: The sentence's T tokens, special ones among them.
        phrase: The phrase's tokens; special ones do not count.

    Returns:
        ``bool[T]``.

    Raises:
        DataError: If the phrase is empty or does not stand there.

    Example:
        >>> phrase_places(["[CLS]", "a", "red", "heart", "[SEP]"], ["[CLS]", "red", "heart", "[SEP]"]).tolist()
        [False, False, True, True, False]
    """
    wanted = [token for token in phrase if token not in SPECIAL_TOKENS]
    for start in range(len(tokens) - len(wanted) + 1):
        if wanted and list(tokens[start : start + len(wanted)]) == wanted:
            places = np.zeros(len(tokens), bool)
            places[start : start + len(wanted)] = True
            return places
    sentence = " ".join(token for token in tokens if token not in SPECIAL_TOKENS)
    raise DataError("the phrase is not there", where=sentence, expected="words of it", found=" ".join(wanted) or "no word")


def special_places(tokens: Sequence[str]) -> npt.NDArray[np.bool_]:
    """``bool[T]``, where [CLS] and [SEP] stand."""
    return np.isin(tokens, ["[CLS]", "[SEP]"])


def _strings(tokenizer: WordPieceTokenizer, ids: Any) -> list[list[str]]:
    return [[token.decode("utf-8", "replace") for token in row] for row in tokenizer.id_to_token(ids).numpy()]


def _normalised(heat: npt.ArrayLike) -> Floats:
    kept = np.maximum(np.asarray(heat, np.float64), 0.0)
    total = kept.sum(axis=(-2, -1), keepdims=True)
    even = np.full_like(kept, 1.0 / (kept.shape[-2] * kept.shape[-1]))
    return np.divide(kept, total, out=even, where=total > 0).astype(np.float32)


def _on_grid(model: ImageTextModel, patches: Floats) -> Floats:
    # What stands before the patches, a class token say, has no place in the picture.
    grid = model.image_encoder.grid
    return patches[..., -math.prod(grid) :].reshape(*patches.shape[:-1], *grid)


def _similarity(model: ImageTextModel, images: Any, ids: Any, mask: Any) -> Floats:
    head = model.head("contrastive")
    if model.contrastive_tokens != "encoder":
        raise ConfigError(
            f"this model embeds what its {model.contrastive_tokens} makes of the picture, not patches",
            where=model.name,
            fix="use another method",
        )
    patches = model.image_encoder(images, training=False)[:, -math.prod(model.image_encoder.grid) :]
    batch, count, width = (int(size) for size in patches.shape)
    each = np.asarray(head.embed_image(np.asarray(patches, np.float32).reshape(batch * count, 1, width)))
    text = np.asarray(model.encode_text(ids, mask, training=False))
    cosine = np.einsum("bpe,be->bp", each.reshape(batch, count, -1), text)
    return _on_grid(model, cosine - cosine.min(axis=1, keepdims=True))


def _score(model: ImageTextModel, images: Any, ids: Any, mask: Any) -> Floats:
    if model.matching_head is not None:
        logits = np.asarray(model.match(images, ids, mask, training=False), np.float64)
        return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    if model.contrastive_head is not None:
        encode: Callable[..., Any] = model.encode_text
        cosine = np.sum(np.asarray(model.encode_image(images, training=False)) * np.asarray(encode(ids, mask)), axis=-1)
        return ((1.0 + cosine) / 2.0).astype(np.float32)
    return np.full(len(images), np.nan, np.float32)
