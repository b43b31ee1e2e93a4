"""A recipe's words into a model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras

from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.fusion import STYLES, Fusion
from mmfusion.models.captioning_head import CaptioningHead
from mmfusion.models.contrastive_head import ContrastiveHead
from mmfusion.models.image_text_model import ImageTextModel
from mmfusion.models.matching_head import MatchingHead

if TYPE_CHECKING:
    from mmfusion.config import Recipe

# Where the temperature and the bias start, as their papers say (CLIP, section 2.5; SigLIP, section 3.2).
_CONTRASTIVE_START: dict[str, dict[str, Any]] = {
    "softmax": {"initial_temperature": 0.07},
    "sigmoid": {"initial_temperature": 0.1, "initial_bias": -10.0},
}


def build_model(
    recipe: Recipe,
    *,
    vocabulary_size: int,
    start_id: int,
    end_id: int,
    pad_id: int,
    forbidden_ids: Sequence[int] = (),
    dtype: str | keras.DTypePolicy = "float32",
) -> ImageTextModel:
    """Builds the model that a recipe describes, with fresh weights.

    Args:
        recipe: The recipe.
        vocabulary_size: Number of token ids of its tokenizer.
        start_id: Id of the token that starts a caption.
        end_id: Id of the token that ends it.
        pad_id: Id of the padding.
        forbidden_ids: Further ids that a caption never holds, such as [UNK]. Default none.
        dtype: Keras dtype policy of all parts, ``"mixed_bfloat16"`` say. Default ``"float32"``.

    Returns:
        The model, built.

    Example:
        >>> from mmfusion.config import recipe_from_dict
        >>> from mmfusion.models import build_model
        >>> recipe = recipe_from_dict({"name": "tiny", "data": {"source": "builtin"}})
        >>> build_model(recipe, vocabulary_size=100, start_id=2, end_id=3, pad_id=0).heads
        ('contrastive', 'matching', 'captioning')
    """
    image, text, fusion = recipe.model.image_encoder, recipe.model.text_encoder, recipe.fusion
    heads = recipe.model.heads
    contrastive = recipe.objective.contrastive
    loss = "softmax" if contrastive is None else contrastive.loss
    fused = "matching" in heads or "captioning" in heads
    return ImageTextModel(
        image_encoder=VisionTransformer(image_size=recipe.data.image_size, **image.options(), dtype=dtype, name="image_encoder"),
        text_encoder=TextTransformer(
            vocabulary_size=vocabulary_size,
            max_length=recipe.text.max_tokens,
            **text.options(),
            dtype=dtype,
            name="text_encoder",
        ),
        fusion=_fusion(fusion.style, fusion.options(), dim=text.dim, image_dim=image.dim, dtype=dtype, name="fusion")
        if fused
        else None,
        contrastive_head=ContrastiveHead(
            embedding_dim=recipe.model.embedding_dim, **_CONTRASTIVE_START[loss], dtype=dtype, name="contrastive_head"
        )
        if "contrastive" in heads
        else None,
        matching_head=MatchingHead(dtype=dtype, name="matching_head") if "matching" in heads else None,
        captioning_head=CaptioningHead(
            start_id=start_id, end_id=end_id, pad_id=pad_id, forbidden_ids=forbidden_ids, dtype=dtype, name="captioning_head"
        )
        if "captioning" in heads
        else None,
        name="image_text_model",
    )


def _fusion(style: str, options: dict[str, Any], **arguments: Any) -> Fusion:
    layer = STYLES[style]
    known = inspect.signature(layer).parameters
    return layer(**{name: value for name, value in options.items() if name in known}, **arguments)
