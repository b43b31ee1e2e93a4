"""A recipe's words into a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import keras

from mmfusion.encoders import MultiImageEncoder, SourceImageEncoder, TextTransformer, VideoTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import STYLES
from mmfusion.layers import AttentionPooling, ModalityDropout
from mmfusion.models.captioning_head import CaptioningHead
from mmfusion.models.contrastive_head import ContrastiveHead
from mmfusion.models.image_text_model import ImageTextModel
from mmfusion.models.masked_language_head import MaskedLanguageHead
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
    mask_id: int | None = None,
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
        mask_id: Id of the token that hides another; the masked language head needs it. Default none.
        forbidden_ids: Further ids that a caption never holds, such as [UNK]. Default none.
        dtype: Keras dtype policy of all parts, ``"mixed_bfloat16"`` say. Default ``"float32"``.

    Returns:
        The model, built.

    Raises:
        ConfigError: If the parts do not go together, see `ImageTextModel`.

    Example:
        >>> from mmfusion.config import recipe_from_dict
        >>> from mmfusion.models import build_model
        >>> recipe = recipe_from_dict({"name": "tiny", "data": {"source": "builtin"}})
        >>> build_model(recipe, vocabulary_size=100, start_id=2, end_id=3, pad_id=0).heads
        ('contrastive', 'matching', 'captioning')
    """
    model, image, text, fusion = recipe.model, recipe.model.image_encoder, recipe.model.text_encoder, recipe.fusion
    contrastive = recipe.objective.contrastive
    parts: dict[str, Any] = {}
    if model.fuses:
        parts["fusion"] = STYLES[fusion.style](dim=text.dim, image_dim=image.dim, **fusion.options(), dtype=dtype, name="fusion")
        if fusion.modality_dropout:
            parts["modality_dropout"] = ModalityDropout(rate=fusion.modality_dropout, seed=recipe.seed, name="modality_dropout")
        if model.image_queries is not None:
            parts["image_pooling"] = AttentionPooling(
                num_heads=image.num_heads, num_queries=model.image_queries, norm=True, dtype=dtype, name="image_pooling"
            )
    special = {start_id, end_id, pad_id, *forbidden_ids}
    if "masked_language" in model.heads and mask_id is None:
        raise ConfigError(
            "the vocabulary has no [MASK]", where="model.heads", expected="a vocabulary with it", found="masked_language",
            fix="leave masked_language out, or train a vocabulary",
        )  # fmt: skip
    heads: dict[str, Callable[..., keras.layers.Layer]] = {
        "contrastive": partial(
            ContrastiveHead,
            embedding_dim=model.embedding_dim,
            image_pooling=model.image_pooling,
            text_pooling=model.text_pooling,
            pooling_mlp_ratio=model.pooling_mlp_ratio,
            image_heads=fusion.num_heads if model.contrastive_tokens == "fusion" else image.num_heads,
            text_heads=text.num_heads,
            **_CONTRASTIVE_START["softmax" if contrastive is None else contrastive.loss],
        ),
        "matching": MatchingHead,
        "masked_language": partial(MaskedLanguageHead, mask_id=mask_id or 0, special_ids=sorted(special - {mask_id})),
        "captioning": partial(CaptioningHead, start_id=start_id, end_id=end_id, pad_id=pad_id, forbidden_ids=forbidden_ids),
    }
    return ImageTextModel(
        image_encoder=_image_encoder(recipe, vocabulary_size, dtype),
        text_encoder=TextTransformer(
            vocabulary_size=vocabulary_size,
            max_length=recipe.text.max_tokens,
            **text.options(),
            dtype=dtype,
            name="text_encoder",
        ),
        **parts,
        **{f"{head}_head": heads[head](dtype=dtype, name=f"{head}_head") for head in model.heads},
        causal_text=model.causal_text,
        contrastive_tokens=model.contrastive_tokens,
        matching_tokens=model.matching_tokens,
        name="image_text_model",
    )


def model_from_preset(
    name: str,
    *,
    vocabulary_size: int,
    image_size: int | Sequence[int] = 224,
    size: str = "small",
    start_id: int = 2,
    end_id: int = 3,
    pad_id: int = 0,
    mask_id: int | None = 4,
    forbidden_ids: Sequence[int] = (1,),
    dtype: str | keras.DTypePolicy = "float32",
    **changes: Any,
) -> ImageTextModel:
    """Builds a published composition, with fresh weights, without a recipe. See `ImageTextModel.from_preset`."""
    from mmfusion.config import PRESETS, SIZES, recipe_from_dict
    from mmfusion.config.overrides import merge
    from mmfusion.config.preset_merging import check_words, replaced

    for what, word, known in (("preset", name, PRESETS), ("size", size, SIZES)):
        if word not in known:
            raise ConfigError(f"unknown {what}", where=what, expected=", ".join(known), found=repr(word))
    data = {"data": {"image_size": image_size if isinstance(image_size, int) else list(image_size)}}
    check_words(name, changes, f"preset {name}")
    content = merge(replaced(SIZES[size], name), data)
    return build_model(
        recipe_from_dict(merge(content, changes), where=f"preset {name}"),
        vocabulary_size=vocabulary_size,
        start_id=start_id,
        end_id=end_id,
        pad_id=pad_id,
        mask_id=mask_id,
        forbidden_ids=forbidden_ids,
        dtype=dtype,
    )


def _image_encoder(recipe: Recipe, vocabulary_size: int, dtype: str | keras.DTypePolicy) -> keras.layers.Layer:
    translation, text = recipe.translation, recipe.model.text_encoder
    if translation is None:
        return _picture_encoder(recipe, dtype, "image_encoder")
    width: dict[str, Any] = {"dim": text.dim, "image_dim": recipe.model.image_encoder.dim}
    return SourceImageEncoder(
        image_encoder=_picture_encoder(recipe, dtype, "picture_encoder"),
        text_encoder=TextTransformer(
            vocabulary_size=vocabulary_size,
            max_length=recipe.text.max_tokens,
            **{**text.options(), "depth": translation.depth},
            dtype=dtype,
            name="source_encoder",
        ),
        fusion=STYLES[translation.fusion.style](**width, **translation.fusion.options(), dtype=dtype, name="source_fusion"),
        dtype=dtype,
        name="image_encoder",
    )


def _picture_encoder(recipe: Recipe, dtype: str | keras.DTypePolicy, name: str) -> keras.layers.Layer:
    data, image = recipe.data, recipe.model.image_encoder
    options = {"image_size": data.image_size, **image.options(), "dtype": dtype}
    if image.kind == "video":
        options.pop("positions")
        return VideoTransformer(**options, num_frames=data.frames, **image.clip_options(), name=name)
    if image.kind == "vit":
        return VisionTransformer(**options, name=name)
    return MultiImageEncoder(
        encoder=VisionTransformer(**options, name="each_image"),
        max_images=data.frames,
        num_heads=image.num_heads,
        mlp_ratio=image.mlp_ratio,
        dropout=image.dropout,
        kernel=image.kernel,
        **image.clip_options(),
        dtype=dtype,
        name=name,
    )
