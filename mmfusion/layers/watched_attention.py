"""What an attention layer does as it runs, seen from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from keras import KerasTensor

from mmfusion.layers.attention import Attention
from mmfusion.layers.masks import AttentionMask
from mmfusion.layers.replaced_methods import replaced_methods


class SeenAttention(NamedTuple):
    """One call of an `mmfusion.layers.Attention`: ``output = scores · value``, head by head, before it is projected.

    Attributes:
        arguments: What the layer was called with, by name; what was left out is not there.
        mask: The mask that was applied: window, leading tokens, prefix and what is filled of a cache are in it.
        value: ``float[B, S, Hkv, d]``.
        output: ``float[B, T, H · d]``.
        scores: ``float32[B, H, T, S]``.
        asked: Whether its scores were asked for.
    """

    arguments: dict[str, Any]
    mask: AttentionMask
    value: KerasTensor
    output: KerasTensor
    scores: KerasTensor
    asked: bool


@contextmanager
def watched_attention(layer: Attention, see: Callable[[SeenAttention], None]) -> Iterator[None]:
    """While the context is open, each call of a layer is told, with its scores; who called gets what he asked for.

    Args:
        layer: The layer; it must not run in a graph that was traced before.
        see: Told of each call, as it happens.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import Attention
        >>> layer, seen = Attention(num_heads=2), []
        >>> with watched_attention(layer, seen.append):
        ...     output = layer(np.ones((1, 3, 8), "float32"))
        >>> tuple(output.shape), tuple(seen[0].scores.shape), seen[0].asked
        ((1, 3, 8), (1, 2, 3, 3), False)
    """
    call, attend = layer.call, layer._attend
    signature = inspect.signature(call)
    given: list[dict[str, Any]] = [{}]

    def watched_call(*arguments: Any, **options: Any) -> Any:
        given[0] = dict(signature.bind(*arguments, **options).arguments)
        return call(*arguments, **options)

    def watched_attend(projected: Any, return_scores: bool, training: bool | None) -> tuple[Any, Any]:
        output, scores = attend(projected, True, training)
        see(SeenAttention(given[0], projected.mask, projected.value, output, scores, return_scores))
        return output, scores if return_scores else None

    with replaced_methods(layer, call=watched_call, _attend=watched_attend):
        yield
