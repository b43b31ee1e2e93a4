"""Entropy and rank of attention, head by head, on a fixed batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from mmfusion.models import ImageTextModel
from mmfusion.training.diagnostics.attention_capture import AttentionRecord, attention_layers, capture_attention
from mmfusion.training.diagnostics.attention_measures import attention_health


class AttentionProbe:
    """Says how spread out each head's attention is (entropy) and how much it tells its queries apart (rank).

    Entropy near 0 everywhere: attention has collapsed onto single keys, which often comes before a blow-up (answer: query/key
    normalisation, a logit cap). Entropy near 1 and rank near 0: a head averages and adds nothing (answer: fewer heads, or a
    higher rate). Of an `ImageTextModel` it looks at the encoders' self-attention and at the fusion's look from text at image,
    of any other Keras model at all attention layers.

    Args:
        model: The model, built.
        inputs: A fixed batch: what the model takes; of an `ImageTextModel` a dictionary with ``image``, ``token_ids`` and
            ``token_mask``, of clips ``image_mask``.

    Returns:
        Calling it returns ``{stream: {"layers": [names], "entropy": [[H numbers] a layer], "rank": …, "stable_rank": …}}``.

    Example:
        >>> import keras, numpy as np
        >>> from mmfusion.training.diagnostics import AttentionProbe
        >>> inputs = keras.Input((3, 8))
        >>> model = keras.Model(inputs, keras.layers.MultiHeadAttention(2, 4, name="look")(inputs, inputs))
        >>> report = AttentionProbe(model, np.ones((1, 3, 8), "float32"))()
        >>> report["attention"]["layers"], [round(x, 3) for x in report["attention"]["entropy"][0]]
        (['look'], [1.0, 1.0])
    """

    name = "attention"

    def __init__(self, model: keras.Model, inputs: Any) -> None:
        self.model = model
        self.inputs = inputs

    def __call__(self) -> dict[str, dict[str, list]]:
        """Measures; see the class."""
        if isinstance(self.model, ImageTextModel):
            return _report(_image_text_records(self.model, self.inputs))
        with capture_attention(attention_layers(self.model)) as records:
            self.model(self.inputs, training=False)
        return _report({"attention": records})


def _image_text_records(model: ImageTextModel, batch: dict[str, Any]) -> dict[str, list[AttentionRecord]]:
    ids, mask = batch["token_ids"], batch["token_mask"]
    image, text = attention_layers(model.image_encoder), attention_layers(model.text_encoder)
    with capture_attention(image) as image_records:
        patches, patch_mask = model.encode_patches(batch["image"], batch.get("image_mask"), training=False)
    options: dict[str, Any] = {"training": False, "patch_mask": patch_mask}
    with capture_attention(text) as text_records, capture_attention([model.fusion] if model.fusion else []) as fusion_records:
        # One reading of the text: the one that most of its heads share.
        if model.matching_head is not None:
            model.match_tokens(patches, model.text_encoder(ids, token_mask=mask, training=False), mask, **options)
        elif getattr(model, "masked_language_head", None) is not None:
            model.masked_language_logits(patches, ids, mask, **options)
        elif model.captioning_head is not None:
            model.caption_logits(patches, ids, mask, **options)
        else:
            model.encode_text(ids, mask, training=False)
    layers = [
        AttentionRecord(f"layer_{index}", record.scores[:, index], record.allowed, record.queries)
        for record in fusion_records
        for index in range(record.scores.shape[1])
    ]
    return {"image encoder": image_records, "text encoder": text_records, "fusion, text to image": layers}


def _report(streams: dict[str, list[AttentionRecord]]) -> dict[str, dict[str, list]]:
    report: dict[str, dict[str, list]] = {}
    for stream, records in streams.items():
        if not records:
            continue
        health = [attention_health(record.scores, record.allowed, record.queries) for record in records]
        measures = {
            name: [np.round(getattr(layer, name), 5).tolist() for layer in health] for name in ("entropy", "rank", "stable_rank")
        }
        report[stream] = {"layers": _short([record.name for record in records]), **measures}
    return report


def _short(names: list[str]) -> list[str]:
    """The names without what all begin with and all end with."""
    parts = [name.split("/") for name in names]
    while len(parts) > 1 and all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    while all(len(part) > 1 for part in parts) and len(parts) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return ["/".join(part[-2:] if len(parts) == 1 else part) for part in parts]
