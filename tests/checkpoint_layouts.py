"""The tensors of published checkpoints, by name and shape, written down from their own code."""

from __future__ import annotations

from typing import Any

import numpy as np

BLIP_CONFIG: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16,
        "patch_size": 8,
    },
    "text_config": {
        "vocab_size": 30, "hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 9, "bos_token_id": 28, "sep_token_id": 3, "pad_token_id": 0,
    },
    "image_text_hidden_size": 6,
}  # fmt: skip
COCA_CONFIG: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {
        "image_size": 16, "layers": 1, "width": 12, "head_width": 6, "patch_size": 8, "attentional_pool": True,
        "attn_pooler_queries": 4, "attn_pooler_heads": 2, "output_tokens": True,
    },
    "text_cfg": {"context_length": 6, "vocab_size": 30, "width": 8, "heads": 2, "layers": 1, "embed_cls": True},
    "multimodal_cfg": {"context_length": 6, "vocab_size": 30, "width": 8, "heads": 2, "layers": 2},
}  # fmt: skip


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def layer_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def blip_vision() -> dict[str, tuple[int, ...]]:
    shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, 12),
        "vision_model.embeddings.position_embedding": (1, 5, 12),
        "vision_model.embeddings.patch_embedding.weight": (12, 3, 8, 8),
        "vision_model.embeddings.patch_embedding.bias": (12,),
        **layer_norm("vision_model.post_layernorm", 12),
    }
    for layer in (f"vision_model.encoder.layers.{index}" for index in range(2)):
        shapes |= linear(f"{layer}.self_attn.qkv", 12, 36) | linear(f"{layer}.self_attn.projection", 12, 12)
        shapes |= linear(f"{layer}.mlp.fc1", 12, 20) | linear(f"{layer}.mlp.fc2", 20, 12)
        shapes |= layer_norm(f"{layer}.layer_norm1", 12) | layer_norm(f"{layer}.layer_norm2", 12)
    return shapes


def blip_text(owner: str) -> dict[str, tuple[int, ...]]:
    shapes = {
        f"{owner}.embeddings.word_embeddings.weight": (30, 8),
        f"{owner}.embeddings.position_embeddings.weight": (9, 8),
        **layer_norm(f"{owner}.embeddings.LayerNorm", 8),
    }
    for layer in (f"{owner}.encoder.layer.{index}" for index in range(2)):
        for part, width in (("attention", 8), ("crossattention", 12)):
            shapes |= linear(f"{layer}.{part}.self.query", 8, 8)
            shapes |= linear(f"{layer}.{part}.self.key", width, 8) | linear(f"{layer}.{part}.self.value", width, 8)
            shapes |= linear(f"{layer}.{part}.output.dense", 8, 8) | layer_norm(f"{layer}.{part}.output.LayerNorm", 8)
        shapes |= linear(f"{layer}.intermediate.dense", 8, 20) | linear(f"{layer}.output.dense", 20, 8)
        shapes |= layer_norm(f"{layer}.output.LayerNorm", 8)
    return shapes


def blip_captioning() -> dict[str, np.ndarray]:
    predictions = "text_decoder.cls.predictions"
    shapes = {
        **blip_vision(), **blip_text("text_decoder.bert"), **linear(f"{predictions}.transform.dense", 8, 8),
        **layer_norm(f"{predictions}.transform.LayerNorm", 8), f"{predictions}.bias": (30,),
    }  # fmt: skip
    state = filled(shapes)
    # One tensor under two names, as PyTorch's state holds what is tied.
    state[f"{predictions}.decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    state[f"{predictions}.decoder.bias"] = state[f"{predictions}.bias"]
    return state


def blip_retrieval() -> dict[str, np.ndarray]:
    heads = {**linear("vision_proj", 12, 6), **linear("text_proj", 8, 6), **linear("itm_head", 8, 2)}
    return filled({**blip_vision(), **blip_text("text_encoder"), **heads})


def coca_block(name: str, width: int, crossed: bool = False) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
    shapes |= linear(f"{name}.attn.out_proj", width, width)
    shapes |= linear(f"{name}.mlp.c_fc", width, 4 * width) | linear(f"{name}.mlp.c_proj", 4 * width, width)
    for norm in ("ln_1", "ln_2", *(["ln_1_kv"] if crossed else [])):
        shapes |= layer_norm(f"{name}.{norm}", width)
    return shapes


def coca() -> dict[str, np.ndarray]:
    pooler = "visual.attn_pool"
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (), "visual.class_embedding": (12,), "visual.positional_embedding": (5, 12), "visual.proj": (8, 8),
        "visual.conv1.weight": (12, 3, 8, 8), f"{pooler}.query": (4, 8), f"{pooler}.attn.q_proj_weight": (8, 8),
        f"{pooler}.attn.k_proj_weight": (8, 12), f"{pooler}.attn.v_proj_weight": (8, 12), f"{pooler}.attn.in_proj_bias": (24,),
        **linear(f"{pooler}.attn.out_proj", 8, 8), **layer_norm(f"{pooler}.ln_q", 8), **layer_norm(f"{pooler}.ln_k", 12),
        **layer_norm("visual.ln_pre", 12), **layer_norm("visual.ln_post", 8),
        **coca_block("visual.transformer.resblocks.0", 12),
        "text.cls_emb": (8,), "text.positional_embedding": (7, 8), "text.token_embedding.weight": (30, 8),
        "text.text_projection": (8, 8), **layer_norm("text.ln_final", 8), **coca_block("text.transformer.resblocks.0", 8),
        **layer_norm("text_decoder.ln_final", 8), "text_decoder.text_projection": (8, 30),
    }  # fmt: skip
    for index in range(2):
        shapes |= coca_block(f"text_decoder.resblocks.{index}", 8)
        shapes |= coca_block(f"text_decoder.cross_attn.{index}", 8, crossed=True)
    return filled(shapes)


def filled(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random values of their own for each."""
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.3, shape).astype("float32") for name, shape in shapes.items()}
