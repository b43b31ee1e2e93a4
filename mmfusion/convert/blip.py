"""transformers' BLIP: captioning, and retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mmfusion.convert.filling import fill
from mmfusion.convert.reading import activation, check_fixed, known_section, ratio_of
from mmfusion.convert.state import Array, State, read_config, read_state
from mmfusion.convert.tensors import (
    Table,
    attention,
    dense,
    difference,
    feed_forward,
    fused_attention,
    norm,
    patches,
    placed_token,
    reshaped,
    rows,
)
from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.fusion import CrossFusion
from mmfusion.models import CaptioningHead, ContrastiveHead, ImageTextModel, MatchingHead

_FAMILY = "BLIP"
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 384,
    "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_TEXT = {
    "vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 8,
    "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "bos_token_id": 30522, "pad_token_id": 0,
    "sep_token_id": 102, "is_decoder": True, "position_embedding_type": "absolute",
}  # fmt: skip
_FIXED = {"is_decoder": (True,), "position_embedding_type": ("absolute",)}
# Places counted, which older checkpoints hold.
_IGNORED = (r"embeddings\.position_ids$",)


def convert_blip_captioning(
    state: State | str | Path, config: Mapping[str, Any] | str | Path, *, dtype: str | keras.DTypePolicy = "float32"
) -> ImageTextModel:
    """Transformers' ``BlipForConditionalGeneration`` as an `ImageTextModel` that captions, the same numbers.

    ``generate(max_new_tokens=n)`` is ``caption(max_tokens=n)``, whose tokens come without the start token. A caption never holds
    the start or the padding token, which transformers does not forbid.

    Args:
        state: ``model.state_dict()``, or a ``.safetensors`` file of it.
        config: ``model.config.to_dict()``, or the ``config.json`` beside the checkpoint.
        dtype: Keras dtype policy of the model. Default ``"float32"``.

    Returns:
        The model, with a captioning head. Its text encoder is the embedding, its fusion the rest of the decoder.

    Raises:
        ConfigError: If the configuration has an option that is not converted.
        CheckpointError: If a tensor is missing, left over or of another shape.

    Source: Li et al., BLIP, 2022 (arXiv:2201.12086); https://github.com/huggingface/transformers, ``modeling_blip.py``.
    """
    config, tensors = read_config(config), read_state(state)
    text = _section(config, "text_config", _TEXT)
    check_fixed(text, {"hidden_act": ("gelu",)}, f"{_FAMILY}: text_config")
    tied, output_bias, tensors = _output_layer(tensors)
    head = "captioning_head.output_dense"
    model = ImageTextModel(
        **_streams(config, dtype),
        captioning_head=CaptioningHead(
            start_id=text["bos_token_id"],
            end_id=text["sep_token_id"],
            pad_id=text["pad_token_id"],
            norm_epsilon=text["layer_norm_eps"],
            vocabulary_size=None if tied else text["vocab_size"],
            dtype=dtype,
            name="captioning_head",
        ),
        name="blip_captioning",
    )
    table = {
        **_names("text_decoder.bert", config),
        "captioning_head.transform": dense(f"{_PREDICTIONS}.transform.dense"),
        "captioning_head.norm": norm(f"{_PREDICTIONS}.transform.LayerNorm"),
        **(
            {"text_encoder.token_embedding.output_bias": output_bias}
            if tied
            else {head: {**dense(f"{_PREDICTIONS}.decoder"), "bias": output_bias}}
        ),
    }
    kept = () if tied else ("text_encoder.token_embedding.output_bias",)
    fill(model, table, tensors, family=f"{_FAMILY} captioning", kept=kept, ignored=_IGNORED)
    return model


def convert_blip_retrieval(
    state: State | str | Path, config: Mapping[str, Any] | str | Path, *, dtype: str | keras.DTypePolicy = "float32"
) -> ImageTextModel:
    """Transformers' ``BlipForImageTextRetrieval`` as an `ImageTextModel`, the same numbers.

    ``match`` gives the difference of their two logits, whose sigmoid is their softmax; the product of ``encode_image`` and
    ``encode_text`` is their score without ``use_itm_head``. Their checkpoints hold no temperature: ours stays at its start.

    Args:
        state: ``model.state_dict()``, or a ``.safetensors`` file of it.
        config: ``model.config.to_dict()``, or the ``config.json`` beside the checkpoint.
        dtype: Keras dtype policy of the model. Default ``"float32"``.

    Returns:
        The model, with a contrastive and a matching head. Its text encoder is the embedding, its fusion the rest of the stack,
        which the contrastive head reads without an image.

    Raises:
        ConfigError: If the configuration has an option that is not converted.
        CheckpointError: If a tensor is missing, left over or of another shape.

    Source: Li et al., BLIP, 2022 (arXiv:2201.12086); https://github.com/huggingface/transformers, ``modeling_blip.py``.
    """
    config, tensors = read_config(config), read_state(state)
    model = ImageTextModel(
        **_streams(config, dtype),
        contrastive_head=ContrastiveHead(
            embedding_dim=config.get("image_text_hidden_size", 256),
            image_pooling="first",
            text_pooling="first",
            projection_bias=True,
            dtype=dtype,
            name="contrastive_head",
        ),
        matching_head=MatchingHead(transform=False, dtype=dtype, name="matching_head"),
        contrastive_text="fusion",
        name="blip_retrieval",
    )
    table = {
        **_names("text_encoder", config),
        "contrastive_head.image_projection": dense("vision_proj"),
        "contrastive_head.text_projection": dense("text_proj"),
        "matching_head.output_dense": {
            "kernel": reshaped(difference("itm_head.weight"), (-1, 1)),
            "bias": reshaped(difference("itm_head.bias"), (1,)),
        },
    }
    kept = ("text_encoder.token_embedding.output_bias", "contrastive_head.log_scale", "contrastive_head.bias")
    fill(model, table, tensors, family=f"{_FAMILY} retrieval", kept=kept, ignored=_IGNORED)
    return model


_PREDICTIONS = "text_decoder.cls.predictions"


def _output_layer(tensors: dict[str, Array]) -> tuple[bool, str, dict[str, Array]]:
    """Whether the output layer is the embedding, the name of its bias, and the tensors without what stands there twice."""
    tensors = dict(tensors)
    decoder, embedding = (tensors.get(name) for name in (f"{_PREDICTIONS}.decoder.weight", _EMBEDDING))
    tied = decoder is None or (embedding is not None and np.array_equal(decoder, embedding))
    if tied:
        tensors.pop(f"{_PREDICTIONS}.decoder.weight", None)
    # Both names are of one parameter; what PyTorch adds is the layer's.
    biases = [name for name in (f"{_PREDICTIONS}.decoder.bias", f"{_PREDICTIONS}.bias") if name in tensors]
    for name in biases[1:]:
        del tensors[name]
    return tied, biases[0] if biases else f"{_PREDICTIONS}.bias", tensors


_EMBEDDING = "text_decoder.bert.embeddings.word_embeddings.weight"


def _names(text: str, config: Mapping[str, Any]) -> Table:
    """Ours of theirs, without the heads; `text` is their name of the text stack."""
    vision = "vision_model"
    vision_layers, text_layers = (
        _section(config, name, defaults)["num_hidden_layers"]
        for name, defaults in (("vision_config", _VISION), ("text_config", _TEXT))
    )
    return {
        "image_encoder": {
            "patch_embedding.projection": patches(f"{vision}.embeddings.patch_embedding"),
            "patch_embedding.position": rows(f"{vision}.embeddings.position_embedding", 1, None),
            "leading_tokens": reshaped(
                placed_token(f"{vision}.embeddings.class_embedding", f"{vision}.embeddings.position_embedding", 0), (1, -1)
            ),
            **{f"blocks.{i}": _image_block(f"{vision}.encoder.layers.{i}") for i in range(vision_layers)},
            "norm": norm(f"{vision}.post_layernorm"),
        },
        "text_encoder": {
            "token_embedding.embedding": f"{text}.embeddings.word_embeddings.weight",
            "token_embedding.position": f"{text}.embeddings.position_embeddings.weight",
            "norm": norm(f"{text}.embeddings.LayerNorm"),
        },
        "fusion": {f"blocks.{i}": _text_layer(f"{text}.encoder.layer.{i}") for i in range(text_layers)},
    }


def _image_block(name: str) -> Table:
    return {
        "attention_norm": norm(f"{name}.layer_norm1"),
        "attention": fused_attention(
            f"{name}.self_attn.qkv.weight", f"{name}.self_attn.qkv.bias", f"{name}.self_attn.projection"
        ),
        "feed_forward_norm": norm(f"{name}.layer_norm2"),
        "feed_forward": feed_forward(f"{name}.mlp.fc1", f"{name}.mlp.fc2"),
    }


def _text_layer(name: str) -> Table:
    return {
        "attention": _text_attention(f"{name}.attention"),
        "attention_norm": norm(f"{name}.attention.output.LayerNorm"),
        "cross": _text_attention(f"{name}.crossattention"),
        "cross_norm": norm(f"{name}.crossattention.output.LayerNorm"),
        "feed_forward": feed_forward(f"{name}.intermediate.dense", f"{name}.output.dense"),
        "feed_forward_norm": norm(f"{name}.output.LayerNorm"),
    }


def _text_attention(name: str) -> Table:
    return attention(f"{name}.self.query", f"{name}.self.key", f"{name}.self.value", f"{name}.output.dense")


def _section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    section = known_section(config, name, defaults, _FAMILY)
    check_fixed(section, _FIXED, f"{_FAMILY}: {name}")
    return section


def _streams(config: Mapping[str, Any], dtype: str | keras.DTypePolicy) -> dict[str, Any]:
    """Image encoder, text embedding, and the fusion that is the text stack."""
    vision, text = _section(config, "vision_config", _VISION), _section(config, "text_config", _TEXT)
    return {
        "image_encoder": VisionTransformer(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            dim=vision["hidden_size"],
            depth=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
            mlp_ratio=ratio_of(vision["intermediate_size"], vision["hidden_size"]),
            num_leading_tokens=1,
            norm_epsilon=vision["layer_norm_eps"],
            block_options={"activation": activation(vision["hidden_act"], f"{_FAMILY}: vision_config")},
            dtype=dtype,
            name="image_encoder",
        ),
        "text_encoder": TextTransformer(
            vocabulary_size=text["vocab_size"],
            max_length=text["max_position_embeddings"],
            dim=text["hidden_size"],
            depth=0,
            norm_epsilon=text["layer_norm_eps"],
            dtype=dtype,
            name="text_encoder",
        ),
        "fusion": CrossFusion(
            dim=text["hidden_size"],
            image_dim=vision["hidden_size"],
            depth=text["num_hidden_layers"],
            num_heads=text["num_attention_heads"],
            mlp_ratio=ratio_of(text["intermediate_size"], text["hidden_size"]),
            norm_first=False,
            norm_epsilon=text["layer_norm_eps"],
            activation=activation(text["hidden_act"], f"{_FAMILY}: text_config"),
            dtype=dtype,
            name="fusion",
        ),
    }
