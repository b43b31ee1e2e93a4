"""Decoding finds on JAX what it finds on TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from mmfusion.decoding import beam_search, greedy


def compute() -> dict[str, list]:
    """Texts and scores of a random recurrent model, eagerly and, where the backend is JAX, compiled."""
    generator = np.random.default_rng(0)
    recurrent, embedding, output = (generator.normal(size=size).astype("float32") for size in ((6, 6), (7, 6), (6, 7)))
    features = generator.normal(size=(4, 6)).astype("float32")
    options = {"batch_size": 4, "start_id": 1, "end_id": 2, "pad_id": 0, "max_tokens": 6, "min_tokens": 1}

    def step(token_ids, state):
        embedded = ops.take(ops.convert_to_tensor(embedding), token_ids, axis=0)
        hidden = ops.tanh(ops.matmul(state["hidden"], recurrent) + embedded + state["image"])
        return ops.matmul(hidden, output), {**state, "hidden": hidden, "position": state["position"] + 1}

    def decode(features):
        state = {"hidden": ops.zeros_like(features), "image": features, "position": 0, "unused": None}
        results = {"greedy": greedy(step, state, **options)}
        for early_stopping in (True, False):
            results[f"beam {early_stopping}"] = beam_search(
                step, state, beam_size=3, length_penalty=0.8, early_stopping=early_stopping, **options
            )
        return {name: tuple(result) for name, result in results.items()}

    results = {f"eager {name}": value for name, value in decode(ops.convert_to_tensor(features)).items()}
    if keras.backend.backend() == "jax":
        import jax

        results |= {f"compiled {name}": value for name, value in jax.jit(decode)(features).items()}
    return {name: [np.asarray(part).tolist() for part in value] for name, value in results.items()}


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
def test_equals_tensorflow() -> None:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    on_jax, here = json.loads(answer.stdout), compute()
    assert len(on_jax) == 2 * len(here)
    for name, (tokens, scores, lengths) in on_jax.items():
        expected = here[name.replace("compiled", "eager")]
        assert (tokens, lengths) == (expected[0], expected[2])
        np.testing.assert_allclose(scores, expected[1], rtol=1e-4)


if __name__ == "__main__":
    print(json.dumps(compute()))
