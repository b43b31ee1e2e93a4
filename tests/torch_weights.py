"""Our layers with the weights of a torch module, and whether they then do the same: output and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
from gradients import to_numpy, value_and_gradients

torch = pytest.importorskip("torch", reason="needs torch")


def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> torch.nn.Module:
    """Every weight a random value of its own; vectors keep their initial zeros and ones below it. In eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            start = weight if weight.dim() < 2 else 0.0
            weight.copy_(start + scale * torch.randn(weight.shape, generator=generator))
    return module.eval()


class Pairs:
    """Pairs of our weights and theirs: each is copied when it is added, and their gradients are compared at the end."""

    def __init__(self) -> None:
        self._pairs: list[tuple[keras.Variable, torch.Tensor, Callable[[np.ndarray], np.ndarray]]] = []

    def weight(self, ours: keras.Variable, theirs: torch.Tensor, form: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> None:
        """One weight; `form` makes ours of theirs, of its value and of its gradient."""
        ours.assign(form(theirs.detach().numpy()).reshape(ours.shape))
        self._pairs.append((ours, theirs, form))

    def dense(self, ours: keras.layers.Dense, theirs: torch.nn.Linear) -> None:
        """A projection."""
        self.weight(ours.kernel, theirs.weight, np.transpose)
        assert ours.use_bias == (theirs.bias is not None)
        if ours.use_bias:
            self.weight(ours.bias, theirs.bias)

    def norm(self, ours: Any, theirs: Any) -> None:
        """A layer normalisation, or one by root mean square."""
        self.weight(ours.gamma if hasattr(ours, "gamma") else ours.scale, theirs.weight)
        if getattr(theirs, "bias", None) is not None:
            self.weight(ours.beta, theirs.bias)
        assert ours.epsilon == getattr(theirs, "eps", getattr(theirs, "variance_epsilon", None))

    def attention(self, ours: Any, *theirs: torch.nn.Linear) -> None:
        """An `Attention`: projections of query, key, value and output."""
        names = ("query_projection", "key_projection", "value_projection", "output_projection")
        for name, linear in zip(names, theirs, strict=True):
            self.dense(getattr(ours, name), linear)

    def assert_same(
        self,
        ours: Callable[..., Any],
        theirs: Callable[..., Any],
        arrays: Sequence[np.ndarray],
        real: np.ndarray | None = None,
        output: float = 1e-5,
        gradient: float = 1e-4,
    ) -> None:
        """Output, and gradients by each array and each weight, of a random weighted mean of the output.

        Args:
            ours: Of the arrays; returns one tensor.
            theirs: As `ours`, of torch's tensors.
            arrays: Float inputs.
            real: What of the output counts, ``bool[B, N]``; default all.
            output: Greatest difference of the output.
            gradient: Greatest difference of a gradient, over the greatest entry of all gradients where that is above 1.
        """
        tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
        expected = theirs(*tensors)
        real = np.ones(expected.shape[:2], bool) if real is None else real
        probe = np.random.default_rng(9).normal(size=expected.shape).astype("float32") * real.reshape(
            *real.shape, *[1] * (expected.dim() - 2)
        )
        np.testing.assert_allclose(to_numpy(ours(*arrays))[real], expected.detach().numpy()[real], rtol=0, atol=output)
        (expected * torch.tensor(probe)).sum().backward()
        weights = [weight for weight, _, _ in self._pairs]
        _, found = value_and_gradients(lambda *x: keras.ops.sum(ours(*x) * probe), arrays, weights)
        wanted = [x.grad.numpy() for x in tensors]
        for weight, parameter, form in self._pairs:
            zero = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            wanted.append(form(zero.numpy()).reshape(weight.shape))
        greatest = max(np.abs(x).max() for x in wanted)
        assert greatest > 0.1
        for index, (one, two) in enumerate(zip(found, wanted, strict=True)):
            name = f"input {index}" if index < len(arrays) else weights[index - len(arrays)].path
            np.testing.assert_allclose(one, two, rtol=0, atol=gradient * max(greatest, 1.0), err_msg=name)
