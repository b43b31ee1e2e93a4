"""The resampler and gated cross-attention against those of transformers' Idefics with the same random weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from torch_weights import Pairs, randomize
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from mmfusion.layers import GatedCrossAttention, PerceiverResampler

pytestmark = pytest.mark.parity
B, T, P, D, DI = 2, 4, 7, 12, 16
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=shape).astype("float32") for shape in ((B, T, D), (B, P, DI)))


def configuration(**options):
    return transformers.IdeficsConfig(
        vision_config={"embed_dim": DI, "intermediate_size": 20, "num_attention_heads": 2, "num_hidden_layers": 1},
        hidden_size=D, intermediate_size=20, num_attention_heads=3, dropout=0.0, attn_implementation="eager", **options,
    )  # fmt: skip


def test_resampler():
    theirs = randomize(IdeficsPerceiverResampler(configuration(), DI, depth=3, n_heads=3, head_dim=8, n_latents=5))
    ours = PerceiverResampler(num_latents=5, depth=3, num_heads=3, head_dim=8, activation="relu", norm_epsilon=1e-5)
    ours.build((None, None, DI))
    pairs = Pairs()
    pairs.weight(ours.latents, theirs.latents)
    pairs.norm(ours.norm, theirs.layer_norm)
    for block, (attention, mlp) in zip(ours.blocks, theirs.blocks, strict=True):
        pairs.norm(block.media_norm, attention.context_layer_norm)
        pairs.norm(block.latents_norm, attention.latents_layer_norm)
        pairs.attention(block.attention, attention.q_proj, attention.k_proj, attention.v_proj, attention.output_proj)
        pairs.norm(block.feed_forward_norm, mlp.ln)
        pairs.dense(block.feed_forward.hidden, mlp.fc)
        pairs.dense(block.feed_forward.output_dense, mlp.c_proj)
    pairs.assert_same(ours, theirs, [IMAGE])


def test_gated_cross_attention():
    theirs = IdeficsGatedCrossAttentionLayer(configuration(alpha_initializer="ones", alpha_type="float"), layer_idx=0)
    theirs = randomize(theirs)
    ours = GatedCrossAttention(
        num_heads=3, mlp_ratio=20 / D, use_bias=False, gated_feed_forward=True, activation="silu", norm="rms", norm_epsilon=1e-6
    )
    ours.build((None, None, D), (None, None, DI))
    pairs = Pairs()
    pairs.norm(ours.attention_norm, theirs.input_layernorm)
    pairs.norm(ours.feed_forward_norm, theirs.post_attention_layernorm)
    pairs.weight(ours.attention_gate, theirs.alpha_cross_attn)
    pairs.weight(ours.feed_forward_gate, theirs.alpha_dense)
    attention, mlp = theirs.cross_attn, theirs.mlp
    pairs.attention(ours.attention, attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    pairs.dense(ours.feed_forward.gate, mlp.gate_proj)
    pairs.dense(ours.feed_forward.hidden, mlp.up_proj)
    pairs.dense(ours.feed_forward.output_dense, mlp.down_proj)
    # The second example has no image at all; its tokens' gate is closed by hand there, by the mask here.
    image_mask = np.array([[True] * 5 + [False] * 2, [False] * P])

    def of_theirs(text, image):
        added = torch.tensor(np.where(image_mask, 0.0, -1e9).astype("float32"))[:, None, None, :].expand(B, 1, T, P)
        gate = torch.tensor(image_mask.any(1)).float()[:, None].expand(B, T)
        return theirs(text, image_hidden_states=image, image_attention_mask=added, cross_attention_gate=gate)

    pairs.assert_same(lambda text, image: ours(text, context=image, context_mask=image_mask), of_theirs, [TEXT, IMAGE])
