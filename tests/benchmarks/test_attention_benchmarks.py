"""The benchmarks of attention run on tiny sizes, print lines of the contract and draw their figure."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import BENCHMARKS, run_script

KEYS = ("name", "value", "unit", "peer", "peer_value", "ratio", "device", "details")


def run(script: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """The lines of a script, run in a process of its own, by name."""
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"} | {"JAX_PLATFORMS": "cpu"}
    lines, _ = run_script(script, "--quick", *arguments, environment=environment)
    for line in lines:
        assert tuple(line) == KEYS and line["value"] > 0 and line["device"]
        if line["peer"] is not None:
            value, peer = line["value"], line["peer_value"]
            assert line["ratio"] == pytest.approx(peer / value if line["unit"] == "MiB" else value / peer, rel=1e-2)
    return {line["name"]: line for line in lines}


@pytest.mark.slow
def test_attention_beside_keras(tmp_path: Path) -> None:
    figure = tmp_path / "figures" / "growth.png"
    sizes = ("--kernels", "chunked", "keras", "--max-length", "64", "--memory-limit", "4")
    lines = run("attention.py", "--threads", "1", "--figure", str(figure), *sizes)
    assert {f"attention.training_step.16.{length}" for length in (17, 33)} <= lines.keys()
    assert {f"attention.chunked.{part}.132" for part in ("forward", "training_step")} <= lines.keys()
    memory = lines["attention.growth.chunked.64.memory"]
    assert memory["unit"] == "MiB" and memory["peer"] == "keras.layers.MultiHeadAttention"
    assert memory["peer_value"] == lines["attention.growth.keras.64.memory"]["value"]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_growth_prints_a_point_before_it_measures_the_next(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    attention = importlib.import_module("attention")
    printed: list[list[str]] = []

    def measured(kernel: str, length: int, options: Any) -> Any:
        printed.append([json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()])
        return attention.Point(kernel, length, 1.0 if kernel == "keras" else 0.5, 2**20)

    monkeypatch.setattr(attention, "run_point", measured)
    attention.main(["--parts", "growth", "--quick", "--kernels", "chunked", "keras"])
    name = "attention.growth"
    lines = [[], *([f"{name}.{point}.time", f"{name}.{point}.memory"] for point in ("keras.64", "keras.128", "chunked.64"))]
    assert printed == lines
    last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in last][2:] == [f"{name}.chunked.128.memory_beside_the_longest"]
    assert last[0]["ratio"] == 2.0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
def test_attention_on_jax() -> None:
    lines = run("attention_accelerator.py", "--precision", "float32")
    assert {f"attention.float32.layer.{kernel}.16.vs_keras.time" for kernel in ("exact", "chunked")} <= lines.keys()
    assert {f"attention.float32.kernel.{kernel}.24.vs_formula.memory" for kernel in ("tiles", "fused")} <= lines.keys()
