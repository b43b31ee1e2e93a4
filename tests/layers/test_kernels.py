"""The chunked kernel equals the exact one in value and gradient, in memory linear in the sequence."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from gradients import BACKEND, graph, tensorflow_only, value_and_gradients
from keras import ops
from layer_reference import built, padding, stream, to_numpy

from mmfusion.layers import Attention
from mmfusion.layers.kernels import attention_weights, chunked_attention, exact, exact_attention, repeated
from mmfusion.layers.kernels.fused import fused_attention
from mmfusion.layers.kernels.tiled import tiled_attention
from mmfusion.layers.kernels.tiling import Split, Tile
from mmfusion.layers.masks import AttentionMask, causal_last

B, H, T, S, WIDTH = 2, 3, 6, 11, 4
PATTERN = np.random.default_rng(9).uniform(size=(B, T, S)) < 0.5
MASKS = {
    "none": None,
    "keys": AttentionMask(keys=padding([S, 4], S)),
    "causal": AttentionMask(last=causal_last(T, S)),
    "causal keys": AttentionMask(keys=padding([3, S], S)[:, ::-1], last=causal_last(T, S)),
    "pattern": AttentionMask(pattern=PATTERN),
    "all": AttentionMask(padding([S, 5], S), PATTERN, causal_last(T, S)),
    "one for all keys": AttentionMask(np.array([[True], [False]]), np.arange(T)[None, :, None] > 2, causal_last(T, S)),
    "nothing": AttentionMask(keys=np.zeros((1, S), bool)),
}


def heads(dtype: str = "float32") -> list[Any]:
    return [ops.cast(stream(B, H, n, WIDTH, seed=seed), dtype) for seed, n in enumerate((T, S, S))]


def value_and_gradient(kernel, dtype: str = "float32") -> list[np.ndarray]:
    tensors, upstream = heads(dtype), stream(B, H, T, WIDTH, seed=7)
    output = kernel(*tensors)
    assert output.dtype == dtype
    _, gradients = value_and_gradients(lambda *x: ops.sum(ops.cast(kernel(*x), "float32") * upstream), tensors)
    return [to_numpy(output), *gradients]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("size", [3, 5, 100])
def test_chunked_equals_exact(mask, size):
    chunked = value_and_gradient(lambda q, k, v: chunked_attention(q, k, v, mask, size))
    exact = value_and_gradient(lambda q, k, v: exact_attention(q, k, v, mask))
    for one, two in zip(chunked, exact, strict=True):
        np.testing.assert_allclose(one, two, atol=3e-6)


def formula(query, key, value, mask=None, cap=None):
    return ops.matmul(attention_weights(query, key, mask, cap), repeated(value, query.shape[1]))


@pytest.mark.parametrize(("tile", "mask", "cap"), [
    (Tile(None, None, None), "keys", None),
    (Tile(1, None, None), "pattern", None),
    (Tile(1, 3, None), "all", 0.5),
    (Tile(2, 2, 4), "causal keys", None),
    (Tile(None, 4, 3), "one for all keys", 0.5),
    (Tile(2, 100, 4), "nothing", None),
])  # fmt: skip
def test_tiles_with_shared_keys_equal_the_formula(tile, mask, cap):
    arrays = [stream(B, heads, n, WIDTH, seed=seed) for seed, (heads, n) in enumerate(((4, T), (2, S), (2, S)))]
    upstream = stream(B, 4, T, WIDTH, seed=7)
    results = []
    for kernel in (lambda *x: tiled_attention(*x, MASKS[mask], tile, cap), lambda *x: formula(*x, MASKS[mask], cap)):
        _, gradients = value_and_gradients(lambda *x, kernel=kernel: ops.sum(kernel(*x) * upstream), arrays)
        results.append([to_numpy(kernel(*map(ops.convert_to_tensor, arrays))), *gradients])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, atol=3e-6)


def test_exact_equals_the_formula_where_scores_are_many():
    arrays = [stream(2, heads, 300, WIDTH, seed=seed) for seed, heads in enumerate((4, 2, 2))]
    mask = AttentionMask(keys=padding([300, 7], 300), last=causal_last(300, 300))
    results = []
    for kernel in (exact_attention, formula):
        results.append(value_and_gradients(lambda *x, kernel=kernel: ops.sum(kernel(*x, mask) ** 2), arrays))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mask", ["none", "keys", "all", "nothing"])
@pytest.mark.parametrize("kept", [0, 10**9], ids=["computed again", "kept"])
def test_exact_in_training_equals_the_formula_on_both_sides_of_its_limits(mask, kept, monkeypatch):
    tiled = []
    monkeypatch.setattr(exact, "FEW", 0)
    monkeypatch.setattr(exact, "KEPT", kept)
    monkeypatch.setattr(exact, "tiled_attention", lambda *x: tiled.append(x) or tiled_attention(*x))
    ours = value_and_gradient(lambda q, k, v: exact_attention(q, k, v, MASKS[mask], training=True))
    theirs = value_and_gradient(lambda q, k, v: formula(q, k, v, MASKS[mask]))
    assert bool(tiled) == (BACKEND == "tensorflow" and not kept)
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, atol=3e-6)


@tensorflow_only
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 3e-2)])
def test_weights_are_kept_of_shared_keys_too(dtype, tolerance, monkeypatch):
    arrays = [ops.cast(stream(B, heads, n, WIDTH, seed=seed), dtype) for seed, (heads, n) in enumerate(((4, T), (2, S), (2, S)))]
    kept = []
    formula_of_it = exact._weights_kept
    monkeypatch.setattr(exact, "FEW", 0)
    monkeypatch.setattr(exact, "_weights_kept", lambda *x: kept.append(x) or formula_of_it(*x))
    results = []
    for kernel in (lambda *x: exact_attention(*x, MASKS["all"], training=True), lambda *x: formula(*x, MASKS["all"])):
        square = lambda *x, kernel=kernel: ops.sum(ops.cast(kernel(*x), "float32") ** 2)  # noqa: E731
        results.append(value_and_gradients(square, arrays))
    assert kept
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=tolerance)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(np.asarray(one, "float32"), np.asarray(two, "float32"), atol=10 * tolerance)


@pytest.mark.parametrize(("batch_size", "scores", "training", "few"), [
    (4, 2**18, False, True),
    (1, 2**18 + 1, False, False),
    (4, 2**24, True, True),
    (4, 2**24 + 1, True, False),
    (None, 2**19, True, True),
    (None, 2**19 + 1, True, False),
    (2**12, 2**18, True, True),  # as few as are never cut
])  # fmt: skip
def test_what_is_kept_in_training_is_bounded(batch_size, scores, training, few):
    assert exact._is_few(batch_size, scores, training) == few


@pytest.mark.parametrize("mask", [*(x for x in MASKS if x != "causal"), "square"])
def test_fused_equals_the_formula_where_there_is_one(mask):
    query, key, value = (stream(B, heads, S, WIDTH, seed=seed) for seed, heads in enumerate((4, 2, 2)))
    query = query if mask == "square" else query[:, :, :T]
    mask = AttentionMask(last=causal_last(S, S), causal=True) if mask == "square" else MASKS[mask]
    found = fused_attention(*map(ops.convert_to_tensor, (query, key, value)), mask)
    if BACKEND == "tensorflow":
        assert found is None
        return
    np.testing.assert_allclose(to_numpy(found), to_numpy(formula(query, key, value, mask)), atol=3e-6)
    ours, theirs = (
        value_and_gradients(lambda *x, kernel=kernel: ops.sum(kernel(*x, mask) ** 2), (query, key, value))[1]
        for kernel in (fused_attention, formula)
    )
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert fused_attention(query, key, value, mask, logit_cap=1.0) is None


def test_parts_are_of_one_size_near_the_wanted():
    for length in range(1, 60):
        for size in range(1, 20):
            parts = Split.of(length, size)
            assert 0 <= parts.extra < parts.number and parts.even == (parts.extra == 0)
            assert parts.whole or 2 * size <= 3 * parts.size <= 5 * size
    assert Split.of(0, 4) == (0, 1, 1) and Split.of(7, None) == (7, 1, 7)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 5e-2)])
def test_half_precision(dtype, tolerance):
    mask = MASKS["causal keys"]
    chunked = value_and_gradient(lambda q, k, v: chunked_attention(q, k, v, mask, 4), dtype)
    exact = value_and_gradient(lambda q, k, v: exact_attention(q, k, v, mask))
    for one, two in zip(chunked, exact, strict=True):
        np.testing.assert_allclose(one, two, atol=tolerance)


LARGE_MEANS = {
    "exact": (exact_attention, 1024, 250.0),  # whose tiles are taken where scores are more than 2 ** 18
    "chunked": (lambda q, k, v: chunked_attention(q, k, v, None, 1024), 3000, 250.0),
    "chunked with chunks that nobody sees": (
        lambda q, k, v: chunked_attention(q, k, v, AttentionMask(keys=np.arange(5000)[None] < 3000), 1024),
        5000,
        250.0,
    ),
    "tiles of all": (lambda q, k, v: tiled_attention(q, k, v, None, Tile(None, None, None)), 3000, 250.0),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("kernel", "length", "mean"), LARGE_MEANS.values(), ids=LARGE_MEANS)
def test_values_of_a_large_mean_in_half_precision(kernel, length, mean, dtype, tolerance):
    rows = 300
    query, key, value = (stream(1, 1, n, WIDTH, seed=seed) for seed, n in enumerate((rows, length, length)))
    arrays = [ops.cast(x, dtype) for x in (0.2 * query, key, value + mean)]
    q, k, v = (to_numpy(x).astype("float64") for x in arrays)
    weights = np.exp(q @ k.swapaxes(-1, -2) / WIDTH**0.5) * (np.arange(length) < 3000)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(to_numpy(kernel(*arrays)), weights @ v, rtol=tolerance)
    _, gradients = value_and_gradients(lambda *x: ops.mean(ops.cast(kernel(*x), "float32")) * rows * WIDTH, arrays)
    np.testing.assert_allclose(gradients[2], np.repeat(weights.sum(2)[..., None], WIDTH, axis=-1), rtol=4 * tolerance)
    assert all(np.isfinite(x).all() for x in gradients)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_chunked_in_a_graph(compiled):
    mask = MASKS["causal keys"]
    kernel = graph(lambda q, k, v: chunked_attention(q, k, v, mask, 4), jit_compile=compiled)
    found = value_and_gradient(kernel)
    exact = value_and_gradient(lambda q, k, v: exact_attention(q, k, v, mask))
    for one, two in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, two, atol=3e-6)


def test_large_logits_do_not_overflow():
    query, key, value = (x * 300.0 for x in heads())
    exact = exact_attention(query, key, value)
    found = chunked_attention(query, key, value, None, 2)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-2)


def test_weights_sum_to_one_or_zero():
    query, key, _ = heads()
    for name, mask in MASKS.items():
        total = to_numpy(attention_weights(query, key, mask)).sum(-1)
        seen = np.ones((B, T), bool) if mask is None or mask.sees_any(S) is None else to_numpy(mask.sees_any(S)) > 0
        expected = np.broadcast_to(seen[:, None], (B, H, T))
        np.testing.assert_allclose(total, expected, atol=1e-6, err_msg=name)


def test_one_key_is_no_reason_to_warn():
    query, key, _ = heads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(attention_weights(query, key[:, :, :1]), 1.0, rtol=1e-6)


@tensorflow_only
def test_one_key_in_a_graph_of_any_batch():
    import tensorflow as tf

    function = tf.function(attention_weights).get_concrete_function(
        tf.TensorSpec([None, H, T, 4]), tf.TensorSpec([None, H, 1, 4])
    )
    query, key = (np.random.default_rng(0).normal(size=(3, H, n, 4)).astype("float32") for n in (T, 1))
    weights = function(tf.constant(query), tf.constant(key))
    np.testing.assert_array_equal(weights, np.ones((3, H, T, 1), "float32"))


def sizes(function: Any) -> list[tuple[int, str, str]]:
    """Elements of every tensor of a traced function that is read, loops included, in descending order; others are never made."""
    found, waiting, seen = [], [function.graph], set()
    while waiting:
        graph = waiting.pop()
        for operation in graph.get_operations():
            read = [x for x in operation.outputs if x.consumers() or any(x is y for y in graph.outputs)]
            found += [(x.shape.num_elements() or 0, operation.type, operation.name) for x in read]
            for name in (x.name for x in operation.op_def.attr if x.type == "func"):
                body = operation.get_attr(name).name
                if body not in seen:
                    seen.add(body)
                    waiting.append(graph._get_function(body).graph)
    assert len(seen) >= 4, "the loops of value and gradient were not found"
    return sorted(found, reverse=True)


@tensorflow_only
def test_memory_of_chunked_is_linear():
    import tensorflow as tf

    batch, length, width, chunk = 2, 96, 8, 4
    layer = built(Attention(num_heads=2, kernel="chunked", chunk_size=chunk), (None, None, width))

    @tf.function
    def step(tokens, mask):
        with tf.GradientTape() as tape:
            tape.watch(tokens)
            output = layer(tokens, context_mask=mask, causal=True)
        return output, tape.gradient(output, [tokens, *layer.trainable_weights])

    function = step.get_concrete_function(tf.TensorSpec((batch, length, width)), tf.TensorSpec((batch, length), "bool"))
    # Logits of one chunk, B · H · T · C, and streams of B · T · D; a matrix of queries and keys would have length².
    limit = batch * length * max(2 * chunk, width)
    assert limit < length**2
    largest = sizes(function)[0]
    assert largest[0] <= limit, largest


@tensorflow_only
def test_memory_of_all_keys_at_once_is_that_of_chunks():
    import tensorflow as tf

    length, chunk, heads = 2048, 512, 2

    @tf.function
    def step(*arrays):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            output = chunked_attention(*arrays, None, chunk)
        return output, tape.gradient(output, arrays)

    function = step.get_concrete_function(*[tf.TensorSpec((3, heads, length, 8))] * 3)
    largest = sizes(function)[0]
    # As many logits of each head as a chunk squared, of all keys: more would be length², or of all three examples.
    assert largest[0] == heads * chunk**2 < length**2, largest


@pytest.mark.skipif(BACKEND != "jax", reason="asks JAX's compiler")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("differentiated", [False, True])
def test_compiled_memory_of_chunked_is_linear(causal, differentiated):
    import jax

    def temporaries(kernel: Any, length: int) -> int:
        mask = AttentionMask(last=causal_last(length, length), causal=True) if causal else None
        function = lambda q, k, v: kernel(q, k, v, mask)  # noqa: E731
        if differentiated:
            forward, function = function, jax.grad(lambda *x: ops.sum(forward(*x) ** 2), argnums=(0, 1, 2))
        heads = [jax.ShapeDtypeStruct((1, 1, length, 8), "float32")] * 3
        return jax.jit(function).lower(*heads).compile().memory_analysis().temp_size_in_bytes

    short, long = (temporaries(lambda *x: chunked_attention(*x, 64), length) for length in (512, 1024))
    assert long < 2.2 * short and long < 4 * 1024**2 / 4
    assert temporaries(exact_attention, 1024) > 4 * 1024**2  # which shows that a matrix would be seen


MEMORY_ON_TORCH = """
import sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from mmfusion.layers.kernels import chunked_attention
from mmfusion.layers.masks import AttentionMask, causal_last

class Largest(TorchDispatchMode):
    numel = 0
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        output = function(*arguments, **(options or {}))
        for x in output if isinstance(output, (tuple, list)) else [output]:
            self.numel = max(self.numel, x.numel() if isinstance(x, torch.Tensor) else 0)
        return output

for key_heads in (4, 2, 1):
    for causal in (False, True):
        mask = AttentionMask(last=causal_last(512, 512), causal=True) if causal else None
        heads = [torch.randn(1, n, 512, 8, requires_grad=True) for n in (4, key_heads, key_heads)]
        with Largest() as largest:
            chunked_attention(*heads, mask, 64).sum().backward()
        assert 4 * 512 * 8 <= largest.numel < 512 * 512, (key_heads, causal, largest.numel)
"""


@pytest.mark.slow
@tensorflow_only  # once: it starts Keras on torch
def test_memory_of_chunked_is_linear_on_torch():
    pytest.importorskip("torch", reason='needs torch: pip install "mmfusion[parity]"')
    environment = {**os.environ, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-c", MEMORY_ON_TORCH], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@tensorflow_only
def test_the_memory_test_sees_a_quadratic_kernel():
    import tensorflow as tf

    layer = built(Attention(num_heads=2, kernel="chunked", chunk_size=4), (None, None, 8))
    function = tf.function(lambda x, m: layer(x, context_mask=m, return_scores=True).output)
    with pytest.raises(AssertionError, match="were not found"):
        sizes(tf.function(lambda x: x @ x).get_concrete_function(tf.TensorSpec((96, 96))))
    graph = function.get_concrete_function(tf.TensorSpec((2, 96, 8)), tf.TensorSpec((2, 96), "bool")).graph
    assert max(x.shape.num_elements() or 0 for operation in graph.get_operations() for x in operation.outputs) >= 96**2
