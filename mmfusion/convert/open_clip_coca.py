"""open_clip's CoCa."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from mmfusion.convert.filling import fill
from mmfusion.convert.reading import check_fixed, known_section
from mmfusion.convert.state import State, read_config, read_state
from mmfusion.convert.tensors import (
    Table,
    as_it_is,
    feed_forward,
    fused_attention,
    norm,
    patches,
    placed_token,
    reshaped,
    rows,
    transposed,
)
from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import CrossFusion
from mmfusion.layers import AttentionPooling
from mmfusion.models import CaptioningHead, ContrastiveHead, ImageTextModel

_FAMILY = "open_clip CoCa"
# PyTorch's own, which open_clip leaves as it is.
_EPSILON = 1e-5
_VISION = {
    "image_size": 224, "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "ls_init_value": None,
    "attn_pooler_queries": 256, "attn_pooler_heads": 8, "no_ln_pre": False,
}  # fmt: skip
_TEXT = {
    "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0, "ls_init_value": None,
    "pad_id": 0, "correct_cls_mask": False,
}  # fmt: skip
_DECODER = {**_TEXT, "mlp_ratio": 4.0}
_OF_BLOCKS: dict[str, tuple[Any, ...]] = {
    "act_kwargs": (None,), "norm_kwargs": (None,), "block_type": (None, "default"), "qk_norm": (False,),
    "scaled_cosine_attn": (False,), "scale_heads": (False,), "scale_attn_inner": (False,), "scale_attn": (False,),
    "scale_fc": (False,),
}  # fmt: skip
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "vision_cfg": {"attentional_pool": (False, True), "pool_type": ("tok",), "timm_model_name": (None,), **_OF_BLOCKS},
    "text_cfg": {
        "embed_cls": (False, True), "hf_model_name": (None,), "no_causal_mask": (False,), "proj_type": ("linear",),
        "proj_bias": (False,), **_OF_BLOCKS,
    },
}  # fmt: skip


def convert_open_clip_coca(
    state: State | str | Path, config: Mapping[str, Any] | str | Path, *, dtype: str | keras.DTypePolicy = "float32"
) -> ImageTextModel:
    """open_clip's ``CoCa`` as an `ImageTextModel`: contrastive embeddings and captions, the same numbers.

    What it does otherwise than open_clip's ``generate``: a caption never holds the start or the padding token (whose id, 0, is
    ``!`` in CLIP's vocabulary; there it ends a caption), ends with the end token only where the model says so (there the last of
    ``seq_len`` tokens is made one), and comes without the start token. ``generate(seq_len=S, min_seq_len=m)`` is
    ``caption(max_tokens=S - 2, min_tokens=m - 1)``. An embedding does not depend on how a text is padded: it is that of the text
    padded to ``context_length``.

    Args:
        state: ``model.state_dict()``, or a ``.safetensors`` file of it.
        config: open_clip's model configuration, ``open_clip.get_model_config("coca_ViT-B-32")``, or a JSON file of it.
        dtype: Keras dtype policy of the model. Default ``"float32"``.

    Returns:
        The model, with a contrastive and a captioning head.

    Raises:
        ConfigError: If the configuration has an option that is not converted.
        CheckpointError: If a tensor is missing, left over or of another shape.

    Source: Yu et al., CoCa, 2022 (arXiv:2205.01917); https://github.com/mlfoundations/open_clip, ``coca_model.py``.
    """
    config = read_config(config)
    tensors = read_state(state)
    model = _model(config, dtype)
    bias = {"contrastive_head.bias": reshaped(as_it_is("logit_bias"), ())} if "logit_bias" in tensors else {}
    kept = ["text_encoder.token_embedding.output_bias", *([] if bias else ["contrastive_head.bias"])]
    fill(model, {**_names(config), **bias}, tensors, family=_FAMILY, kept=kept)
    return model


def _names(config: Mapping[str, Any]) -> Table:
    """Ours of theirs."""
    vision, text, decoder = (
        known_section(config, section, defaults, _FAMILY)
        for section, defaults in (("vision_cfg", _VISION), ("text_cfg", _TEXT), ("multimodal_cfg", _DECODER))
    )
    pooler = "visual.attn_pool"
    return {
        "image_encoder": {
            "patch_embedding.projection": patches("visual.conv1", bias=False),
            "patch_embedding.position": rows("visual.positional_embedding", 1, None),
            "leading_tokens": reshaped(placed_token("visual.class_embedding", "visual.positional_embedding", 0), (1, -1)),
            **({} if vision["no_ln_pre"] else {"first_norm": norm("visual.ln_pre")}),
            **{f"blocks.{i}": _block(f"visual.transformer.resblocks.{i}", vision) for i in range(vision["layers"])},
        },
        "image_pooling": {
            "query": f"{pooler}.query",
            "query_norm": norm(f"{pooler}.ln_q"),
            "tokens_norm": norm(f"{pooler}.ln_k"),
            "attention": _pooler_attention(f"{pooler}.attn", fused=vision["width"] == config["embed_dim"]),
            "pooled_norm": norm("visual.ln_post"),
        },
        "text_encoder": {
            "token_embedding.embedding": "text.token_embedding.weight",
            "token_embedding.position": rows("text.positional_embedding", None, -1),
            "class_embedding": placed_token("text.cls_emb", "text.positional_embedding", -1),
            **{f"blocks.{i}": _block(f"text.transformer.resblocks.{i}", text) for i in range(text["layers"])},
        },
        "fusion": {
            **{f"blocks.{i}": _layer(i, decoder) for i in range(decoder["layers"])},
            "norm": norm("text_decoder.ln_final"),
        },
        "contrastive_head": {
            "image_projection.kernel": "visual.proj",
            "text_pooled_norm": norm("text.ln_final"),
            "text_projection.kernel": "text.text_projection",
            "log_scale": reshaped(as_it_is("logit_scale"), ()),
        },
        "captioning_head.output_dense.kernel": "text_decoder.text_projection",
    }


def _block(name: str, section: Mapping[str, Any]) -> Table:
    return {
        "attention_norm": norm(f"{name}.ln_1"),
        "attention": _attention(f"{name}.attn"),
        "feed_forward_norm": norm(f"{name}.ln_2"),
        "feed_forward": feed_forward(f"{name}.mlp.c_fc", f"{name}.mlp.c_proj"),
        **_gains(section, attention=f"{name}.ls_1", feed_forward=f"{name}.ls_2"),
    }


def _layer(index: int, section: Mapping[str, Any]) -> Table:
    """A layer of the decoder: a block, and a block that looks at the image behind it."""
    itself, across = f"text_decoder.resblocks.{index}", f"text_decoder.cross_attn.{index}"
    return {
        "attention_norm": norm(f"{itself}.ln_1"),
        "attention": _attention(f"{itself}.attn"),
        "between_norm": norm(f"{itself}.ln_2"),
        "between": feed_forward(f"{itself}.mlp.c_fc", f"{itself}.mlp.c_proj"),
        "cross_norm": norm(f"{across}.ln_1"),
        "cross_context_norm": norm(f"{across}.ln_1_kv"),
        "cross": _attention(f"{across}.attn"),
        "feed_forward_norm": norm(f"{across}.ln_2"),
        "feed_forward": feed_forward(f"{across}.mlp.c_fc", f"{across}.mlp.c_proj"),
        **_gains(
            section, attention=f"{itself}.ls_1", between=f"{itself}.ls_2", cross=f"{across}.ls_1", feed_forward=f"{across}.ls_2"
        ),
    }


def _attention(name: str) -> Table:
    return fused_attention(f"{name}.in_proj_weight", f"{name}.in_proj_bias", f"{name}.out_proj")


def _pooler_attention(name: str, fused: bool) -> Table:
    """PyTorch keeps three matrices where the width of what is pooled is another than that of the queries."""
    table = _attention(name)
    if fused:
        return table
    parts = {part: f"{name}.{letter}_proj_weight" for part, letter in (("query", "q"), ("key", "k"), ("value", "v"))}
    return {
        **table,
        **{f"{part}_projection": {**table[f"{part}_projection"], "kernel": transposed(weight)} for part, weight in parts.items()},
    }


def _gains(section: Mapping[str, Any], **branches: str) -> Table:
    if section["ls_init_value"] is None:
        return {}
    return {f"gains.{branch}.gain": f"{name}.gamma" for branch, name in branches.items()}


def _model(config: Mapping[str, Any], dtype: str | keras.DTypePolicy) -> ImageTextModel:
    for section, fixed in _FIXED.items():
        check_fixed(config.get(section) or {}, fixed, f"{_FAMILY}: {section}")
    vision = known_section(config, "vision_cfg", _VISION, _FAMILY)
    text = known_section(config, "text_cfg", _TEXT, _FAMILY)
    decoder = known_section(config, "multimodal_cfg", _DECODER, _FAMILY)
    width = config["embed_dim"]
    if not text["width"] == decoder["width"] == width:
        expected = "embed_dim, text_cfg.width and multimodal_cfg.width the same"
        raise ConfigError(
            "widths that do not go together", where=_FAMILY, expected=expected, found=(width, text["width"], decoder["width"])
        )
    if not (config["vision_cfg"].get("attentional_pool") and config["text_cfg"].get("embed_cls")):
        expected = "vision_cfg.attentional_pool and text_cfg.embed_cls"
        raise ConfigError("this is no CoCa", where=_FAMILY, expected=expected, fix="another family has another function")
    blocks = {"activation": "quick_gelu" if config.get("quick_gelu") else "gelu"}
    options: dict[str, Any] = {"norm_epsilon": _EPSILON, "dtype": dtype}
    return ImageTextModel(
        image_encoder=VisionTransformer(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            dim=vision["width"],
            depth=vision["layers"],
            num_heads=vision["width"] // vision["head_width"],
            mlp_ratio=vision["mlp_ratio"],
            layer_scale=vision["ls_init_value"],
            num_leading_tokens=1,
            patch_bias=False,
            pre_norm=not vision["no_ln_pre"],
            final_norm=False,
            block_options=blocks,
            **options,
            name="image_encoder",
        ),
        image_pooling=AttentionPooling(
            num_heads=vision["attn_pooler_heads"],
            num_queries=vision["attn_pooler_queries"],
            dim=width,
            norm=True,
            output_norm=True,
            **options,
            name="image_pooling",
        ),
        text_encoder=TextTransformer(
            vocabulary_size=text["vocab_size"],
            max_length=text["context_length"],
            dim=text["width"],
            depth=text["layers"],
            num_heads=text["heads"],
            mlp_ratio=text["mlp_ratio"],
            layer_scale=text["ls_init_value"],
            final_norm=False,
            class_token="text" if text["correct_cls_mask"] else "next",
            pad_id=text["pad_id"],
            block_options=blocks,
            **options,
            name="text_encoder",
        ),
        fusion=CrossFusion(
            dim=decoder["width"],
            depth=decoder["layers"],
            num_heads=decoder["heads"],
            # open_clip does not hand on the configuration's own.
            mlp_ratio=4.0,
            layer_scale=decoder["ls_init_value"],
            context_norm=True,
            feed_forward_between=True,
            activation=blocks["activation"],
            **options,
            name="fusion",
        ),
        contrastive_head=ContrastiveHead(
            embedding_dim=width, image_pooling="first", text_pooling="first", text_norm=True, **options, name="contrastive_head"
        ),
        captioning_head=CaptioningHead(
            # Of CLIP's vocabulary the last two.
            start_id=text["vocab_size"] - 2,
            end_id=text["vocab_size"] - 1,
            pad_id=text["pad_id"],
            transform=False,
            vocabulary_size=text["vocab_size"],
            output_bias=False,
            dtype=dtype,
            name="captioning_head",
        ),
        causal_text=True,
        contrastive_tokens="pooling",
        contrastive_queries=1,
        contrastive_text="class_token",
        name="open_clip_coca",
    )
