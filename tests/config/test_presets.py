"""Presets: what a word in a file adds, and what it replaces on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmfusion.config import FROZEN, PRESET_NAMES, PRESETS, SIZES, dump_recipe, load_recipe, recipe_from_dict, save_recipe
from mmfusion.config.preset_merging import replaced
from mmfusion.errors import ConfigError

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
# The table of the design: style, heads, terms of the loss.
TABLE = {
    "clip": (None, "contrastive", "contrastive"),
    "siglip": (None, "contrastive", "contrastive"),
    "coca": ("cross", "contrastive captioning", "contrastive captioning"),
    "albef": ("cross", "contrastive matching masked_language", "contrastive matching masked_language"),
    "blip": ("cross", "contrastive matching captioning", "contrastive matching captioning"),
    "vilt": ("merged", "matching masked_language", "matching masked_language"),
    "vilbert": ("co", "matching masked_language", "matching masked_language"),
    "lxmert": ("co", "matching masked_language", "matching masked_language"),
    "bottleneck": ("bottleneck", "contrastive matching captioning", "contrastive matching captioning"),
    "flamingo": ("resampler", "captioning", "captioning"),
    "blip2": ("qformer", "contrastive matching captioning", "contrastive matching captioning"),
    "prefix": ("merged", "captioning", "captioning"),
    "show_attend_tell": ("recurrent", "captioning", "captioning"),
}


def test_names_are_those_of_the_data():
    assert set(PRESET_NAMES) == set(PRESETS) == set(TABLE)


@pytest.mark.parametrize("name", PRESET_NAMES)
@pytest.mark.parametrize("quick", [False, True])
def test_each_replaces_the_composition_of_a_recipe_and_keeps_its_sizes(name, quick, tmp_path):
    plain, recipe = load_recipe(QUICKSTART, quick=quick), load_recipe(QUICKSTART, [f"preset={name}"], quick=quick)
    style, heads, terms = TABLE[name]
    assert recipe.preset == name and set(recipe.model.heads) == set(heads.split()) and set(recipe.terms) == set(terms.split())
    assert style is None or recipe.fusion.style == style
    assert (recipe.objective.momentum is not None) == (name == "albef")
    assert recipe.model.image_encoder.dim == plain.model.image_encoder.dim and recipe.data == plain.data
    assert recipe.train.model_dump(exclude={"monitor"}) == plain.train.model_dump(exclude={"monitor"})
    assert recipe.train.monitor == ("val_rsum" if "contrastive" in heads else "val_loss")
    assert recipe.tune.objective.metric == recipe.train.monitor
    assert bool(recipe.evaluation.rerank_top_k) == ({"contrastive", "matching"} <= set(heads.split()))
    assert ("objective.captioning.weight" in recipe.tune.space) == ("captioning" in terms)
    # What a run keeps is read back as it is, whatever the preset may say then.
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_each_stands_beneath_a_file(name):
    recipe = recipe_from_dict({"preset": name, "train": {"epochs": 3}, "fusion": {"depth": 5}})
    assert set(recipe.model.heads) == set(TABLE[name][1].split()) and set(recipe.terms) == set(TABLE[name][2].split())
    assert (recipe.train.epochs, recipe.fusion.depth) == (3, 5)
    assert recipe_from_dict(recipe.model_dump(mode="json")) == recipe


def test_what_a_file_sets_counts_before_its_preset():
    recipe = recipe_from_dict(
        {"preset": "albef", "fusion": {"style": "gated"}, "objective": {"momentum": None, "matching": {"weight": 0.5}}}
    )
    assert recipe.fusion.style == "gated" and recipe.objective.momentum is None and recipe.objective.matching.weight == 0.5
    assert recipe.objective.masked_language is not None


def test_other_changes_on_the_command_line_count_after_the_preset():
    recipe = load_recipe(QUICKSTART, ["fusion.num_latents=6", "preset=flamingo", "train.monitor=val_cider_d"])
    assert (recipe.fusion.num_latents, recipe.fusion.inner, recipe.train.monitor) == (6, "gated", "val_cider_d")
    assert load_recipe(QUICKSTART, ["preset=null"]) == load_recipe(QUICKSTART)


def test_layers_that_an_encoder_loses_go_to_the_fusion():
    def depths(*overrides):
        recipe = load_recipe(QUICKSTART, overrides)
        return recipe.model.image_encoder.depth, recipe.model.text_encoder.depth, recipe.fusion.depth

    assert depths() == (4, 2, 1)
    assert depths("preset=vilt") == (0, 0, 5)
    assert depths("preset=prefix") == (4, 0, 3)
    assert depths("preset=show_attend_tell") == (4, 0, 1)
    assert depths("preset=blip2") == (4, 2, 2)
    assert depths("preset=vilt", "fusion.depth=3") == (0, 0, 3)


def test_a_run_of_one_preset_becomes_another(tmp_path):
    run = tmp_path / "recipe.yaml"
    run.write_text(dump_recipe(load_recipe(QUICKSTART, ["preset=vilt"])))
    clip = load_recipe(run, ["preset=clip"])
    assert clip.model.heads == ("contrastive",) and clip.model.image_encoder.depth > 0
    assert load_recipe(run, ["preset=flamingo"]).fusion.inner == "gated"


def test_a_quick_variant_and_ranges_follow():
    content = {
        "fusion": {"style": "qformer", "num_queries": 4},
        "evaluation": {"rerank_top_k": 4},
        "tune": {"space": {"fusion.num_queries": {"choices": [2, 4]}, "model.image_encoder.depth": {"choices": [1, 2]}}},
        "quick": {"model": {"image_encoder": {"depth": 1}}, "evaluation.rerank_top_k": 2, "train": {"monitor": "val_rsum"}},
    }
    changed = replaced(content, "vilt")
    assert (
        changed["tune"]["space"] == {} and "num_queries" not in changed["fusion"] and changed["evaluation"]["rerank_top_k"] == 0
    )
    assert changed["quick"] == {
        "model": {"image_encoder": {}}, "evaluation": {"rerank_top_k": 0}, "train": {"monitor": "val_loss"},
    }  # fmt: skip
    assert content["fusion"]["num_queries"] == 4
    recipe_from_dict(changed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"preset": "blip3"}, "preset]: expected 'clip', 'siglip'.*did you mean blip"),
        ({"preset": 3}, "preset]: expected 'clip'"),
        ({"quick": {"preset": "clip"}}, "quick.preset]; a quick variant has none of its own"),
        ({"tune": {"space": {"preset": {"choices": ["clip", "blip"]}}}}, "nothing to search over"),
        ({"preset": "vilt", "evaluation": {"rerank_top_k": 4}}, "rerank_top_k]: expected 0, since model.heads lacks contrastive"),
        ({"preset": "vilt", "fusion": {"direction": "both"}}, r"style merged has no direction \(style cross has\)"),
    ],
)
def test_what_cannot_be_is_told(content, message):
    with pytest.raises(ConfigError, match=message) as caught:
        recipe_from_dict(content)
    assert "\n" not in str(caught.value)


def test_a_style_that_a_preset_has_no_use_for_is_refused(tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text("preset: clip\nfusion: {style: qformer}\n")
    for recipe, overrides, message in (
        (
            QUICKSTART,
            ["preset=clip", "fusion.style=qformer"],
            "no head of preset clip reads a fusion .*fusion.style.*found qformer",
        ),
        (QUICKSTART, ["fusion.style=cross", "preset=siglip"], "no head of preset siglip reads a fusion"),
        (file, [], "no head of preset clip reads a fusion"),
        (
            QUICKSTART,
            ["preset=vilt", "fusion.style=cross"],
            "image_encoder and text_encoder without layers.*expected merged, found",
        ),
        (
            QUICKSTART,
            ["preset=vilt", "fusion.style=co", "model.image_encoder.depth=2"],
            "vilt leaves text_encoder without layers",
        ),
        (file, ["preset=prefix"], None),
    ):
        if message is None:
            assert load_recipe(recipe, overrides).fusion.style == "merged"
            continue
        with pytest.raises(ConfigError, match=message):
            load_recipe(recipe, overrides)
    depths = ("model.image_encoder.depth=2", "model.text_encoder.depth=0")
    meant = load_recipe(QUICKSTART, ["preset=vilt", "fusion.style=cross", *depths])
    assert (meant.fusion.style, meant.model.image_encoder.depth, meant.model.text_encoder.depth) == ("cross", 2, 0)
    # Sizes are no style: a script that sets them for every preset may go on doing so.
    assert load_recipe(QUICKSTART, ["preset=clip", "fusion.depth=3", "fusion.num_heads=2"]).model.heads == ("contrastive",)


def test_what_papers_freeze_is_said_and_not_done():
    for name, patterns in FROZEN.items():
        recipe = load_recipe(QUICKSTART, [f"preset={name}"])
        assert recipe.train.freeze == ()
        # As `mmfusion presets` writes it for a command line.
        assert load_recipe(QUICKSTART, [f"preset={name}", f"train.freeze={json.dumps(patterns)}"]).train.freeze == patterns


def test_sizes_are_recipes():
    for name in PRESETS:
        for size in SIZES.values():
            recipe = recipe_from_dict(replaced(size, name))
            assert recipe.model.image_encoder.dim == size["model"]["image_encoder"]["dim"]
