"""How one of our weights is made of theirs: the words in which tables of names are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Tensors(NamedTuple):
    """What a weight of ours is made of.

    Attributes:
        names: The tensors of theirs.
        form: Ours of theirs; raises a ``ValueError`` that says what it needs where they do not fit.
    """

    names: tuple[str, ...]
    form: Callable[..., Array]


#: From attributes of a part of ours, dotted (``"blocks.0.attention"``), to what they are made of: a name of theirs taken as it
#: is, `Tensors`, or a table of the part.
Table = Mapping[str, Any]


def dense(name: str, bias: bool = True) -> Table:
    """Our ``Dense`` of torch's ``Linear``: ``kernel = weightᵀ``.

    Example:
        >>> sorted(dense("mlp.fc1"))
        ['bias', 'kernel']
    """
    return {"kernel": transposed(f"{name}.weight"), **({"bias": f"{name}.bias"} if bias else {})}


def norm(name: str) -> Table:
    """Our ``LayerNormalization`` of torch's ``LayerNorm``."""
    return {"gamma": f"{name}.weight", "beta": f"{name}.bias"}


def feed_forward(hidden: str, output: str) -> Table:
    """Our `mmfusion.layers.FeedForward` of two ``Linear``."""
    return {"hidden": dense(hidden), "output_dense": dense(output)}


def attention(query: str, key: str, value: str, output: str) -> Table:
    """Our `mmfusion.layers.Attention` of four ``Linear``."""
    return {
        "query_projection": dense(query),
        "key_projection": dense(key),
        "value_projection": dense(value),
        "output_projection": dense(output),
    }


def fused_attention(weight: str, bias: str, output: str) -> Table:
    """Our `mmfusion.layers.Attention` of a ``Linear`` that makes queries, keys and values in one, and one for the output.

    Args:
        weight: Name of ``[3·D, D]``.
        bias: Name of ``[3·D]``.
        output: Name of the ``Linear`` after it.
    """
    parts = ("query_projection", "key_projection", "value_projection")
    return {
        **{part: {"kernel": third(weight, index), "bias": third(bias, index)} for index, part in enumerate(parts)},
        "output_projection": dense(output),
    }


def third(name: str, index: int) -> Tensors:
    """One of three matrices (transposed) or vectors that stand in one tensor below each other."""

    def form(fused: Array) -> Array:
        if fused.ndim not in (1, 2) or len(fused) % 3:
            raise ValueError("three matrices or vectors below each other")
        return np.split(fused, 3)[index].T

    return Tensors((name,), form)


def patches(name: str, bias: bool = True) -> Table:
    """Our projection of patches of torch's ``Conv2d`` whose stride is its size: ``[D, C, p, p]`` to ``[p·p·C, D]``."""

    def form(kernel: Array) -> Array:
        if kernel.ndim != 4:
            raise ValueError("a kernel of four axes")
        return np.transpose(kernel, (2, 3, 1, 0)).reshape(-1, len(kernel))

    return {"kernel": Tensors((f"{name}.weight",), form), **({"bias": f"{name}.bias"} if bias else {})}


def placed_token(token: str, places: str, place: int) -> Tensors:
    """A learned token with its position in it: their position is the one at `place`."""

    def form(value: Array, positions: Array) -> Array:
        rows = positions.reshape(-1, positions.shape[-1])
        return value.reshape(-1) + rows[place]

    return Tensors((token, places), form)


def rows(name: str, start: int | None, stop: int | None) -> Tensors:
    """Rows of a matrix, whatever axes of length 1 stand before it."""
    return Tensors((name,), lambda matrix: matrix.reshape(-1, matrix.shape[-1])[start:stop])


def difference(name: str) -> Tensors:
    """Second row minus first, of the two logits of a yes-or-no question: ``[2, D]`` to ``[D]``, ``[2]`` to a number.

    The softmax of two logits is the sigmoid of their difference, so that the answer is the same.
    """

    def form(both: Array) -> Array:
        if len(both) != 2:
            raise ValueError("two rows")
        return both[1] - both[0]

    return Tensors((name,), form)


def reshaped(tensors: Tensors, shape: tuple[int, ...]) -> Tensors:
    """The same numbers in another shape."""
    return Tensors(tensors.names, lambda *arrays: tensors.form(*arrays).reshape(shape))


def transposed(name: str) -> Tensors:
    """A matrix, its axes exchanged."""

    def form(matrix: Array) -> Array:
        if matrix.ndim != 2:
            raise ValueError("a matrix")
        return matrix.T

    return Tensors((name,), form)


def as_it_is(name: str) -> Tensors:
    """One tensor, unchanged."""
    return Tensors((name,), lambda array: array)


def flattened(table: Table, owner: str = "") -> dict[str, Tensors]:
    """All weights of a table of tables, by their whole dotted path.

    Example:
        >>> list(flattened({"norm": norm("ln_post"), "blocks.0": {"attention_norm": norm("layers.0.ln_1")}}))
        ['norm.gamma', 'norm.beta', 'blocks.0.attention_norm.gamma', 'blocks.0.attention_norm.beta']
    """
    flat: dict[str, Tensors] = {}
    for path, value in table.items():
        path = f"{owner}.{path}" if owner else path
        if isinstance(value, Mapping):
            flat |= flattened(value, path)
        else:
            flat[path] = as_it_is(value) if isinstance(value, str) else value
    return flat
