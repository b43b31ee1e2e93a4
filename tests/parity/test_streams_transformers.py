"""Blocks and fused streams against those of Hugging Face's `transformers`: the same random weights, outputs and gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import to_numpy

from mmfusion.fusion import CoFusion, CrossFusion, MergedFusion
from mmfusion.layers import TransformerBlock

torch = pytest.importorskip("torch", reason="compares with torch")
pytest.importorskip("transformers", reason="compares with transformers")

from torch_weights import Pairs, randomize

pytestmark = pytest.mark.parity

B, T, P, D, HEADS, HIDDEN, DEPTH = 2, 5, 7, 16, 4, 32, 2
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=(B, n, D)).astype("float32") for n in (T, P))
TEXT_MASK = np.arange(T) < np.array([[T], [3]])
IMAGE_MASK = np.arange(P) < np.array([[P], [4]])
BOTH_MASKS = np.concatenate([TEXT_MASK, IMAGE_MASK], axis=1)
SIZES = {"hidden_size": D, "num_attention_heads": HEADS, "intermediate_size": HIDDEN, "vocab_size": 11}
OURS = {"num_heads": HEADS, "mlp_ratio": HIDDEN / D, "norm_epsilon": 1e-12}


class BertPairs(Pairs):
    """Pairs of our blocks and of what is made like BERT."""

    def bert_attention(self, ours, norm, theirs) -> None:
        inner = theirs.self if hasattr(theirs, "self") else theirs.att
        self.attention(ours, inner.query, inner.key, inner.value, theirs.output.dense)
        self.norm(norm, theirs.output.LayerNorm)

    def feed_forward(self, block, hidden, output) -> None:
        self.dense(block.feed_forward.hidden, hidden.dense)
        self.dense(block.feed_forward.output_dense, output.dense)
        if hasattr(output, "LayerNorm"):
            self.norm(block.feed_forward_norm, output.LayerNorm)

    def bert_layers(self, blocks, model) -> None:
        for block, layer in zip(blocks, model.encoder.layer, strict=True):
            self.bert_attention(block.attention, block.attention_norm, layer.attention)
            if block.cross is not None:
                self.bert_attention(block.cross, block.cross_norm, layer.crossattention)
            self.feed_forward(block, layer.intermediate, layer.output)

    def assert_all_of(self, layer) -> None:
        assert {id(ours) for ours, _, _ in self._pairs} == {id(weight) for weight in layer.trainable_weights}


def additive(mask):
    return torch.from_numpy(np.where(mask[:, None, None, :], 0.0, np.finfo("float32").min).astype("float32"))


def fused(fusion, **options):
    def both(text, image):
        output = fusion(text, image, TEXT_MASK, IMAGE_MASK, **options)
        return keras.ops.concatenate([output.text, output.image], axis=1)

    return both


def test_co_fusion_with_shared_cross_attention_is_the_cross_modality_layer_of_lxmert():
    from transformers import LxmertConfig
    from transformers.models.lxmert.modeling_lxmert import LxmertXLayer

    layers = [randomize(LxmertXLayer(LxmertConfig(**SIZES)), seed) for seed in range(DEPTH)]
    fusion = CoFusion(dim=D, depth=DEPTH, shared_cross=True, norm_first=False, **OURS)
    fusion.build()
    pairs = BertPairs()
    for index, layer in enumerate(layers):
        cross = fusion.cross_blocks[index]
        pairs.bert_attention(cross.cross, cross.cross_norm, layer.visual_attention)
        for block, itself, hidden, output in (
            (fusion.blocks[index], layer.lang_self_att, layer.lang_inter, layer.lang_output),
            (fusion.image_blocks[index], layer.visn_self_att, layer.visn_inter, layer.visn_output),
        ):
            pairs.bert_attention(block.attention, block.attention_norm, itself)
            pairs.feed_forward(block, hidden, output)
    pairs.assert_all_of(fusion)
    scores = []

    def theirs(text, image):
        for layer in layers:
            text, image, seen = layer(text, additive(TEXT_MASK), image, additive(IMAGE_MASK), output_attentions=True)
            scores.append(seen.detach().numpy())
        return torch.cat([text, image], dim=1)

    pairs.assert_same(fused(fusion), theirs, [TEXT, IMAGE], BOTH_MASKS)
    found = to_numpy(fusion(TEXT, IMAGE, TEXT_MASK, IMAGE_MASK, return_scores=True).scores)
    real = np.broadcast_to(TEXT_MASK[:, None, None, :, None], found.shape)
    np.testing.assert_allclose(found[real], np.stack(scores, axis=1)[real], atol=1e-5)


def test_merged_fusion_is_vilt():
    from transformers import ViltConfig, ViltModel

    config = ViltConfig(**SIZES, num_hidden_layers=DEPTH, image_size=8, patch_size=4, attn_implementation="eager")
    model = randomize(ViltModel(config, add_pooling_layer=False))
    fusion = MergedFusion(dim=D, depth=DEPTH, **OURS)
    fusion.build()
    pairs = BertPairs()
    pairs.weight(fusion.modality, model.embeddings.token_type_embeddings.weight)
    pairs.norm(fusion.norm, model.layernorm)
    for block, layer in zip(fusion.blocks, model.encoder.layer, strict=True):
        inner = layer.attention.attention
        pairs.norm(block.attention_norm, layer.layernorm_before)
        pairs.attention(block.attention, inner.query, inner.key, inner.value, layer.attention.output.dense)
        pairs.norm(block.feed_forward_norm, layer.layernorm_after)
        pairs.feed_forward(block, layer.intermediate, layer.output)
    pairs.assert_all_of(fusion)
    # Their embedding of the text is not what is compared: it hands on what it is given.
    model.embeddings.text_embeddings.forward = lambda input_ids, token_type_ids, inputs_embeds: inputs_embeds
    masks = {"attention_mask": torch.from_numpy(TEXT_MASK).long(), "pixel_mask": torch.from_numpy(IMAGE_MASK).long()}

    def theirs(text, image):
        return model(inputs_embeds=text, image_embeds=image, **masks).last_hidden_state

    pairs.assert_same(fused(fusion), theirs, [TEXT, IMAGE], BOTH_MASKS)


def bert(**options):
    from transformers import BertConfig, BertModel

    config = BertConfig(**SIZES, num_hidden_layers=DEPTH, attn_implementation="eager", **options)
    return randomize(BertModel(config, add_pooling_layer=False))


@pytest.mark.parametrize("causal", [False, True])
def test_cross_fusion_is_bert_with_cross_attention(causal):
    model = bert(is_decoder=True, add_cross_attention=True)
    fusion = CrossFusion(dim=D, depth=DEPTH, norm_first=False, **OURS)
    fusion.build()
    pairs = BertPairs()
    pairs.bert_layers(fusion.blocks, model)
    pairs.assert_all_of(fusion)

    def theirs(text, image):
        hidden = {"encoder_hidden_states": image}
        if causal:  # the decoder as a whole, which makes both masks itself
            model.embeddings.forward = lambda inputs_embeds, **_: inputs_embeds
            masks = {"attention_mask": torch.from_numpy(TEXT_MASK), "encoder_attention_mask": torch.from_numpy(IMAGE_MASK)}
            return model(inputs_embeds=text, **masks, **hidden).last_hidden_state
        masks = {"attention_mask": additive(TEXT_MASK), "encoder_attention_mask": additive(IMAGE_MASK)}
        return model.encoder(text, **masks, **hidden).last_hidden_state

    def ours(text, image):
        return fusion(text, image, TEXT_MASK, IMAGE_MASK, causal=causal).text

    pairs.assert_same(ours, theirs, [TEXT, IMAGE], TEXT_MASK)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_blocks_with_normalisation_after_are_bert(activation):
    model = bert(hidden_act=activation)
    blocks = [TransformerBlock(norm_first=False, activation=activation, **OURS) for _ in range(DEPTH)]
    for block in blocks:
        block.build((None, None, D))
    pairs = BertPairs()
    pairs.bert_layers(blocks, model)

    def ours(text):
        for block in blocks:
            text = block(text, mask=TEXT_MASK)
        return text

    pairs.assert_same(ours, lambda text: model.encoder(text, additive(TEXT_MASK)).last_hidden_state, [TEXT], TEXT_MASK)
