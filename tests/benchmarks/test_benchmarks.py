"""Every benchmark runs on tiny sizes and prints lines as the contract says, with torch and without; the twin is a twin."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_scripts import BENCHMARKS, run_script

TINY = (
    "data.image_size=32",
    "model.image_encoder.patch_size=8",
    "model.image_encoder.dim=24",
    "model.image_encoder.depth=2",
    "model.image_encoder.num_heads=2",
    "model.text_encoder.dim=16",
    "model.text_encoder.depth=2",
    "model.text_encoder.num_heads=2",
    "model.embedding_dim=8",
    "fusion.num_heads=2",
    "fusion.depth=1",
    "text.max_tokens=12",
    "text.vocabulary_size=300",
)
TORCH = importlib.util.find_spec("torch") is not None
PIPELINE_PEER = TORCH and all(importlib.util.find_spec(name) for name in ("tokenizers", "PIL"))
needs_torch = pytest.mark.skipif(not TORCH, reason='needs torch: pip install "mmfusion[parity]"')


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the scripts, to import from as they do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return BENCHMARKS


def run(script: str, *arguments: str, hide: tuple[str, ...] = (), folder: Path | None = None) -> tuple[list[dict[str, Any]], str]:
    """Runs a script in a process of its own; modules in `hide` cannot be imported there."""
    settings = [part for value in TINY for part in ("--set", value)]
    environment = dict(os.environ)
    if hide:
        assert folder is not None
        for name in hide:
            (folder / f"{name}.py").write_text("raise ImportError('hidden by the test')\n", encoding="utf-8")
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [environment.get("PYTHONPATH")])])
    return run_script(script, "--rounds", "2", "--device", "cpu", *settings, *arguments, environment=environment)


def check(lines: list[dict[str, Any]], *, peer: bool) -> None:
    """Every line keeps the contract."""
    assert lines
    names = [line["name"] for line in lines]
    assert len(set(names)) == len(names)
    for line in lines:
        assert tuple(line) == ("name", "value", "unit", "peer", "peer_value", "ratio", "device", "details")
        assert line["value"] > 0 and line["unit"].endswith("/s") and line["device"]
        if peer:
            assert line["ratio"] == pytest.approx(line["value"] / line["peer_value"], rel=1e-2)
            assert line["peer"].startswith("torch ")
            assert line["details"]["processor_time_ratio"] > 0
        else:
            assert line["peer"] is line["peer_value"] is line["ratio"] is None
            assert "mmfusion[parity,test]" in line["details"]["no_peer"]


ARGUMENTS = {
    "pipeline.py": ("--images", "32", "--batch-size", "8", "--workers", "1"),
    "training_step.py": (
        "--batch-size", "3", "--steps", "1", "--ours", "graph", "--peers", "eager", "--threads", "1",
        "--precision", "float32", "bfloat16",
    ),
    "encoding.py": (
        "--batch-sizes", "1", "3", "--items", "3", "--ours", "graph", "export", "--peers", "eager", "--threads", "1",
        "--photo-size", "40", "60",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("script", ARGUMENTS)
def test_a_benchmark_prints_lines_of_the_contract(script: str) -> None:
    if script != "pipeline.py" and not TORCH:
        pytest.skip("without torch: the next test")
    lines, _ = run(script, *ARGUMENTS[script])
    check(lines, peer=PIPELINE_PEER if script == "pipeline.py" else TORCH)


@pytest.mark.slow
@pytest.mark.parametrize("script", ARGUMENTS)
def test_without_torch_the_peers_are_null_and_it_says_what_to_install(script: str, tmp_path: Path) -> None:
    lines, messages = run(script, *ARGUMENTS[script], hide=("torch",), folder=tmp_path)
    check(lines, peer=False)
    assert 'pip install "mmfusion[parity,test]"' in messages


@pytest.mark.slow
def test_xla_is_a_line_of_its_own() -> None:
    lines, _ = run("training_step.py", "--batch-size", "3", "--steps", "1", "--ours", "graph", "xla", "--peers")
    assert [line["name"] for line in lines] == ["training_step.float32.graph", "training_step.float32.xla"]


@pytest.mark.slow
def test_the_pipeline_reads_a_folder_of_photos(tmp_path: Path) -> None:
    import tensorflow as tf

    rows = []
    for index in range(12):
        pixels = tf.random.stateless_uniform([40, 50 + index, 3], [index, 0], maxval=256, dtype=tf.int32)
        (tmp_path / f"{index}.jpg").write_bytes(tf.io.encode_jpeg(tf.cast(pixels, tf.uint8)).numpy())
        rows.append({"image": f"{index}.jpg", "captions": [f"picture {index}"], "split": "val" if index < 2 else "train"})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    lines, _ = run("pipeline.py", "--data", str(tmp_path), "--images", "8", "--batch-size", "4", "--no-peer")
    check(lines, peer=False)
    assert lines[0]["details"]["images_a_round"] == 8


@needs_torch
@pytest.mark.parity
@pytest.mark.parametrize("recipe", ["flickr8k_scratch", "quickstart"])
def test_the_twin_has_our_parameters_and_our_outputs(benchmarks: Path, recipe: str) -> None:
    import common
    import torch_model

    options = common.read_recipe(common.REPOSITORY / "configs" / f"{recipe}.yaml", TINY)
    ours = common.build_ours(options, "float32")
    _randomize(ours)
    twin = torch_model.build_twin(options, ours)
    assert torch_model.parameter_count(twin) == ours.count_params()
    differences = torch_model.output_differences(ours, twin, common.random_batch(options, 5, seed=1))
    assert set(differences) == {"image_embedding", "text_embedding", "match_logits", "caption_logits"}
    assert max(differences.values()) < 1e-4


@needs_torch
@pytest.mark.parity
def test_the_twin_has_our_losses_and_gradients(benchmarks: Path) -> None:
    import common
    import tensorflow as tf
    import torch
    import torch_model

    from mmfusion.training.objectives import build_objectives
    from mmfusion.training.trainer import Trainer

    no_dropout = ("fusion.dropout=0", "model.text_encoder.dropout=0", "model.image_encoder.stochastic_depth=0")
    # With two pairs each has one possible negative, so that nothing is left to chance.
    recipe = common.read_recipe(common.RECIPE, [*TINY, *no_dropout])
    batch = common.random_batch(recipe, 2, seed=3)
    ours = common.build_ours(recipe, "float32")
    _randomize(ours)
    twin = torch_model.build_twin(recipe, ours).train()
    with tf.GradientTape() as tape:
        tensors = {name: tf.constant(value) for name, value in batch.items()}
        loss, figures = Trainer(ours, build_objectives(recipe)).compute_losses(tensors, training=True)
    gradients = tape.gradient(loss, [weight.value for weight in ours.trainable_weights])
    norm = tf.linalg.global_norm([tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None])
    losses = torch_model.compute_losses(twin, torch_model.torch_batch(batch), recipe.objective)
    torch_model.weighted_sum(losses, recipe.objective).backward()
    their_norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    for name, value in losses.items():
        np.testing.assert_allclose(float(figures[f"{name}_loss"][0]), float(value.detach()), rtol=1e-4)
    np.testing.assert_allclose(float(norm), float(their_norm), rtol=1e-3)


@pytest.mark.parity
@pytest.mark.skipif(not PIPELINE_PEER, reason='needs torch, tokenizers and Pillow: pip install "mmfusion[parity,test]"')
def test_the_peers_pipeline_makes_our_tokens_and_our_pixels(benchmarks: Path, tmp_path: Path) -> None:
    import common
    import pipeline
    import tensorflow as tf
    import torch_data

    from mmfusion.training.experiment import image_transform, prepare_tokenizer

    plain = ("data.source=builtin", "data.augment.flip=false", "data.augment.crop_scale=[1,1]", "data.augment.color=0")
    recipe = common.read_recipe(common.RECIPE, [*TINY, *plain])
    source = pipeline.open_data(recipe, 24)
    tokenizer = prepare_tokenizer(recipe, source, tmp_path / "vocab.txt")
    rows = pipeline.peer_rows(source, "train")
    photos = torch_data.Photos(rows, pipeline.peer_preparation(recipe))
    items = [photos[index] for index in range(len(rows))]
    batch = torch_data.Collate(str(tmp_path / "vocab.txt"), recipe.text.max_tokens, recipe.text.lowercase)(items)
    tokens = tokenizer([caption for _, caption, _ in items])
    np.testing.assert_array_equal(batch["token_ids"].numpy(), tokens.token_ids.numpy())
    np.testing.assert_array_equal(batch["token_mask"].numpy(), tokens.token_mask.numpy())
    transform = image_transform(recipe)
    ours = np.stack([transform(tf.constant(example.image.read())).numpy() for example in source.examples("train")])
    # In steps of 8 bits. PIL rounds and clips between its two passes, which shows at the sharp edges of icons.
    steps = np.abs(batch["image"].permute(0, 2, 3, 1).numpy() - ours) * 127.5
    assert steps.max() <= 12 and steps.mean() <= 0.2


def _randomize(model: Any) -> None:
    random = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(weight.numpy() + 0.1 * random.normal(size=weight.shape).astype(np.float32))
