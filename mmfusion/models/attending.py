"""Where a model's words look, shaped for a person."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.fusion.scores import renormalized
from mmfusion.models.fusing import fuse, num_leading_tokens

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel


def attention_of_words(
    model: ImageTextModel,
    patches: KerasTensor,
    token_ids: KerasTensor,
    token_mask: KerasTensor | None,
    patch_mask: KerasTensor | None,
    causal: bool | None,
) -> KerasTensor:
    """As `ImageTextModel.attend`, from what its image encoder gives.

    Args:
        model: A model with a fusion.
        patches: ``float[B, C + P, Di]``, the encoder's leading tokens and its patches.
        token_ids: ``int[B, T]``.
        token_mask: ``bool[B, T]``, ``True`` = real token, or None.
        patch_mask: ``bool[B, C + P]``, ``True`` = real, or None.
        causal: Whether the text is read left to right; None decides by the heads.

    Returns:
        ``float[B, layers, heads, T, rows, cols]``, each map summing to 1. What a word gives to leading tokens, which have no
        place, is left out, and the rest scaled.

    Raises:
        ConfigError: If the image encoder gives more than a picture's tokens.
    """
    if causal is None:
        causal = model.captioning_head is not None and model.matching_head is None and model.masked_language_head is None
    leading, grid = num_leading_tokens(model.image_encoder), model.image_encoder.grid
    if patches.shape[1] not in (None, leading + math.prod(grid)):
        raise ConfigError(
            "words look at more than a picture here, which has no map",
            where=model.name,
            expected=f"{leading + math.prod(grid)} tokens, a patch each" + (f" but {leading} leading" if leading else ""),
            found=f"{patches.shape[1]} from {type(model.image_encoder).__name__}",
            fix="ask a model that reads pictures alone",
        )
    text = model.text_encoder(token_ids, token_mask=token_mask, causal=causal, training=False)
    options: dict[str, Any] = {"causal": causal, "return_scores": True, "training": False}
    fused, _ = fuse(model, text, patches, token_mask, patch_mask=patch_mask, **options)
    scores: Any = fused.scores
    if leading:
        scores = renormalized(scores[..., leading:])
    return ops.reshape(scores, (*ops.shape(scores)[:4], *grid))
