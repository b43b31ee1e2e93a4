"""Small real objects that many tests use."""

from __future__ import annotations

import keras
import numpy as np

from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.fusion import CrossFusion
from mmfusion.models import CaptioningHead, ContrastiveHead, ImageTextModel, MaskedLanguageHead, MatchingHead

VOCABULARY_SIZE, MAX_LENGTH, IMAGE_SIZE = 30, 7, (16, 24)


def tiny_model(
    dtype: str = "float32", heads: tuple[str, ...] = ("contrastive", "matching", "captioning"), **options
) -> ImageTextModel:
    """A model of two blocks a part, with three heads and cross fusion unless told otherwise."""
    dropout = options.pop("dropout", 0.0)
    parts = {
        "contrastive_head": ContrastiveHead(embedding_dim=8, dtype=dtype, name="contrastive_head"),
        "matching_head": MatchingHead(dtype=dtype, name="matching_head"),
        "masked_language_head": MaskedLanguageHead(mask_id=4, special_ids=(0, 1, 2, 3), dtype=dtype, name="masked_language_head"),
        "captioning_head": CaptioningHead(start_id=2, end_id=3, dtype=dtype, name="captioning_head"),
    }
    return ImageTextModel(
        text_encoder=TextTransformer(
            vocabulary_size=VOCABULARY_SIZE, max_length=MAX_LENGTH, dim=12, depth=2, num_heads=3, dropout=dropout,
            dtype=dtype, name="text_encoder",
        ),
        **{
            "image_encoder": VisionTransformer(
                image_size=IMAGE_SIZE, patch_size=8, dim=16, depth=2, num_heads=2, dropout=dropout, dtype=dtype,
                name="image_encoder",
            ),
            "fusion": CrossFusion(dim=12, image_dim=16, depth=2, num_heads=2, dropout=dropout, dtype=dtype, name="fusion"),
            **{name: head for name, head in parts.items() if name.removesuffix("_head") in heads},
            **options,
        },
    )  # fmt: skip


def tiny_batch(size: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch with texts of different lengths, and two captions of one image among them."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, MAX_LENGTH + 1, size)
    mask = np.arange(MAX_LENGTH) < lengths[:, None]
    token_ids = np.where(mask, random.integers(4, VOCABULARY_SIZE, (size, MAX_LENGTH)), 0)
    token_ids[:, 0] = 2
    token_ids[np.arange(size), lengths - 1] = 3
    image_id = np.arange(size)
    if size > 2:
        image_id[1] = image_id[0]
    return {
        "image": random.normal(size=(size, *IMAGE_SIZE, 3)).astype("float32"),
        "token_ids": token_ids.astype("int32"),
        "token_mask": mask,
        "image_id": image_id.astype("int32"),
    }


def randomized(model: keras.Model, seed: int = 0, scale: float = 0.2) -> keras.Model:
    """Gives every weight a random value of its own, the same each time; vectors keep their initial zeros and ones below it."""
    random = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        start = weight.numpy() if len(weight.shape) < 2 else 0.0
        weight.assign(start + scale * random.normal(size=weight.shape).astype("float32"))
    return model
