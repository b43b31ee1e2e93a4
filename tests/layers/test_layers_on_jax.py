"""The layers give on JAX what they give on TensorFlow, compiled, in value and gradient."""

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

from mmfusion.layers import Attention, AttentionPooling, PatchEmbedding, TokenEmbedding, TransformerBlock

B, T, S, D, DC = 2, 5, 7, 8, 6
KERNELS = {"exact": {"kernel": "exact"}, "chunked": {"kernel": "chunked", "chunk_size": 3}}


def fill(layer, *shapes):
    layer.build(*shapes)
    generator = np.random.default_rng(0)
    for weight in layer.trainable_weights:
        weight.assign(0.3 * generator.normal(size=weight.shape))
    return layer


def run(function, *tensors, differentiable: bool = True) -> list:
    """The function's output, compiled on JAX, and the gradient of its sum of squares."""
    if not differentiable:
        return [np.asarray(function(*tensors)).tolist()]
    if keras.backend.backend() == "jax":
        import jax

        output = jax.jit(function)(*tensors)
        gradient = jax.jit(jax.grad(lambda *x: (function(*x) ** 2).sum(), argnums=tuple(range(len(tensors)))))(*tensors)
    else:
        import tensorflow as tf

        tensors = [tf.constant(x) for x in tensors]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = function(*tensors)
            loss = tf.reduce_sum(output**2)
        gradient = tape.gradient(loss, tensors)
    return [np.asarray(x).tolist() for x in (output, *gradient)]


def compute() -> dict[str, list]:
    generator = np.random.default_rng(1)
    tokens, context = generator.normal(size=(B, T, D)).astype("float32"), generator.normal(size=(B, S, DC)).astype("float32")
    mask, context_mask = np.arange(T) < np.array([[T], [3]]), np.arange(S) < np.array([[4], [0]])
    pattern = generator.uniform(size=(B, T, S)) < 0.5
    filled = np.where(context_mask[..., None], context, np.nan).astype("float32")
    results = {}
    for name, kernel in KERNELS.items():
        options = {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "query_key_norm": True, **kernel}
        cross = fill(Attention(**options), (None, None, D), (None, None, DC))
        itself = fill(Attention(rotary=True, **options), (None, None, D))
        block = fill(
            TransformerBlock(num_heads=2, cross_attention=True, layer_scale=0.5, **kernel), (None, None, D), (None, None, DC)
        )
        results[f"{name} cross"] = run(lambda q, c, cross=cross: cross(q, c, context_mask), tokens, filled)
        results[f"{name} pattern"] = run(lambda q, c, cross=cross: cross(q, c, pattern, causal=True), tokens, context)
        results[f"{name} self"] = run(lambda q, itself=itself: itself(q, context_mask=mask, causal=True), tokens)
        results[f"{name} block"] = run(lambda q, c, block=block: block(q, mask, c, context_mask, causal=True), tokens, filled)

        def cached(q, itself=itself):
            cache, outputs = itself.init_cache(B, T + 1), []
            for t in range(T):
                output, _, cache = itself(q[:, t : t + 1], cache=cache)
                outputs.append(output)
            return keras.ops.concatenate(outputs, axis=1)

        # TensorFlow has no gradient of the update of a cache.
        results[f"{name} cached"] = run(cached, tokens, differentiable=False)
    pooling = fill(AttentionPooling(num_heads=2, num_queries=2), (None, None, DC))
    results["pooling"] = run(lambda x: pooling(x, context_mask), filled)
    patches = fill(PatchEmbedding(patch_size=2, dim=D), (None, 4, 6, 3))
    results["patches"] = run(patches, generator.normal(size=(B, 4, 6, 3)).astype("float32"))
    embedding = fill(TokenEmbedding(vocabulary_size=9, dim=D, max_length=7), (None, None))
    results["embedding"] = [np.asarray(embedding(np.array([[1, 2], [3, 8]]), offset=2)).tolist()]
    results["logits"] = run(embedding.logits, tokens)
    return results


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
def test_equals_tensorflow() -> None:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    on_jax, here = json.loads(answer.stdout), compute()
    assert on_jax.keys() == here.keys()
    for name, expected in here.items():
        for one, two in zip(on_jax[name], expected, strict=True):
            assert np.isfinite(two).all()
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=2e-5, err_msg=name)


if __name__ == "__main__":
    print(json.dumps(compute()))
