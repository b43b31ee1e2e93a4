"""Attention pooling against the pooling head of transformers' SigLIP with the same random weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from torch_weights import Pairs, randomize
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from mmfusion.layers import AttentionPooling

pytestmark = pytest.mark.parity


def test_siglip_head():
    config = transformers.SiglipVisionConfig(hidden_size=12, intermediate_size=30, num_attention_heads=3, hidden_act="gelu")
    theirs = randomize(SiglipMultiheadAttentionPoolingHead(config))
    ours = AttentionPooling(num_heads=3, mlp_ratio=2.5)
    ours.build((None, None, 12))
    pairs, attention = Pairs(), theirs.attention
    pairs.weight(ours.query, theirs.probe)
    for index, name in enumerate(("query", "key", "value")):
        rows = slice(12 * index, 12 * (index + 1))
        dense = getattr(ours.attention, f"{name}_projection")
        pairs.weight(dense.kernel, attention.in_proj_weight, lambda x, rows=rows: x[rows].T)
        pairs.weight(dense.bias, attention.in_proj_bias, lambda x, rows=rows: x[rows])
    pairs.dense(ours.attention.output_projection, attention.out_proj)
    pairs.norm(ours.feed_forward_norm, theirs.layernorm)
    pairs.dense(ours.feed_forward.hidden, theirs.mlp.fc1)
    pairs.dense(ours.feed_forward.output_dense, theirs.mlp.fc2)
    tokens = np.random.default_rng(0).normal(size=(2, 9, 12)).astype("float32")
    pairs.assert_same(ours, theirs, [tokens])
