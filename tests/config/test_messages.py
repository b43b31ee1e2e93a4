"""Values that cannot be, and the words in which that is said."""

from __future__ import annotations

import pytest

from mmfusion.config import RangeConfig, load_recipe, nearest_path, recipe_from_dict
from mmfusion.config.messages import option_paths
from mmfusion.errors import ConfigError


def refused(**sections) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe_from_dict(sections)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"image_size": [32]}}, "data.image_size]: expected an integer from 1 to 4096 or a list of 2 integers"),
        ({"data": {"image_size": [32, "a"]}}, "found [32, 'a']"),
        ({"data": {"image_size": 0}}, "data.image_size]: expected an integer from 1 to 4096 or"),
        (
            {"data": {"augment": {"crop_scale": [1]}}},
            "data.augment.crop_scale]: expected a list of 2 numbers from 0 to 1, found [1]",
        ),
        ({"data": {"mean": [0.5, 0.5]}}, "data.mean]: expected a list of 3 numbers, found [0.5, 0.5]"),
        ({"data": {"mean": ["a", "b", "c"]}}, "data.mean]: expected a list of 3 numbers, found ['a', 'b', 'c']"),
        ({"data": {"languages": [False]}}, "data.languages]: expected a list of one or more texts, found [False]"),
        ({"data": {"path": 5}}, "data.path]: expected text or null, found 5; write it in quotes"),
        (
            {"model": {"heads": ["contrastve"]}},
            "model.heads]: expected a list of one or more of 'contrastive', 'matching', 'masked_language' and 'captioning', "
            "found ['contrastve']; did you mean contrastive?",
        ),
        ({"train": {"clip_norm": 0}}, "train.clip_norm]: expected a number above 0 or null, found 0"),
        ({"train": {"warmup": 1}}, "train.warmup]: expected a number of at least 0 and below 1, found 1"),
        ({"train": {"epochs": None}}, "train.epochs]: expected an integer of at least 1, found null"),
        ({"train": None}, "train]: expected a section of keys and values, found null"),
        ({"objective": {"matching": True}}, "objective.matching]: expected a section of keys and values or null, found True"),
        ({"tune": {"space": {"fusion.depth": 3}}}, "tune.space.fusion.depth]: expected a section of keys and values, found 3"),
        (
            {"tune": {"space": {"fusion.depth": {"sampling": "lin"}}}},
            "tune.space.fusion.depth.sampling]: expected 'linear' or 'log'",
        ),
        ({"name": "a b"}, r"name]: expected text that matches ^[\w.-]+$, found 'a b'"),
        ({"seed": 2**32}, "seed]: expected an integer from 0 to 4294967295, found 4294967296"),
    ],
)
def test_the_whole_option_is_described(sections, message):
    assert refused(**sections).startswith("wrong value [recipe: ") and message in refused(**sections)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "epochs", True),
        ("train", "learning_rate", True),
        ("train", "learning_rate", "1e-3"),
        ("train", "epochs", "3"),
        ("train", "tensorboard", 1),
        ("train", "tensorboard", "true"),
        ("train", "learning_rate", float("inf")),
        ("train", "weight_decay", float("nan")),
        ("data", "mean", [True, 0.5, 0.5]),
        ("data", "image_size", True),
    ],
)
def test_nothing_is_guessed(section, key, value):
    assert f"{section}.{key}" in refused(**{section: {key: value}})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"decoding": {"min_tokens": 50}}, "decoding.min_tokens]: expected at most 31 (text.max_tokens - 1), found 50"),
        (
            {"decoding": {"min_tokens": 7, "max_tokens": 5}},
            "decoding.min_tokens]: expected at most 5 (decoding.max_tokens), found 7",
        ),
        ({"model": {"heads": ["matching", "matching"]}}, "model.heads]: expected each head once"),
        ({"objective": dict.fromkeys(["contrastive", "matching", "captioning"])}, "objective]: expected at least one term"),
        (
            {
                "model": {"heads": ["contrastive"]},
                "objective": {"matching": None, "captioning": None},
                "evaluation": {"rerank_top_k": 4},
            },
            "evaluation.rerank_top_k]: expected 0, since model.heads lacks matching",
        ),
        ({"data": {"source": "tfds"}}, "data.name]: expected the builder's name for source tfds"),
        ({"data": {"source": "csv"}}, "data.path]: expected a file or folder for source csv"),
        ({"data": {"std": [0, 1, 1]}}, "data.std]: expected positive numbers"),
        ({"data": {"augment": {"crop_scale": [1.0, 0.5]}}}, "data.augment.crop_scale]: expected 0 < smallest <= largest"),
        ({"data": {"augment": {"crop_ratio": [2.0, 0.5]}}}, "data.augment.crop_ratio]: expected 0 < narrowest <= widest"),
        ({"data": {"image_size": [224, 230]}}, "patch_size]: expected a divisor of data.image_size [224, 230], found 16"),
        ({"model": {"text_encoder": {"window": 3}}}, "text_encoder.window]: expected none, since kernel exact has no use for it"),
        (
            {"fusion": {"kernel": "linear", "attention_dropout": 0.1}},
            "attention_dropout]: expected none, since kernel lin",
        ),
        ({"model": {"image_encoder": {"num_key_value_heads": 3}}}, "num_key_value_heads]: expected a divisor of num_heads 4"),
        ({"fusion": {"style": "qformer", "depth": 1}}, "fusion.depth]: expected at least 2 with qformer"),
        ({"fusion": {"direction": "image"}}, "fusion.direction]: expected text or both, since the model writes or guesses words"),
        ({"model": {"text_encoder": {"dim": 10}}}, "model.text_encoder.num_heads]: expected a divisor of dim 10, found 4"),
        ({"train": {"monitor": "val_rsums"}}, "found val_rsums; did you mean val_rsum?"),
        ({"tune": {"objective": {"metric": "val_los"}}}, "tune.objective.metric]: expected one of val_loss"),
    ],
)
def test_combinations_that_cannot_be(sections, message):
    text = refused(**sections)
    assert text.startswith("impossible value [recipe: ") and message in text


@pytest.mark.parametrize(
    ("path", "space", "message"),
    [
        ("fusion.depth", {"min": 1, "max": 3}, "an integer of at least 1, found 1.754; set type: int"),
        ("fusion.depth", {"min": 0, "max": 3, "type": "int"}, "an integer of at least 1, found 0"),
        ("train.learning_rate", {"choices": [0.1, "a"]}, "a number above 0, found 'a'"),
        ("data.resize", {"choices": ["crop", "sqush"]}, "expected 'squash', 'crop' or 'pad', found 'sqush'"),
        ("train", {"choices": [1]}, "nothing to search over"),
        ("tune.max_trials", {"choices": [1]}, "nothing to search over"),
        ("train.rate", {"choices": [1]}, "unknown path"),
        ("train.epochs", {"choices": []}, "expected at least one value"),
        ("train.learning_rate", {"min": 0, "max": 1, "sampling": "log"}, "expected a positive number for log sampling"),
    ],
)
def test_searches_over_what_cannot_be(path, space, message):
    text = refused(tune={"space": {path: space}})
    assert message in text and f"tune.space.{path}" in text


def test_a_searched_choice_may_need_another():
    # 3 heads do not divide the width as it is, but another searched width may.
    space = {"fusion.num_heads": {"choices": [3, 4]}, "model.text_encoder.dim": {"choices": [256, 384]}}
    assert recipe_from_dict({"tune": {"space": space}}).tune is not None


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("train.epoch", "train.epochs"),
        ("trian", "train"),
        ("Train", "train"),
        ("epochs", "train.epochs"),
        ("objective.captioning.smoothing", "objective.captioning.label_smoothing"),
        ("train.patch_size", "model.image_encoder.patch_size"),
        ("zzz", None),
        ("objective.label_smoothing", "objective.contrastive.label_smoothing"),
    ],
)
def test_nearest(path, nearest):
    assert nearest_path(path) == nearest
    assert nearest is None or nearest in option_paths()


def test_other_problems_are_counted():
    text = refused(train={"epocks": 1, "batch": 2, "epochs": 0}, data={"image_size": "x"})
    assert text == "unknown key [recipe: train.epocks]; did you mean train.epochs?; 3 more problems"
    assert refused(data={"image_size": "x"}, seed=-1).endswith("; 1 more problem")


@pytest.mark.parametrize(
    ("overrides", "space"),
    [
        (["tune.space.train.learning_rate.max=0.1"], {"train.learning_rate": RangeConfig(min=0.001, max=0.1)}),
        (
            ["tune.space.train.learning_rate={choices: [1e-3, 2e-3]}"],
            {"train.learning_rate": RangeConfig(choices=(0.001, 0.002))},
        ),
        (["tune.space.train.learning_rate=null", "tune.space.seed={choices: [1, 2]}"], {"seed": RangeConfig(choices=(1, 2))}),
        (["tune.space={fusion.depth: {choices: [1]}}"], {"fusion.depth": RangeConfig(choices=(1,))}),
    ],
)
def test_ranges_can_be_overridden(overrides, space, tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text("tune: {space: {train.learning_rate: {min: 0.001, max: 0.01}}}\n")
    tune = load_recipe(path, overrides).tune
    assert tune is not None and tune.space == space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: 2", "a key that is no text [FILE, line 1]: found 1; write it in quotes"),
        ("train: {epochs: 1,\n  epochs: 2}", "a key stands twice [FILE, line 2]: found epochs"),
        ("name: 2024-99-99", "not YAML [FILE]: found month must be"),
        ("name: a\n---\nname: b", "not YAML [FILE, line 2]: found another document"),
        ("name: !!python/object:os.system x", "not YAML [FILE, line 1]"),
        ("train: &a {x: *a}", "not YAML [FILE"),
        ("name: 'x", "not YAML [FILE, line 1]: found unexpected end of stream"),
        ("name: a\0b", "not YAML [FILE]"),
        ("quick: {quick: {}}", "unknown key [FILE: quick.quick]"),
        ("quick: {train: {epocs: 1}}", "unknown key [FILE, quick variant: train.epocs]; did you mean train.epochs?"),
        ("quick: 3", "wrong value [FILE: quick]: expected a section of keys and values, found 3"),
    ],
)
def test_broken_files(text, message, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert str(caught.value).replace(str(path), "FILE").startswith(message) and "\n" not in str(caught.value)


def test_what_stands_in_quotes_stays_text(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: '1e5'\ntrain: {learning_rate: 1e-3, weight_decay: 2E-2}\nquick: {train.learning_rate: 1.5e-3}\n")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.train.learning_rate, recipe.train.weight_decay) == ("1e5", 0.001, 0.02)
    assert load_recipe(path, quick=True).train.learning_rate == 0.0015


def test_sections_can_be_shared(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model:\n  text_encoder: &small {dim: 64, depth: 1}\n  image_encoder: {<<: *small, depth: 2}\n")
    model = load_recipe(path).model
    assert (model.image_encoder.dim, model.image_encoder.depth, model.text_encoder.depth) == (64, 2, 1)
