"""What a model's contrastive head reads of an image, and of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import KerasTensor

from mmfusion.models.fusing import fusion_of, image_read

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel

#: What can be read of each, by the word that says so.
IMAGE_TOKENS = ("encoder", "pooling", "fusion")
TEXT_TOKENS = ("encoder", "class_token", "fusion")


def contrasted_image(
    model: ImageTextModel, patches: KerasTensor, patch_mask: KerasTensor | None, training: bool | None
) -> tuple[KerasTensor, KerasTensor | None]:
    """The image's tokens for the contrastive head, ``float[B, N, D']``, and which are real, ``bool[B, N]``, or None if all are.

    Args:
        model: The model, whose ``contrastive_tokens`` says what they are.
        patches: ``float[B, C + P, Di]``, as its image encoder gives them.
        patch_mask: ``bool[B, C + P]``, ``True`` = real, or None.
        training: Whether dropout is active.
    """
    if model.contrastive_tokens == "encoder":
        return patches, patch_mask
    if model.contrastive_tokens == "pooling":
        pooling: Any = model.image_pooling
        pooled = pooling(patches, patch_mask, training=training)
        return pooled[:, : model.contrastive_queries] if model.contrastive_queries else pooled, None
    image, mask = image_read(model, patches, patch_mask, training)
    return fusion_of(model).image_tokens(image, image_mask=mask, training=training), fusion_of(model).image_tokens_mask(mask)


def contrasted_text(
    model: ImageTextModel,
    token_ids: KerasTensor,
    token_mask: KerasTensor | None,
    training: bool | None,
    text: KerasTensor | None = None,
) -> tuple[KerasTensor, KerasTensor | None]:
    """The text's tokens for the contrastive head, ``float[B, N, D]``, and which are real, ``bool[B, N]``, or None if all are.

    Args:
        model: The model, whose ``contrastive_text`` says what they are.
        token_ids: ``int[B, T]``.
        token_mask: ``bool[B, T]``, ``True`` = real token, or None.
        training: Whether dropout is active.
        text: The text as the encoder read it both ways, which is used where it can be.
    """
    reading: dict[str, Any] = {"causal": model.causal_text, "training": training}
    if model.contrastive_text == "class_token":
        return model.text_encoder.class_token_of(token_ids, token_mask, **reading), None
    if text is None or model.causal_text:
        text = model.text_encoder(token_ids, token_mask=token_mask, **reading)
    if model.contrastive_text == "fusion":
        text = fusion_of(model).text_tokens(text, token_mask, **reading)
    return text, token_mask
