"""`build_model` and presets: every style with every head, from a recipe's words."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized

from mmfusion.config import FUSION_STYLES, STYLE_OPTIONS, recipe_from_dict
from mmfusion.errors import ConfigError
from mmfusion.models import ImageTextModel, build_model

TOWER = {"dim": 16, "depth": 1, "num_heads": 2}
OWN = {
    "direction": "both", "norm_first": False, "context_norm": True, "feed_forward_between": True, "activation": "quick_gelu",
    "shared_cross": True, "num_bottlenecks": 2, "self_attention": False,
    "num_queries": 3, "cross_every": 1, "num_latents": 3, "resampler_depth": 1, "inner": "gated", "attention": "multiplicative",
}  # fmt: skip
IDS = {"vocabulary_size": 30, "start_id": 2, "end_id": 3, "pad_id": 0, "mask_id": 4, "forbidden_ids": (1,)}
BATCH = {
    "image": np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype("float32"),
    "token_ids": np.array([[2, 7, 8, 3, 0], [2, 9, 5, 6, 3]], "int32"),
    "token_mask": np.array([[True] * 4 + [False], [True] * 5]),
}


def recipe(**sections):
    heads = ["contrastive", "matching", "masked_language", "captioning"]
    content = {
        "data": {"image_size": [16, 24]},
        "text": {"max_tokens": 5},
        "model": {"heads": heads, "embedding_dim": 8, "image_encoder": {**TOWER, "patch_size": 8}, "text_encoder": TOWER},
        "fusion": {"depth": 2, "num_heads": 2},
    }
    return recipe_from_dict({name: {**content.get(name, {}), **sections.get(name, {})} for name in {*content, *sections}})


@pytest.mark.parametrize("style", FUSION_STYLES)
def test_every_style_with_every_head(style):
    options = {option: OWN[option] for option in STYLE_OPTIONS[style]}
    model = randomized(build_model(recipe(fusion={"style": style, **options}), **IDS))
    for option, value in options.items():
        assert getattr(model.fusion, option) == value
    outputs = model(BATCH)
    assert set(outputs) == {
        "image_embedding", "text_embedding", "match_logits", "masked_language_logits", "caption_logits",
    }  # fmt: skip
    assert all(np.isfinite(keras.ops.convert_to_numpy(value)).all() for value in outputs.values())
    maps = keras.ops.convert_to_numpy(model.attend(BATCH["image"], BATCH["token_ids"], BATCH["token_mask"]))
    assert maps.shape[0] == 2 and maps.shape[3:] == (5, 2, 3)
    of_words = maps.sum((-1, -2)).transpose(0, 3, 1, 2)[BATCH["token_mask"]]
    np.testing.assert_allclose(of_words[:, -1], 1.0, atol=1e-4)
    copy = ImageTextModel.from_config(model.get_config())
    assert [tuple(weight.shape) for weight in copy.weights] == [tuple(weight.shape) for weight in model.weights]
    assert copy.fusion.get_config() == model.fusion.get_config()


def test_options_of_the_model_reach_its_parts():
    words = {
        "image_pooling": "attention",
        "text_pooling": "last",
        "causal_text": True,
        "image_queries": 3,
        "pooling_mlp_ratio": 3.0,
    }
    changed = recipe(fusion={"modality_dropout": 0.1}, objective={"contrastive": {"loss": "sigmoid"}})
    changed = changed.model_copy(update={"model": changed.model.model_copy(update=words)})
    model = build_model(changed, **IDS)
    assert model.causal_text and model.image_pooling.num_queries == 3 and model.modality_dropout.rate == 0.1
    assert model.contrastive_head.image_pooler.num_heads == 2 and model.contrastive_head.text_pooling == "last"
    assert model.contrastive_head.image_pooler.mlp_ratio == 3.0
    assert float(model.contrastive_head.bias) == -10.0
    assert model.masked_language_head.special_ids == (0, 1, 2, 3)
    with pytest.raises(ConfigError, match=r"no \[MASK\]"):
        build_model(changed, **{**IDS, "mask_id": None})


def test_presets_by_name_and_size():
    model = ImageTextModel.from_preset("vilt", vocabulary_size=20, image_size=(16, 32), size="tiny", fusion={"num_heads": 2})
    assert model.heads == ("matching", "masked_language") and type(model.fusion).__name__ == "MergedFusion"
    assert (model.image_encoder.depth, model.text_encoder.depth, model.fusion.depth) == (0, 0, 3)
    assert model.image_encoder.grid == (1, 2) and model.fusion.num_heads == 2
    for options, message in (
        ({"name": "vlit"}, "unknown preset.*found 'vlit'"),
        ({"name": "vilt", "size": "huge"}, "unknown size.*tiny, small, base"),
        ({"name": "vilt", "fusion": {"style": "crss"}}, "preset vilt: fusion.style.*did you mean cross"),
    ):
        with pytest.raises(ConfigError, match=message):
            ImageTextModel.from_preset(**{"vocabulary_size": 20, "image_size": 16, "size": "tiny", **options})
