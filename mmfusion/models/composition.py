"""Which parts of a model go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmfusion.errors import ConfigError
from mmfusion.models.embedding import IMAGE_TOKENS, TEXT_TOKENS

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel

#: All heads, in the order in which they are named.
HEADS = ("contrastive", "matching", "masked_language", "captioning")


def check_composition(model: ImageTextModel) -> None:
    """Refuses a model whose parts do not go together.

    Args:
        model: The model, with all its parts set.

    Raises:
        ConfigError: If no head is given, the contrastive head is to read what there is not, a head lacks its fusion, the fusion
            cannot be causal and the model captions, or it does not inform the text and a head writes or guesses tokens.
    """
    heads, fusion = model.heads, model.fusion
    if not heads:
        raise ConfigError("a model needs at least one head", where=model.name, expected="a head", found="none")
    for option, words in (
        ("contrastive_tokens", IMAGE_TOKENS),
        ("contrastive_text", TEXT_TOKENS),
        ("matching_tokens", ("text", "image", "both")),
    ):
        if getattr(model, option) not in words:
            expected, found = " or ".join(words), repr(getattr(model, option))
            raise ConfigError(f"unknown {option}", where=model.name, expected=expected, found=found)
    if model.image_pooling is not None and model.image_pooling.num_queries < 2:
        raise ConfigError(
            "one query leaves a fusion no tokens", where=f"{model.name}: image_pooling", expected="num_queries of at least 2",
            found=model.image_pooling.num_queries,
        )  # fmt: skip
    _check_contrastive_reading(model)
    if fusion is None:
        by_fusion = "fusion" in (model.contrastive_tokens, model.contrastive_text)
        reading = [name for name in heads if name != "contrastive" or by_fusion]
        if reading:
            raise ConfigError(
                f"the {' and '.join(reading)} head{'s' * (len(reading) > 1)} need{'s' * (len(reading) == 1)} a fusion".replace(
                    "_", " "
                ),
                where=model.name,
                expected="a fusion",
                found="none",
                fix="pass fusion=CrossFusion(...), or leave these heads out",
            )
        return
    if model.captioning_head is not None and not fusion.supports_causal:
        raise ConfigError(
            "this fusion cannot be causal, so the model cannot caption",
            where=type(fusion).__name__,
            fix="choose another style or direction, or leave captioning out",
        )
    if model.matching_head is not None and model.matching_tokens == "text" and not fusion.informs_text:
        raise ConfigError(
            "this fusion does not inform the text, so the matching head would not see the image",
            where=type(fusion).__name__,
            fix="pass matching_tokens='image', or choose another style, direction or depth",
        )
    writing = [name.replace("_", " ") for name in heads if name in ("masked_language", "captioning")]
    if writing and not fusion.informs_text:
        raise ConfigError(
            f"this fusion does not inform the text, so the {' and '.join(writing)} head would not see the image",
            where=type(fusion).__name__,
            fix="choose another style, direction or depth, or leave the head out",
        )


def _check_contrastive_reading(model: ImageTextModel) -> None:
    pooled, queries, pooling = model.contrastive_tokens == "pooling", model.contrastive_queries, model.image_pooling
    if pooled and pooling is None:
        fix = "pass image_pooling=AttentionPooling(...)"
        raise ConfigError('contrastive_tokens="pooling" without a pooling', where=model.name, expected="image_pooling", fix=fix)
    most = pooling.num_queries - 1 if pooled and pooling is not None else 0
    if not 0 <= queries <= most:
        raise ConfigError(
            "impossible contrastive_queries", where=model.name, expected=f"0 to {most}", found=queries,
            fix=None if pooled else 'pass contrastive_tokens="pooling"',
        )  # fmt: skip
    if model.contrastive_text == "class_token" and getattr(model.text_encoder, "class_token", None) is None:
        fix = 'build the text encoder with class_token="text"'
        raise ConfigError("the contrastive head reads a class token that there is not", where=model.name, fix=fix)
    if model.contrastive_text == "fusion" and model.fusion is not None and not model.fusion.reads_text_alone:
        raise ConfigError(
            "this fusion cannot read a text without an image", where=type(model.fusion).__name__,
            fix="choose style cross with direction text, or contrastive_text='encoder'",
        )  # fmt: skip
