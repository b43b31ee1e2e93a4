"""Kernels against `torch.nn.functional.scaled_dot_product_attention`, the layer against `torch.nn.MultiheadAttention`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradients import to_numpy, value_and_gradients
from keras import ops

from mmfusion.layers import Attention
from mmfusion.layers.kernels import chunked_attention, exact_attention
from mmfusion.layers.kernels.tiled import tiled_attention
from mmfusion.layers.kernels.tiling import Tile
from mmfusion.layers.masks import AttentionMask, causal_last

torch = pytest.importorskip("torch", reason='needs torch: pip install "mmfusion[parity]"')

B, T, S, WIDTH = 2, 7, 10, 4
KERNELS = {
    "exact": exact_attention,
    "chunked": lambda q, k, v, mask: chunked_attention(q, k, v, mask, 3),
    "tiled": lambda q, k, v, mask: tiled_attention(q, k, v, mask, Tile(1, 4, None)),
}
HEADS = {"one each": (4, 4), "grouped": (4, 2), "shared by all": (4, 1)}


def stream(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def torch_results(function: Any, arrays: list[np.ndarray], upstream: np.ndarray, weights: Any = ()) -> list[np.ndarray]:
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    output = function(*tensors)
    (output * torch.tensor(upstream)).sum().backward()
    return [output.detach().numpy(), *(x.grad.numpy() for x in (*tensors, *weights))]


@pytest.mark.parity
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("masked", ["none", "causal", "pattern"])
def test_scaled_dot_product_attention(kernel: str, heads: str, masked: str) -> None:
    query_heads, key_heads = HEADS[heads]
    length = T if masked == "causal" else S
    arrays = [stream(B, query_heads, T, WIDTH, seed=1), *(stream(B, key_heads, length, WIDTH, seed=seed) for seed in (2, 3))]
    upstream = stream(B, query_heads, T, WIDTH, seed=4)
    pattern = (np.random.default_rng(5).uniform(size=(B, T, length)) < 0.5) | (np.arange(length) == 0)
    mask = {"none": None, "causal": AttentionMask(last=causal_last(T, length)), "pattern": AttentionMask(pattern=pattern)}[masked]

    def ours(*x: Any) -> Any:
        return KERNELS[kernel](*x, mask)

    given = {"attn_mask": torch.tensor(pattern[:, None])} if masked == "pattern" else {"is_causal": masked == "causal"}
    expected = torch_results(
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **given), arrays, upstream
    )
    _, gradients = value_and_gradients(lambda *x: ops.sum(ours(*x) * upstream), arrays)
    found = [to_numpy(ours(*map(ops.convert_to_tensor, arrays))), *gradients]
    for index, (one, two) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-4 if index else 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("masked", [False, True])
def test_multihead_attention(crossed: bool, masked: bool) -> None:
    dim, context_dim, heads = 12, 10 if crossed else 12, 3
    length = S if crossed else T
    theirs = torch.nn.MultiheadAttention(dim, heads, kdim=context_dim, vdim=context_dim, batch_first=True)
    ours = Attention(num_heads=heads)
    ours.build((None, None, dim), (None, None, context_dim))
    values = [0.4 * stream(*weight.shape, seed=seed) for seed, weight in enumerate(ours.weights)]
    for weight, value in zip(ours.weights, values, strict=True):
        weight.assign(value)
    kernels, biases, (output, output_bias) = values[0:6:2], values[1:6:2], values[6:]
    with torch.no_grad():
        if crossed:
            for parameter, kernel in zip(
                (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight), kernels, strict=True
            ):
                parameter.copy_(torch.tensor(kernel.T))
        else:
            theirs.in_proj_weight.copy_(torch.tensor(np.concatenate([kernel.T for kernel in kernels])))
        theirs.in_proj_bias.copy_(torch.tensor(np.concatenate(biases)))
        theirs.out_proj.weight.copy_(torch.tensor(output.T))
        theirs.out_proj.bias.copy_(torch.tensor(output_bias))
    arrays = [stream(B, T, dim, seed=11), *([stream(B, length, context_dim, seed=12)] if crossed else [])]
    upstream = stream(B, T, dim, seed=13)
    mask = np.arange(length) < np.array([[length], [4]]) if masked else None
    if not crossed and mask is not None:
        # What becomes of padding is nobody's business.
        upstream = upstream * mask[..., None]
    padding = None if mask is None else torch.tensor(~mask)

    def call(query: Any, context: Any = None) -> Any:
        context = query if context is None else context
        return theirs(query, context, context, key_padding_mask=padding, need_weights=False)[0]

    expected = torch_results(call, arrays, upstream, [theirs.out_proj.weight])

    def own(*x: Any) -> Any:
        return ours(*x, context_mask=mask)

    _, gradients = value_and_gradients(lambda *x: ops.sum(own(*x) * upstream), arrays, [ours.output_projection.kernel])
    found = [to_numpy(own(*map(ops.convert_to_tensor, arrays))), *gradients[:-1], gradients[-1].T]
    real = slice(None) if crossed or mask is None else mask
    np.testing.assert_allclose(found[0][real], expected[0][real], atol=1e-5)
    for one, two in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-4)
