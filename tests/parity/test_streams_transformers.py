"""Blocks and fused streams against those of Hugging Face's `transformers`: the same random weights, outputs and gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import to_numpy, value_and_gradients

from mmfusion.fusion import CoFusion, CrossFusion, MergedFusion
from mmfusion.layers import TransformerBlock

torch = pytest.importorskip("torch", reason="compares with torch")
pytest.importorskip("transformers", reason="compares with transformers")

pytestmark = pytest.mark.parity

B, T, P, D, HEADS, HIDDEN, DEPTH = 2, 5, 7, 16, 4, 32, 2
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=(B, n, D)).astype("float32") for n in (T, P))
TEXT_MASK = np.arange(T) < np.array([[T], [3]])
IMAGE_MASK = np.arange(P) < np.array([[P], [4]])
# What the scalar weighs each output with: nothing of the padding.
TEXT_WEIGHTS = RANDOM.normal(size=(B, T, D)).astype("float32") * TEXT_MASK[..., None]
IMAGE_WEIGHTS = RANDOM.normal(size=(B, P, D)).astype("float32") * IMAGE_MASK[..., None]
SIZES = {"hidden_size": D, "num_attention_heads": HEADS, "intermediate_size": HIDDEN, "vocab_size": 11}
OURS = {"num_heads": HEADS, "mlp_ratio": HIDDEN / D, "norm_epsilon": 1e-12}


def randomized(module):
    """In evaluation, with weights large enough for a wrong one to show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            start = 1.0 if "orm" in name and name.endswith("weight") else 0.0
            parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def dense(ours, theirs):
    yield ours.kernel, theirs.weight, True
    if ours.use_bias:
        yield ours.bias, theirs.bias, False


def norm(ours, theirs):
    yield ours.gamma, theirs.weight, False
    yield ours.beta, theirs.bias, False


def attention(ours, theirs, output):
    yield from dense(ours.query_projection, theirs.query)
    yield from dense(ours.key_projection, theirs.key)
    yield from dense(ours.value_projection, theirs.value)
    yield from dense(ours.output_projection, output)


def bert_attention(ours, ours_norm, theirs):
    """Of the layers whose attention, output and norm are BERT's."""
    inner = theirs.self if hasattr(theirs, "self") else theirs.att
    yield from attention(ours, inner, theirs.output.dense)
    yield from norm(ours_norm, theirs.output.LayerNorm)


def feed_forward(block, hidden, output):
    yield from dense(block.feed_forward.hidden, hidden.dense)
    yield from dense(block.feed_forward.output_dense, output.dense)
    if hasattr(output, "LayerNorm"):
        yield from norm(block.feed_forward_norm, output.LayerNorm)


def bert_layers(blocks, model):
    for block, layer in zip(blocks, model.encoder.layer, strict=True):
        yield from bert_attention(block.attention, block.attention_norm, layer.attention)
        if block.cross is not None:
            yield from bert_attention(block.cross, block.cross_norm, layer.crossattention)
        yield from feed_forward(block, layer.intermediate, layer.output)


def copied(pairs):
    pairs = list(pairs)
    for ours, theirs, transposed in pairs:
        value = theirs.detach().numpy()
        ours.assign(value.T if transposed else value)
    return pairs


def additive(mask, causal=False):
    allowed = np.broadcast_to(mask[:, None, None, :], (B, 1, mask.shape[1] if causal else 1, mask.shape[1]))
    allowed = np.tril(allowed) if causal else allowed
    return torch.from_numpy(np.where(allowed, 0.0, np.finfo("float32").min).astype("float32"))


def assert_same(ours, theirs, arrays, pairs):
    """Outputs within 1e-5; gradients by inputs and by every weight within 1e-4.

    Args:
        ours: Of tensors; returns the outputs as a list.
        theirs: The same of torch's.
        arrays: The inputs.
        pairs: Ours, theirs, and whether one is the other's transpose, of every weight.
    """
    tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]
    expected = theirs(*tensors)
    scales = (TEXT_WEIGHTS, IMAGE_WEIGHTS)[: len(expected)]
    for found, wanted, scale in zip(ours(*arrays), expected, scales, strict=True):
        np.testing.assert_allclose(to_numpy(found) * (scale != 0), wanted.detach().numpy() * (scale != 0), atol=1e-5)
    sum((x * torch.from_numpy(scale)).sum() for x, scale in zip(expected, scales, strict=True)).backward()

    def scalar(*inputs):
        return sum(keras.ops.sum(x * scale) for x, scale in zip(ours(*inputs), scales, strict=True))

    _, gradients = value_and_gradients(scalar, arrays, [variable for variable, _, _ in pairs])
    wanted = [x.grad.numpy() for x in tensors]
    wanted += [p.grad.numpy().T if transposed else p.grad.numpy() for _, p, transposed in pairs]
    for found, gradient in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, gradient, atol=1e-4)
    assert sum(np.abs(gradient).max() > 1e-3 for gradient in wanted) > len(wanted) * 0.8


@pytest.fixture
def lxmert():
    from transformers import LxmertConfig
    from transformers.models.lxmert.modeling_lxmert import LxmertXLayer

    config = LxmertConfig(**SIZES)
    return torch.nn.ModuleList([randomized(LxmertXLayer(config)) for _ in range(DEPTH)])


def test_co_fusion_with_shared_cross_attention_is_the_cross_modality_layer_of_lxmert(lxmert):
    fusion = CoFusion(dim=D, depth=DEPTH, shared_cross=True, norm_first=False, **OURS)
    fusion.build()

    def pairs():
        for index, layer in enumerate(lxmert):
            cross = fusion.cross_blocks[index]
            yield from bert_attention(cross.cross, cross.cross_norm, layer.visual_attention)
            for block, itself, hidden, output in (
                (fusion.blocks[index], layer.lang_self_att, layer.lang_inter, layer.lang_output),
                (fusion.image_blocks[index], layer.visn_self_att, layer.visn_inter, layer.visn_output),
            ):
                yield from bert_attention(block.attention, block.attention_norm, itself)
                yield from feed_forward(block, hidden, output)

    copies = copied(pairs())
    assert len(copies) == len(fusion.trainable_weights)
    scores = []

    def theirs(text, image):
        for layer in lxmert:
            text, image, seen = layer(text, additive(TEXT_MASK), image, additive(IMAGE_MASK), output_attentions=True)
            scores.append(seen.detach().numpy())
        return text, image

    def ours(text, image):
        output = fusion(text, image, TEXT_MASK, IMAGE_MASK)
        return output.text, output.image

    assert_same(ours, theirs, [TEXT, IMAGE], copies)
    found = to_numpy(fusion(TEXT, IMAGE, TEXT_MASK, IMAGE_MASK, return_scores=True).scores)
    real = np.broadcast_to(TEXT_MASK[:, None, None, :, None], found.shape)
    np.testing.assert_allclose(found[real], np.stack(scores, axis=1)[real], atol=1e-5)


def test_merged_fusion_is_vilt():
    from transformers import ViltConfig, ViltModel

    config = ViltConfig(**SIZES, num_hidden_layers=DEPTH, image_size=8, patch_size=4, attn_implementation="eager")
    model = randomized(ViltModel(config, add_pooling_layer=False))
    fusion = MergedFusion(dim=D, depth=DEPTH, **OURS)
    fusion.build()

    def pairs():
        yield fusion.modality, model.embeddings.token_type_embeddings.weight, False
        yield from norm(fusion.norm, model.layernorm)
        for block, layer in zip(fusion.blocks, model.encoder.layer, strict=True):
            yield from norm(block.attention_norm, layer.layernorm_before)
            yield from attention(block.attention, layer.attention.attention, layer.attention.output.dense)
            yield from norm(block.feed_forward_norm, layer.layernorm_after)
            yield from feed_forward(block, layer.intermediate, layer.output)

    copies = copied(pairs())
    assert len(copies) == len(fusion.trainable_weights)
    # Their embedding of the text is not what is compared: it hands on what it is given.
    model.embeddings.text_embeddings.forward = lambda input_ids, token_type_ids, inputs_embeds: inputs_embeds
    masks = {"attention_mask": torch.from_numpy(TEXT_MASK).long(), "pixel_mask": torch.from_numpy(IMAGE_MASK).long()}

    def theirs(text, image):
        tokens = model(inputs_embeds=text, image_embeds=image, **masks).last_hidden_state
        return tokens[:, :T], tokens[:, T:]

    def ours(text, image):
        output = fusion(text, image, TEXT_MASK, IMAGE_MASK)
        return output.text, output.image

    assert_same(ours, theirs, [TEXT, IMAGE], copies)


def bert(**options):
    from transformers import BertConfig, BertModel

    config = BertConfig(**SIZES, num_hidden_layers=DEPTH, attn_implementation="eager", **options)
    return randomized(BertModel(config, add_pooling_layer=False))


@pytest.mark.parametrize("causal", [False, True])
def test_cross_fusion_is_bert_with_cross_attention(causal):
    model = bert(is_decoder=True, add_cross_attention=True)
    fusion = CrossFusion(dim=D, depth=DEPTH, norm_first=False, **OURS)
    fusion.build()
    copies = copied(bert_layers(fusion.blocks, model))
    assert len(copies) == len(fusion.trainable_weights)

    def theirs(text, image):
        hidden = {"encoder_hidden_states": image}
        if causal:  # the decoder as a whole, which makes both masks itself
            model.embeddings.forward = lambda inputs_embeds, **_: inputs_embeds
            masks = {"attention_mask": torch.from_numpy(TEXT_MASK), "encoder_attention_mask": torch.from_numpy(IMAGE_MASK)}
            return [model(inputs_embeds=text, **masks, **hidden).last_hidden_state]
        masks = {"attention_mask": additive(TEXT_MASK), "encoder_attention_mask": additive(IMAGE_MASK)}
        return [model.encoder(text, **masks, **hidden).last_hidden_state]

    def ours(text, image):
        return [fusion(text, image, TEXT_MASK, IMAGE_MASK, causal=causal).text]

    assert_same(ours, theirs, [TEXT, IMAGE], copies)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_blocks_with_normalisation_after_are_bert(activation):
    model = bert(hidden_act=activation)
    blocks = [TransformerBlock(norm_first=False, activation=activation, **OURS) for _ in range(DEPTH)]
    for block in blocks:
        block.build((None, None, D))
    copies = copied(bert_layers(blocks, model))

    def ours(text):
        for block in blocks:
            text = block(text, mask=TEXT_MASK)
        return [text]

    assert_same(ours, lambda text: [model.encoder(text, additive(TEXT_MASK)).last_hidden_state], [TEXT], copies)
