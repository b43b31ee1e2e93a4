"""`QFormerFusion` against transformers' `Blip2QFormerModel` with the same random weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from torch_weights import Pairs, randomize
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

from mmfusion.fusion import QFormerFusion

pytestmark = pytest.mark.parity
B, N, T, P, D, DI = 2, 4, 5, 6, 16, 10
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=shape).astype("float32") for shape in ((B, T, D), (B, P, DI)))
QUERIES = RANDOM.normal(size=(N, D)).astype("float32")
TEXT_MASK = np.array([[True] * T, [True] * 3 + [False] * 2])
IMAGE_MASK = np.array([[True] * 4 + [False] * 2, [True] * P])


@pytest.fixture(scope="module")
def pair():
    config = transformers.Blip2QFormerConfig(
        hidden_size=D, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40, encoder_hidden_size=DI,
        cross_attention_frequency=2, use_qformer_text_input=True, vocab_size=7, attn_implementation="eager",
    )  # fmt: skip
    theirs = randomize(Blip2QFormerModel(config))
    ours = QFormerFusion(
        dim=D, image_dim=DI, depth=3, num_heads=2, mlp_ratio=2.5, num_queries=N, cross_every=2, norm_first=False,
        norm_epsilon=config.layer_norm_eps,
    )  # fmt: skip
    ours.build()
    ours.queries.assign(QUERIES)
    pairs = Pairs()
    pairs.norm(ours.norm, theirs.layernorm)
    for block, layer in zip(ours.blocks, theirs.encoder.layer, strict=True):
        looks = [("attention", block.attention, layer.attention)]
        if layer.has_cross_attention:
            looks.append(("cross", block.cross, layer.crossattention))
        assert layer.has_cross_attention == block.cross_attention
        for branch, attention, part in looks:
            inner = part.attention
            pairs.attention(attention, inner.query, inner.key, inner.value, part.output.dense)
            pairs.norm(block.norms[branch], part.output.LayerNorm)
        for branch, feed_forward, hidden, output in (
            ("query_feed_forward", block.query_feed_forward, layer.intermediate_query, layer.output_query),
            ("text_feed_forward", block.text_feed_forward, layer.intermediate, layer.output),
        ):
            pairs.dense(feed_forward.hidden, hidden.dense)
            pairs.dense(feed_forward.output_dense, output.dense)
            pairs.norm(block.norms[branch], output.LayerNorm)
    return ours, theirs, pairs


def queries_and(text=None):
    queries = torch.tensor(QUERIES)[None].repeat(B, 1, 1)
    return queries if text is None else torch.cat([queries, text], dim=1)


def test_queries_without_text(pair):
    ours, theirs, pairs = pair
    theirs.zero_grad()

    def of_theirs(image):
        mask = torch.tensor(IMAGE_MASK).long()
        return theirs(queries_and(), encoder_hidden_states=image, encoder_attention_mask=mask).last_hidden_state

    pairs.assert_same(lambda image: ours.image_tokens(image, IMAGE_MASK), of_theirs, [IMAGE])


@pytest.mark.parametrize("causal", [False, True], ids=["matching", "captioning"])
def test_queries_and_text(pair, causal):
    ours, theirs, pairs = pair
    theirs.zero_grad()
    mask = np.concatenate([np.ones((B, N), bool), TEXT_MASK], axis=1)
    seen = np.repeat(mask[:, None], N + T, axis=1)
    if causal:
        seen[:, :N, N:] = False
        seen &= np.tri(N + T, dtype=bool) | (np.arange(N + T) < N)

    def of_theirs(text, image):
        return theirs(
            queries_and(text),
            query_length=N,
            attention_mask=torch.tensor(seen).float(),
            encoder_hidden_states=image,
            encoder_attention_mask=torch.tensor(IMAGE_MASK).long(),
        ).last_hidden_state

    def of_ours(text, image):
        import keras

        output = ours(text, image, text_mask=TEXT_MASK, image_mask=IMAGE_MASK, causal=causal)
        return keras.ops.concatenate([output.image, output.text], axis=1)

    pairs.assert_same(of_ours, of_theirs, [TEXT, IMAGE], real=mask)
