"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from mmfusion.config import FUSION_STYLES, STYLE_OPTIONS, FusionConfig, dump_recipe, load_recipe, recipe_from_dict, save_recipe
from mmfusion.config.fusion_config import Kernel
from mmfusion.errors import ConfigError

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
SMALL = """
name: small
data: {image_size: 32}
model: {image_encoder: {patch_size: 8, dim: 32, num_heads: 2}, text_encoder: {dim: 32, num_heads: 2}}
fusion: {num_heads: 2}
train: {epochs: 5}
quick: {train: {epochs: 1}}
"""

TRANSLATES = (
    "data={image_size: 32, source_language: en, languages: [de]}", "model.heads=[captioning]", "objective.contrastive=null",
    "objective.matching=null", "train.monitor=val_loss",
)  # fmt: skip


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message.replace(str(path), "FILE")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True])
def test_every_recipe_and_its_quick_variant_is_valid(path, quick):
    recipe = load_recipe(path, quick=quick)
    assert recipe.quick, "every recipe has a quick variant"
    assert recipe.name == path.stem
    assert recipe_from_dict(recipe.model_dump(mode="json")) == recipe


def test_quick_shrinks_and_overrides_win(recipe_file):
    assert load_recipe(recipe_file).train.epochs == 5
    assert load_recipe(recipe_file, quick=True).train.epochs == 1
    assert load_recipe(recipe_file, ["train.epochs=7"], quick=True).train.epochs == 7


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.learning_rate=1e-3", lambda r: r.train.learning_rate == 1e-3),
        ("data.image_size=[16,24]", lambda r: r.data.size == (16, 24)),
        ("objective.captioning=null", lambda r: r.objective.captioning is None),
        ("objective.captioning.label_smoothing=0.2", lambda r: r.objective.captioning.label_smoothing == 0.2),
        ("model.heads=[contrastive,captioning]", lambda r: r.model.heads == ("contrastive", "captioning")),
        ("train={epochs: 2, batch_size: 4}", lambda r: (r.train.epochs, r.train.batch_size) == (2, 4)),
        ("data.path=photos=2.jsonl", lambda r: r.data.path == "photos=2.jsonl"),
        ("data.augment.flip=false", lambda r: r.data.augment.flip is False),
    ],
)
def test_overrides_reach_everything(recipe_file, override, read):
    more = ["objective.matching=null"] if "heads" in override else []
    assert read(load_recipe(recipe_file, [override, *more]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epocks=3", "unknown key [FILE: train.epocks]; did you mean train.epochs?"),
        ("trian.epochs=3", "unknown key [FILE: trian]; did you mean train?"),
        ("fusion.patch_size=3", "unknown key [FILE: fusion.patch_size]; did you mean model.image_encoder.patch_size?"),
        ("train.epochs=three", "wrong value [FILE: train.epochs]: expected an integer of at least 1, found 'three'"),
        ("train.epochs=1.5", "wrong value [FILE: train.epochs]: expected an integer of at least 1, found 1.5"),
        ("train.tensorboard=maybe", "wrong value [FILE: train.tensorboard]: expected true or false, found 'maybe'"),
        ("train.learning_rate=-1", "wrong value [FILE: train.learning_rate]: expected a number above 0, found -1"),
        (
            "data.image_size=abc",
            "wrong value [FILE: data.image_size]: expected an integer from 1 to 4096 or a list of 2 integers from 1 to 4096, "
            "found 'abc'",
        ),
        ("data.augment=true", "wrong value [FILE: data.augment]: expected a section of keys and values, found True"),
        ("data.languages=en", "wrong value [FILE: data.languages]: expected a list of one or more texts, found 'en'"),
        (
            "data.resize=squish",
            "wrong value [FILE: data.resize]: expected 'squash', 'crop' or 'pad', found 'squish'; did you mean squash?",
        ),
        (
            "model.image_encoder.num_heads=5",
            "impossible value [FILE: model.image_encoder.num_heads]: expected a divisor of dim 32, found 5",
        ),
        (
            "fusion.num_heads=5",
            "impossible value [FILE: fusion.num_heads]: expected a divisor of model.text_encoder.dim 32, found 5",
        ),
        (
            "model.image_encoder.patch_size=7",
            "impossible value [FILE: model.image_encoder.patch_size]: expected a divisor of data.image_size [32, 32], found 7",
        ),
        (
            "model.heads=[contrastive,captioning]",
            "impossible value [FILE: objective.matching]: expected none, since model.heads lacks matching; "
            "set objective.matching=null",
        ),
        (
            "decoding.max_tokens=90",
            "impossible value [FILE: decoding.max_tokens]: expected at most 31 (text.max_tokens - 1), found 90",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(recipe_file, override, message):
    assert refused(recipe_file, override) == message


def test_an_unknown_figure_names_the_known_ones(recipe_file):
    message = refused(recipe_file, "train.monitor=val_rsm")
    assert "train.monitor" in message and "val_rsum" in message and "found val_rsm" in message


def test_a_figure_of_a_missing_head_is_refused(recipe_file):
    overrides = ("model.heads=[contrastive]", "objective.matching=null", "objective.captioning=null", "train.monitor=val_cider_d")
    assert "train.monitor" in refused(recipe_file, *overrides)


def test_a_wrong_quick_variant_is_refused_at_once(recipe_file):
    recipe_file.write_text(SMALL.replace("epochs: 1}", "epochs: none}"), encoding="utf-8")
    assert "[FILE, quick variant: train.epochs]: expected an integer of at least 1, found 'none'" in refused(recipe_file)


def test_an_override_that_is_none(recipe_file):
    with pytest.raises(ConfigError, match=r"not an override \[train\]: expected section.key=value"):
        load_recipe(recipe_file, ["train"])
    with pytest.raises(ConfigError, match=r"unreadable value .* \[train\.epochs, line 1\]"):
        load_recipe(recipe_file, ["train.epochs=[1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: 1}\ntrain: {epochs: 2}\n", "a key stands twice [FILE, line 2]: found train; keep one of them"),
        ("train: [1\n", "not YAML [FILE, line 2]"),
        ("", "the recipe is empty [FILE]"),
        ("- 1\n", "not a recipe [FILE]: expected sections such as data, model, train, found list"),
    ],
)
def test_files_that_are_no_recipe(recipe_file, text, message):
    recipe_file.write_text(text, encoding="utf-8")
    assert refused(recipe_file).startswith(message)


def test_a_missing_file_names_the_nearest(recipe_file):
    with pytest.raises(ConfigError, match=r"No such file.*did you mean .*small\.yaml\?"):
        load_recipe(recipe_file.with_name("smal.yaml"))


def test_searched_paths_must_exist(recipe_file):
    tune = "tune={tuner: random, max_trials: 2, space: {train.learning_rat: {min: 0.001, max: 0.01}}}"
    assert "tune.space.train.learning_rat]; did you mean train.learning_rate?" in refused(recipe_file, tune)


def test_what_is_written_is_read_back(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, ["train.learning_rate=3e-5", "data.image_size=[16,24]"])
    save_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert "3.0e-05" in dump_recipe(recipe) or "3e-05" in dump_recipe(recipe)


def test_recipes_are_frozen(recipe_file):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(recipe_file).train.epochs = 3


def test_reading_a_recipe_needs_no_tensorflow():
    code = (
        "import sys; from mmfusion.config import load_recipe; "
        f"load_recipe({str(CONFIGS[0])!r}); "
        "print([name for name in ('tensorflow', 'keras', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_words_of_fusion_styles_are_those_of_the_classes():
    from mmfusion.fusion import STYLES

    common = set(FusionConfig(style="merged").options())
    assert set(STYLES) == set(FUSION_STYLES) == set(STYLE_OPTIONS)
    given = {"dim", "image_dim", "inner_options", "fusion", "norm_epsilon", "unroll"}
    for style, layer in STYLES.items():
        assert common | {"layer_scale", *STYLE_OPTIONS[style]} == keyword_only(layer) - given, style


@pytest.mark.parametrize("style", FUSION_STYLES)
@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_a_style_refuses_the_kernels_that_its_class_refuses(style, kernel):
    """Such as `merged` with `local`: a recipe says it before anything is built."""
    from mmfusion.fusion import STYLES

    def refuses(build):
        try:
            build()
        except ValueError as error:
            assert "kernel" in str(error)
            return True
        return False

    by_class = refuses(lambda: STYLES[style](dim=8, num_heads=2, kernel=kernel))
    assert refuses(lambda: FusionConfig(style=style, kernel=kernel)) == by_class
    if style != "resampler":
        assert refuses(lambda: FusionConfig(style="resampler", inner=style, kernel=kernel)) == by_class


WIDE = "model.image_encoder={dim: 36, num_heads: 3}", "fusion.num_heads=8"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.pooling_mlp_ratio=4"],
            "model.pooling_mlp_ratio]: expected none, since nothing is pooled by attention, found a number",
        ),
        (["fusion={style: recurrent, kernel: chunked}"], "fusion.kernel]: expected exact with style recurrent, found chunked"),
        ([*WIDE, "fusion.style=co"], "fusion.num_heads]: expected a divisor of model.image_encoder.dim 36, found 8"),
        ([*WIDE, "fusion.direction=both"], "fusion.num_heads]: expected a divisor of model.image_encoder.dim 36, found 8"),
        (
            [*WIDE, "model.contrastive_tokens=fusion", "model.image_pooling=attention"],
            "fusion.num_heads]: expected a divisor of model.image_encoder.dim 36, found 8",
        ),
        (
            ["model.image_encoder={dim: 32, num_heads: 16, rotary: 2d}"],
            "model.image_encoder.num_heads]: expected heads of a width that rotary divides by 4, found a width of 2",
        ),
        (
            ["model.image_encoder={dim: 30, num_heads: 2, positions: sinusoidal}"],
            "model.image_encoder.dim]: expected a multiple of 4 with sinusoidal positions, found 30",
        ),
        (
            [
                "fusion.direction=image", "model.heads=[matching]", "model.matching_tokens=text", "objective.contrastive=null",
                "objective.captioning=null", "train.monitor=val_loss",
            ],
            "fusion.direction]: expected text or both, since model.matching_tokens is text, found image",
        ),
        (
            ["model.heads=[contrastive]", "objective.matching=null", "objective.captioning=null", "fusion.style=gated"],
            "fusion.style]: expected nothing said, since no head of ['contrastive'] reads a fusion, found gated",
        ),
        (
            [*TRANSLATES, "translation={fusion: {num_heads: 5}}"],
            "translation.fusion.num_heads]: expected a divisor of model.text_encoder.dim 32, found 5",
        ),
        (
            [*TRANSLATES, "translation={fusion: {direction: image, num_heads: 2}}"],
            "translation.fusion.direction]: expected text or both, since the sentence is read, found image",
        ),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_built_is_no_recipe(recipe_file, overrides, message):
    assert message in refused(recipe_file, *overrides)


def keyword_only(layer: type) -> set[str]:
    parameters = inspect.signature(layer).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def test_options_of_another_style_are_told_with_the_style_that_has_them(recipe_file):
    message = refused(recipe_file, "fusion.num_queries=8")
    assert message == (
        "impossible value [FILE: fusion.num_queries]: expected none, since style cross has no num_queries "
        "(style qformer has), found 8"
    )
    recipe = load_recipe(recipe_file, ["fusion.style=qformer", "fusion.num_queries=8"])
    assert recipe.fusion.options()["num_queries"] == 8 and "cross_every" not in recipe.fusion.options()
    assert "another style" in refused(recipe_file, "fusion={style: resampler, inner: resampler}")
    inner = load_recipe(recipe_file, ["fusion={style: resampler, inner: gated, num_heads: 2, self_attention: false}"]).fusion
    assert inner.options()["inner_options"] == {"self_attention": False}
    assert "style gated has" in refused(recipe_file, "fusion={style: resampler, num_heads: 2, self_attention: false}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": {"validation_share": 1.0}}, r"data.validation_share\]: expected a number of at least 0 and below 1, found 1"),
        (
            {"model": {"heads": ["matching"]}, "objective": {"contrastive": None, "captioning": None},
             "train": {"monitor": "val_loss"}, "evaluation": {"rerank_top_k": 4}},
            "rerank_top_k.*expected 0, since model.heads lacks contrastive",
        ),
        (
            {"objective": {"contrastive": {"loss": "sigmoid", "label_smoothing": 0.1}}},
            "label_smoothing.*expected 0 with loss sigmoid",
        ),
        ({"objective": {"contrastive": {"loss": "hinge"}}}, "expected 'softmax' or 'sigmoid', found 'hinge'"),
    ],
)  # fmt: skip
def test_what_cannot_go_together(content, message):
    with pytest.raises(ConfigError, match=message):
        recipe_from_dict(content)


def test_recipes_that_come_with_it_are_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quickstart") == load_recipe(CONFIGS[0].with_name("quickstart.yaml"))
    with pytest.raises(ConfigError, match=r"no such recipe \[quickstrat\].*overfit.*did you mean quickstart\?"):
        load_recipe("quickstrat")
    Path("quickstart").write_text("name: mine")
    assert load_recipe("quickstart").name == "mine"
