"""How much each modality decides an output: by taking it away, and by the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

Streams = Mapping[str, tf.Tensor]


def share_by_ablation(
    output: Callable[[dict[str, tf.Tensor]], tf.Tensor], streams: Streams, masks: Mapping[str, tf.Tensor] | None = None
) -> dict[str, float]:
    """The share of each stream in how far the output moves when the stream's tokens all become their mean.

    ``moved[m] = mean |output - output with stream m at its mean over batch and tokens|``, ``share[m] = moved[m] / Σ moved``.

    Args:
        output: From token streams to ``float[...]``.
        streams: ``float[B, N, D]`` by name.
        masks: ``bool[B, N]`` by name, ``True`` = real token. Default: all real.

    Returns:
        Shares that sum to 1; NaN where nothing moves the output.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> from mmfusion.training.diagnostics import share_by_ablation
        >>> tokens = tf.constant(np.random.default_rng(0).normal(size=(64, 1, 1)), tf.float32)
        >>> shares = share_by_ablation(lambda s: 3 * s["a"] + s["b"], {"a": tokens, "b": tokens})
        >>> round(shares["a"], 4), round(shares["b"], 4)
        (0.75, 0.25)
    """
    whole = output(dict(streams))
    moved = {}
    for name, tokens in streams.items():
        ablated = output({**streams, name: _at_mean(tokens, (masks or {}).get(name))})
        moved[name] = float(tf.reduce_mean(tf.abs(tf.cast(whole - ablated, tf.float32))))
    return _shares(moved)


def share_by_gradient(
    output: Callable[[dict[str, tf.Tensor]], tf.Tensor], streams: Streams, masks: Mapping[str, tf.Tensor] | None = None
) -> dict[str, float]:
    """The share of each stream in gradient times input.

    ``felt[m] = mean over examples of Σ_n |∂ output / ∂ tokens[n] · tokens[n]|``, ``share[m] = felt[m] / Σ felt``.

    Args:
        output: From token streams to ``float[B, ...]``, each example from its own tokens.
        streams: ``float[B, N, D]`` by name.
        masks: ``bool[B, N]`` by name, ``True`` = real token. Default: all real.

    Returns:
        Shares that sum to 1; NaN where no gradient reaches any stream.

    Example:
        >>> import tensorflow as tf
        >>> from mmfusion.training.diagnostics import share_by_gradient
        >>> ones = tf.ones((2, 1, 1))
        >>> share_by_gradient(lambda s: 3 * s["a"] - s["b"], {"a": ones, "b": ones})
        {'a': 0.75, 'b': 0.25}

    Source: gradient times input: Shrikumar et al., 2016 (arXiv:1605.01713).
    """
    # Copies, so that one tensor given as two streams has a gradient for each.
    streams = {name: tf.identity(tokens) for name, tokens in streams.items()}
    with tf.GradientTape() as tape:
        tape.watch(list(streams.values()))
        total = tf.reduce_sum(tf.cast(output(dict(streams)), tf.float32))
    gradients = tape.gradient(total, streams, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    felt = {}
    for name, tokens in streams.items():
        product = tf.reduce_sum(tf.cast(gradients[name], tf.float32) * tf.cast(tokens, tf.float32), axis=-1)
        mask = (masks or {}).get(name)
        felt[name] = float(tf.reduce_mean(tf.reduce_sum(tf.abs(_zeroed(product, mask)), axis=-1)))
    return _shares(felt)


def _at_mean(tokens: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    real = tf.ones(tf.shape(tokens)[:2], tf.bool) if mask is None else tf.cast(mask, tf.bool)
    values = tf.where(real[..., None], tf.cast(tokens, tf.float32), 0.0)
    mean = tf.reduce_sum(values, axis=(0, 1)) / tf.maximum(tf.reduce_sum(tf.cast(real, tf.float32)), 1.0)
    return tf.cast(tf.broadcast_to(mean, tf.shape(tokens)), tokens.dtype)


def _zeroed(values: tf.Tensor, mask: tf.Tensor | None) -> Any:
    return values if mask is None else tf.where(tf.cast(mask, tf.bool), values, 0.0)


def _shares(sizes: dict[str, float]) -> dict[str, float]:
    total = sum(sizes.values())
    return {name: size / total if total > 0.0 else math.nan for name, size in sizes.items()}
