"""Checkpoints of published layouts into our models, without the libraries that wrote them; with them in tests/parity."""

from __future__ import annotations

import json
from copy import deepcopy

import keras
import numpy as np
import pytest
from checkpoint_layouts import BLIP_CONFIG, COCA_CONFIG, blip_captioning, blip_retrieval, coca
from gradients import to_numpy
from safetensors.numpy import save_file

from mmfusion.convert import convert_blip_captioning, convert_blip_retrieval, convert_open_clip_coca
from mmfusion.errors import CheckpointError, ConfigError

IMAGES = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype("float32")
IDS = np.array([[28, 5, 6, 3, 0], [28, 7, 3, 0, 0]], "int32")
MASK = IDS > 0
FAMILIES = {
    "blip captioning": (convert_blip_captioning, blip_captioning, BLIP_CONFIG, ("captioning",)),
    "blip retrieval": (convert_blip_retrieval, blip_retrieval, BLIP_CONFIG, ("contrastive", "matching")),
    "open_clip coca": (convert_open_clip_coca, coca, COCA_CONFIG, ("contrastive", "captioning")),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_checkpoint_makes_a_model_that_comes_back_from_files(family, tmp_path):
    convert, state, config, heads = FAMILIES[family]
    state = state()
    model = convert(state, config)
    assert model.heads == heads
    outputs = model({"image": IMAGES, "token_ids": IDS, "token_mask": MASK})
    assert all(np.isfinite(to_numpy(value)).all() for value in outputs.values())
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model.save(tmp_path / "model.keras")
    others = convert(tmp_path / "model.safetensors", tmp_path / "config.json"), keras.saving.load_model(tmp_path / "model.keras")
    for other in others:
        for name, value in other({"image": IMAGES, "token_ids": IDS, "token_mask": MASK}).items():
            np.testing.assert_array_equal(to_numpy(value), to_numpy(outputs[name]))
        for part in ("image_encoder", "image_pooling", "text_encoder", "fusion", *(f"{head}_head" for head in heads)):
            ours, theirs = getattr(model, part), getattr(other, part)
            assert ours is theirs is None or ours.get_config() == theirs.get_config()
        assert other.contrastive_text == model.contrastive_text and other.contrastive_queries == model.contrastive_queries
    maps = to_numpy(model.attend(IMAGES, IDS, MASK))
    assert maps.shape[3:] == (5, 2, 2)
    np.testing.assert_allclose(maps.sum((-2, -1)), 1.0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_with_a_cache_is_what_the_logits_say(family):
    convert, state, config, heads = FAMILIES[family]
    if "captioning" not in heads:
        pytest.skip("does not caption")
    model = convert(state(), config)
    head = model.captioning_head
    patches, written = model.image_encoder(IMAGES), to_numpy(model.caption(IMAGES, max_tokens=4).token_ids).astype(int)
    read = np.full((2, 1), head.start_id)
    for place in range(4):
        scores = to_numpy(model.caption_logits(patches, read))[:, -1]
        scores[:, [head.start_id, head.pad_id]] = -np.inf
        going = ~(read[:, 1:] == head.end_id).any(1)
        np.testing.assert_array_equal(written[going, place], scores.argmax(-1)[going])
        read = np.concatenate([read, written[:, place : place + 1]], axis=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_that_does_not_fit_is_told_in_one_line_and_by_name(family):
    convert, state, config, _ = FAMILIES[family]
    norm = next(name for name in state() if "ln_post.weight" in name or "post_layernorm.weight" in name)
    bias = next(name for name in state() if name.endswith(("c_fc.bias", "fc1.bias")))
    broken = state()
    width = broken[norm].shape[0]
    del broken[bias]
    broken[norm] = np.zeros((width + 1,), "float32")
    broken["extra.weight"] = np.zeros((2, 3), "float32")
    with pytest.raises(CheckpointError) as error:
        convert(broken, config)
    line = str(error.value)
    assert f"expected {bias} for image_encoder.blocks.0.feed_forward.hidden.bias [" in line and f"found no {bias}" in line
    assert f"norm.gamma [{width}]" in line and f"{norm} [{width + 1}]" in line
    assert "left over extra.weight [2, 3]" in line and "\n" not in line
    with pytest.raises(CheckpointError, match="expected nothing more than the model has, found left over extra.weight"):
        convert({**state(), "extra.weight": np.zeros((2, 3))}, config)


def test_numbers_end_where_they_belong():
    state = blip_retrieval()
    model = convert_blip_retrieval(state, BLIP_CONFIG)
    fused = state["vision_model.encoder.layers.1.self_attn.qkv.weight"]
    attention = model.image_encoder.blocks[1].attention
    for index, part in enumerate((attention.query_projection, attention.key_projection, attention.value_projection)):
        np.testing.assert_array_equal(to_numpy(part.kernel), fused[12 * index : 12 * index + 12].T)
    # A picture with one lit pixel: what the convolution would make of it.
    image = np.zeros((1, 16, 16, 3), "float32")
    image[0, 9, 3, 2] = 1.0
    places = state["vision_model.embeddings.position_embedding"][0]
    expected = np.tile(state["vision_model.embeddings.patch_embedding.bias"], (4, 1)) + places[1:]
    expected[2] += state["vision_model.embeddings.patch_embedding.weight"][:, 2, 1, 3]
    np.testing.assert_allclose(to_numpy(model.image_encoder.patch_embedding(image))[0], expected, atol=1e-6)
    leading = state["vision_model.embeddings.class_embedding"][0, 0] + places[0]
    np.testing.assert_allclose(to_numpy(model.image_encoder.leading_tokens)[0], leading, atol=1e-6)
    # The softmax of two logits is the sigmoid of their difference.
    tokens = np.random.default_rng(2).normal(size=(3, 4, 8)).astype("float32")
    logits = tokens[:, 0] @ state["itm_head.weight"].T + state["itm_head.bias"]
    share = np.exp(logits[:, 1]) / np.exp(logits).sum(-1)
    np.testing.assert_allclose(to_numpy(keras.ops.sigmoid(model.matching_head(tokens))), share, atol=1e-6)


def test_blip_s_output_layer_may_be_its_own():
    state = blip_captioning()
    tied = convert_blip_captioning(state, BLIP_CONFIG)
    alone = {name: tensor for name, tensor in state.items() if ".predictions.decoder." not in name}
    ids = IDS[:, :3]
    patches = tied.image_encoder(IMAGES)
    expected = to_numpy(tied.caption_logits(patches, ids))
    np.testing.assert_array_equal(to_numpy(convert_blip_captioning(alone, BLIP_CONFIG).caption_logits(patches, ids)), expected)
    decoder = "text_decoder.cls.predictions.decoder.weight"
    apart = convert_blip_captioning({**state, decoder: 2.0 * state[decoder]}, BLIP_CONFIG)
    assert apart.captioning_head.vocabulary_size == 30 and tied.captioning_head.vocabulary_size is None
    bias = state["text_decoder.cls.predictions.bias"]
    np.testing.assert_allclose(to_numpy(apart.caption_logits(patches, ids)) - bias, 2.0 * (expected - bias), atol=1e-4)
    positions = {"text_decoder.bert.embeddings.position_ids": np.arange(9)[None]}
    convert_blip_captioning({**state, **positions}, BLIP_CONFIG)


def test_a_bias_of_the_similarity_is_read_where_there_is_one():
    model = convert_open_clip_coca({**coca(), "logit_bias": np.array(-7.0)}, COCA_CONFIG)
    assert float(to_numpy(model.contrastive_head.bias)) == -7.0
    np.testing.assert_allclose(to_numpy(model.contrastive_head.log_scale), coca()["logit_scale"])


def test_gains_of_branches_are_read_where_there_are_any():
    config, state = deepcopy(COCA_CONFIG), coca()
    for section in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        config[section]["ls_init_value"] = 0.1
    gains = {
        f"{norm.removesuffix('.ln_1.weight')}.{gain}.gamma": np.random.default_rng(3).normal(size=tensor.shape)
        for norm, tensor in state.items() if norm.endswith(".ln_1.weight") for gain in ("ls_1", "ls_2")
    }  # fmt: skip
    model = convert_open_clip_coca({**state, **gains}, config)
    layer = model.fusion.blocks[1].gains
    for ours, theirs in {
        "attention": "resblocks.1.ls_1", "between": "resblocks.1.ls_2", "cross": "cross_attn.1.ls_1",
        "feed_forward": "cross_attn.1.ls_2",
    }.items():  # fmt: skip
        np.testing.assert_allclose(to_numpy(layer[ours].gain), gains[f"text_decoder.{theirs}.gamma"], atol=1e-6)


def test_queries_that_embed_are_no_queries_that_are_read():
    model = convert_open_clip_coca(coca(), COCA_CONFIG)
    pooled = to_numpy(model.image_pooling(model.image_encoder(IMAGES)))
    expected = pooled[:, 0] @ coca()["visual.proj"]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(to_numpy(model.encode_image(IMAGES)), expected, atol=1e-5)
    direct = model.fusion(model.text_encoder(IDS, causal=True), pooled[:, 1:], causal=True).text
    expected = to_numpy(direct) @ coca()["text_decoder.text_projection"]
    np.testing.assert_allclose(to_numpy(model.caption_logits(model.image_encoder(IMAGES), IDS)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "section", "option", "value", "message"),
    [
        ("open_clip coca", "vision_cfg", "pool_type", "avg", "vision_cfg: pool_type.*expected 'tok', found 'avg'"),
        ("open_clip coca", "vision_cfg", "attentional_pool", "cascade", "attentional_pool.*found 'cascade'"),
        ("open_clip coca", "vision_cfg", "attentional_pool", False, "this is no CoCa"),
        ("open_clip coca", "text_cfg", "hf_model_name", "roberta-base", "hf_model_name.*expected None"),
        ("open_clip coca", "text_cfg", "no_causal_mask", True, "no_causal_mask"),
        ("open_clip coca", "multimodal_cfg", "width", 16, "widths that do not go together"),
        ("open_clip coca", "multimodal_cfg", "layers", 3, "no text_decoder.cross_attn.2"),
        ("blip captioning", "text_config", "hidden_act", "relu", "hidden_act"),
        ("blip retrieval", "text_config", "is_decoder", False, "is_decoder.*expected True, found False"),
        ("blip retrieval", "vision_config", "hidden_act", "mish", "hidden_act.*expected 'gelu' or 'quick_gelu'"),
        (
            "blip retrieval",
            "vision_config",
            "image_size",
            24,
            r"position \[9, 12\].*position_embedding \[1, 5, 12\]",
        ),
    ],
)
def test_what_is_not_converted_is_refused(family, section, option, value, message):
    convert, state, config, _ = FAMILIES[family]
    config = deepcopy(config)
    config[section][option] = value
    with pytest.raises((ConfigError, CheckpointError), match=message):
        convert(state(), config)
