"""How a model's fusion is asked: what it reads of the image, what is dropped in training, where it looked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.fusion import Fusion, FusionOutput

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel


def fusion_of(model: ImageTextModel) -> Fusion:
    """The model's fusion.

    Raises:
        ConfigError: If it has none.
    """
    if model.fusion is None:
        raise ConfigError("this model has no fusion", where=model.name, fix="build it with fusion=...")
    return model.fusion


def num_leading_tokens(image_encoder: Any) -> int:
    """How many tokens an image encoder gives before its patches: class tokens and registers, which have no place on the grid."""
    return getattr(image_encoder, "num_leading_tokens", 0)


def image_read(
    model: ImageTextModel, patches: KerasTensor, patch_mask: KerasTensor | None = None, training: bool | None = False
) -> tuple[KerasTensor, KerasTensor | None]:
    """The image as the fusion reads it, and its mask: its tokens ``float[B, P, Di]``, or what is pooled of them (all real)."""
    if model.image_pooling is None:
        return patches, patch_mask
    return model.image_pooling(patches, patch_mask, training=training)[:, model.contrastive_queries :], None


def fuse(
    model: ImageTextModel,
    text: KerasTensor,
    patches: KerasTensor,
    token_mask: KerasTensor | None,
    *,
    patch_mask: KerasTensor | None = None,
    causal: bool = False,
    return_scores: bool = False,
    training: bool | None = None,
) -> tuple[FusionOutput, KerasTensor | None]:
    """Joins encoded streams.

    Args:
        model: A model with a fusion.
        text: ``float[B, T, D]``.
        patches: ``float[B, P, Di]``.
        token_mask: ``bool[B, T]``, ``True`` = real token, or None.
        patch_mask: ``bool[B, P]``, ``True`` = real patch. Default: all real.
        causal: Whether a text token sees only the text up to itself. Default False.
        return_scores: Whether to return where each token looked, ``float32[B, layers, heads, T, P]``. Default False.
        training: Whether dropout is active.

    Returns:
        The `FusionOutput`, and which tokens of its image are real, ``bool[B, N]``, or None if all are.
    """
    fusion, image_mask, pooled = fusion_of(model), None, None
    if model.image_pooling is not None and return_scores:
        image, pooled, _ = model.image_pooling(patches, patch_mask, return_scores=True, training=training)
        image, pooled = image[:, model.contrastive_queries :], pooled[:, :, model.contrastive_queries :]
    else:
        image, image_mask = image_read(model, patches, patch_mask, training)
    if model.modality_dropout is not None:
        token_mask, image_mask = model.modality_dropout(
            text, image, text_mask=token_mask, image_mask=image_mask, training=training
        )
    output = fusion(
        text,
        image,
        text_mask=token_mask,
        image_mask=image_mask,
        causal=causal,
        return_scores=return_scores,
        training=training,
    )
    if pooled is not None:
        # From words to queries to patches. The heads of the pooling are no heads of the fusion: their mean.
        output = output._replace(scores=ops.matmul(output.scores, ops.mean(pooled, axis=1)[:, None, None]))
    return output, fusion.image_tokens_mask(image_mask)
