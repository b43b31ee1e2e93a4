"""How a model writes: token by token, with a cache, in graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from keras import KerasTensor, ops

from mmfusion.decoding import BeamOutput, DecodeOutput, beam_search, greedy
from mmfusion.encoders import TextCache
from mmfusion.errors import ConfigError
from mmfusion.fusion import FusionCache
from mmfusion.models.fusing import fusion_of

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel


class CaptionState(NamedTuple):
    """What decoding carries from token to token.

    Attributes:
        text: Cache of the text encoder.
        fusion: Cache of the fusion, with all that it needs of the image.
    """

    text: TextCache
    fusion: FusionCache


def write_captions(
    model: ImageTextModel,
    patches: KerasTensor,
    patch_mask: KerasTensor | None = None,
    *,
    beam_size: int = 1,
    length_penalty: float = 1.0,
    max_tokens: int | None = None,
    min_tokens: int = 0,
) -> DecodeOutput | BeamOutput:
    """Writes a caption for each image.

    Args:
        model: A model with a captioning head.
        patches: ``float[B, P, Di]``, as its fusion reads them.
        patch_mask: ``bool[B, P]``, ``True`` = real patch. Default: all real.
        beam_size: 1 decodes greedily, more searches with so many beams. Default 1.
        length_penalty: Exponent of the length by which a beam's score is divided. Default 1.
        max_tokens: Most tokens to write, the end token included. Default: what the text encoder holds.
        min_tokens: Fewest tokens before the end token. Default 0.

    Returns:
        `DecodeOutput` when `beam_size` is 1, else `BeamOutput`, best beam first.

    Raises:
        ConfigError: If the text encoder does not hold so many tokens.
    """
    head, fusion = model.head("captioning"), fusion_of(model)
    longest = model.text_encoder.max_length - 1
    if max_tokens is not None and not 1 <= max_tokens <= longest:
        raise ConfigError(
            "impossible length of a caption",
            where="max_tokens",
            expected=f"1 to {longest} (the text encoder holds {longest + 1} tokens with the start token)",
            found=max_tokens,
        )
    max_tokens = longest if max_tokens is None else max_tokens
    batch_size = ops.shape(patches)[0]
    state = CaptionState(
        model.text_encoder.init_cache(batch_size, max_tokens),
        fusion.init_cache(batch_size, max_tokens, patches, image_mask=patch_mask),
    )
    options = {
        "batch_size": batch_size,
        "start_id": head.start_id,
        "end_id": head.end_id,
        "pad_id": head.pad_id,
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "forbidden_ids": (head.start_id, *head.forbidden_ids),
    }
    if beam_size == 1:
        return greedy(model.caption_step, state, **options)
    return beam_search(model.caption_step, state, beam_size=beam_size, length_penalty=length_penalty, **options)
