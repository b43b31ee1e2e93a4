"""The benchmarks of reranking and of the cost of a token run on tiny sizes, and print lines of the contract."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from benchmark_scripts import run_script
from untrained import untrained_run

from mmfusion.training import load_run
from mmfusion.training.callbacks import save_model

KEYS = ("name", "value", "unit", "peer", "peer_value", "ratio", "device", "details")
TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def run(script: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """The lines of a script by name."""
    lines, _ = run_script(script, *arguments, "--rounds", "1", "--threads", "1")
    assert all(tuple(line) == KEYS and line["device"] for line in lines)
    return {line["name"]: line for line in lines}


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(not TRANSFORMERS, reason='needs torch and transformers: pip install "mmfusion[parity]"')
def test_reranking_has_the_peers_scores() -> None:
    sizes = ("--images", "2", "--texts", "9", "--candidates", "5", "--published-pairs", "3", "--published-batch", "2")
    lines = run("reranking.py", "--tiny", *sizes, "--peer-batch", "2")
    assert list(lines) == ["reranking.blip.float32.published", "reranking.blip.float32.vision_once"]
    for line, pairs in zip(lines.values(), (6, 10), strict=True):
        details = line["details"]
        assert line["value"] > 0 and line["ratio"] == pytest.approx(line["peer_value"] / line["value"], rel=1e-2)
        assert details["pairs"] == 10 and details["peer_pairs"] == pairs and details["same_best"] == "2 of 2"
        assert details["largest_difference"] < 1e-4 < 1e-2 < details["spread_of_logits"]
        assert line["ratio"] == pytest.approx(details["ratio_range"][0], rel=0.1, abs=0.02)


@pytest.mark.slow
def test_the_cost_of_a_token_and_the_memory_of_its_caches() -> None:
    sizes = ("--images", "2", "--dim", "16", "--depth", "2", "--num-heads", "2", "--grid", "3", "--vocabulary", "40")
    lines = run("decoding_cost.py", "--lengths", "3", "5", "--beams", "1", "2", "--rooms", "same_room", *sizes)
    kinds = [f"decoding_cost.cross.{how}" for how in ("greedy", "beams_2")]
    assert list(lines) == [f"{kind}.{part}.{n}" for kind in kinds for part in ("same_room", "memory") for n in (3, 5)]
    for kind, beams in zip(kinds, (1, 2), strict=True):
        for length in (3, 5):
            details = lines[f"{kind}.memory.{length}"]["details"]
            # Two layers' keys and values in float32: of 9 patches for each image, of the room for each text.
            assert details["bytes"] == details["formula_bytes"] == 4 * 2 * 2 * 16 * (2 * 9 + 2 * beams * length)
            assert lines[f"{kind}.same_room.{length}"]["details"]["room"] == 5


@pytest.mark.slow
def test_an_early_exit_before_a_layer_that_changes_nothing_always_agrees(tmp_path) -> None:
    folder = untrained_run(tmp_path / "run", "captioning", fusion={"style": "cross", "depth": 3, "num_heads": 2})
    trained = load_run(folder)
    # What the last block adds to its input is nothing; what the second adds is a lot.
    for block, factor in ((trained.model.fusion.blocks[2], 0.0), (trained.model.fusion.blocks[1], 10.0)):
        for weight in block.trainable_weights:
            weight.assign(factor * weight)
    save_model(trained.model, trained.folder.best_model)
    lines, _ = run_script("early_exit.py", str(folder), "--images", "6", "--batch-size", "4")
    first, second = lines
    assert (first["name"], second["name"]) == ("early_exit.layer_1_of_3", "early_exit.layer_2_of_3")
    assert second["value"] == 1.0 > first["value"]
    # By hand, of width 16: a block of the text encoder, blocks of the fusion without the keys and values of patches,
    # normalisations, a row of positions, and 19 words, each with a bias, which are the output layer too.
    d, words = 16, 19
    square, normalisation = d * d + d, 2 * d
    feed_forward = 2 * 4 * d * d + 5 * d
    text = 4 * square + feed_forward + 2 * normalisation + normalisation + d + words * (d + 1)
    block = 6 * square + feed_forward + 3 * normalisation
    rest = normalisation + square + normalisation
    for line, layers in ((first, 1), (second, 2)):
        expected = (text + layers * block + rest) / (text + 3 * block + rest)
        assert line["details"]["cost_of_a_draft"] == pytest.approx(expected, abs=6e-4)
    cost = second["details"]["cost_of_a_draft"]
    assert second["details"]["tokens_drafted"] == 8
    assert second["details"]["times_as_fast_at_best"] == pytest.approx(9 / (8 * cost + 1), rel=0.01)
