"""Which parts of a model go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmfusion.errors import ConfigError

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel

#: All heads, in the order in which they are named.
HEADS = ("contrastive", "matching", "masked_language", "captioning")


def check_composition(model: ImageTextModel) -> None:
    """Refuses a model whose parts do not go together.

    Args:
        model: The model, with all its parts set.

    Raises:
        ConfigError: If no head is given, a head lacks its fusion, the fusion cannot be causal and the model captions, or it does
            not inform the text and a head writes or guesses tokens.
    """
    heads, fusion = model.heads, model.fusion
    if not heads:
        raise ConfigError("a model needs at least one head", where=model.name, expected="a head", found="none")
    for option, words in (("contrastive_tokens", ("encoder", "fusion")), ("matching_tokens", ("text", "image", "both"))):
        if getattr(model, option) not in words:
            expected, found = " or ".join(words), repr(getattr(model, option))
            raise ConfigError(f"unknown {option}", where=model.name, expected=expected, found=found)
    if model.image_pooling is not None and model.image_pooling.num_queries < 2:
        raise ConfigError(
            "one query leaves a fusion no tokens", where=f"{model.name}: image_pooling", expected="num_queries of at least 2",
            found=model.image_pooling.num_queries,
        )  # fmt: skip
    if fusion is None:
        reading = [name for name in heads if name != "contrastive" or model.contrastive_tokens == "fusion"]
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
