"""Attention and transformer blocks in plain NumPy, and small helpers of the layers' tests."""

from __future__ import annotations

import numpy as np
from factories import randomized
from gradients import to_numpy


def stream(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(layer, *shapes, seed: int = 0):
    layer.build(*shapes)
    return randomized(layer, seed)


def padding(lengths: list[int], size: int) -> np.ndarray:
    return np.arange(size) < np.array(lengths)[:, None]


def softmax(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    logits = np.where(allowed, logits, -np.inf)
    weights = np.exp(logits - np.maximum(logits.max(-1, keepdims=True), -1e9))
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def dense(layer, x: np.ndarray) -> np.ndarray:
    kernel, *bias = (to_numpy(w).astype("float64") for w in layer.weights)
    return x @ kernel + (bias[0] if bias else 0.0)


def layer_norm(layer, x: np.ndarray) -> np.ndarray:
    gain, shift = (to_numpy(w).astype("float64") for w in layer.weights)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.epsilon) * gain + shift


def rms_norm(layer, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.epsilon) * to_numpy(layer.weights[0])


def rotate(x: np.ndarray, base: float) -> np.ndarray:
    half = x.shape[-1] // 2
    turn = np.exp(1j * np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half))
    pairs = (x[..., :half] + 1j * x[..., half:]) * turn[None, :, None, :]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def turned(layer, x: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
    """Rotary positions as the layer's options say; leading tokens without a position stay as they are."""
    skip, base = layer.num_unrotated_tokens, layer.rotary_base
    placed = x[:, skip:]
    if layer.rotary == "2d":
        rows, columns = layer.grid if grid is None else grid
        cells = placed.reshape(-1, rows, columns, *x.shape[2:])
        half = x.shape[-1] // 2
        by_row = [rotate(cells[:, :, column, :, :half], base) for column in range(columns)]
        by_column = [rotate(cells[:, row, :, :, half:], base) for row in range(rows)]
        placed = np.concatenate([np.stack(by_row, axis=2), np.stack(by_column, axis=1)], axis=-1).reshape(placed.shape)
    else:
        placed = rotate(placed, base)
    return np.concatenate([x[:, :skip], placed], axis=1)


def allowed_keys(layer, batch, rows, length, itself, context_mask, causal, prefix_length) -> np.ndarray:
    """What each query may see: ``bool[B, T, S]``."""
    allowed = np.ones((batch, rows, length), bool)
    if causal:
        allowed &= np.tri(rows, length, length - rows, dtype=bool)
        if prefix_length is not None:
            allowed |= np.arange(length) < np.reshape(prefix_length, (-1, 1, 1))
    if layer.kernel == "local" and itself:
        t, s = np.arange(rows)[:, None], np.arange(length)
        window, leading = layer.window or 128, layer.num_global_tokens
        allowed &= (np.abs(t - s) <= window) | (s < leading) | (t < leading)
    if context_mask is not None:
        allowed &= context_mask[:, None] if context_mask.ndim == 2 else context_mask
    return allowed


def attention(
    layer, query, context=None, context_mask=None, causal=False, prefix_length=None, grid=None
) -> tuple[np.ndarray, np.ndarray]:
    """Output and scores of an `Attention`, head by head."""
    itself = context is None
    context = query if itself else context
    (batch, rows, _), length = query.shape, context.shape[1]
    allowed = allowed_keys(layer, batch, rows, length, itself, context_mask, causal, prefix_length)
    q, k, v = (
        dense(projection, x.astype("float64")).reshape(batch, x.shape[1], heads, -1)
        for projection, x, heads in (
            (layer.query_projection, query, layer.num_heads),
            (layer.key_projection, context, layer.num_key_value_heads),
            (layer.value_projection, context, layer.num_key_value_heads),
        )
    )
    if layer.query_key_norm:
        q, k = rms_norm(layer.query_norm, q), rms_norm(layer.key_norm, k)
    if layer.rotary and itself:
        q, k = turned(layer, q, grid), turned(layer, k, grid)
    group = layer.num_heads // layer.num_key_value_heads
    outputs, scores = [], []
    for head in range(layer.num_heads):
        one, other = q[:, :, head], k[:, :, head // group]
        if layer.kernel == "linear":
            one, other = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (one, other))
            weights = np.where(allowed, one @ other.swapaxes(1, 2), 0.0)
            weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
        else:
            logits = one @ other.swapaxes(1, 2) / np.sqrt(q.shape[-1])
            logits = logits if layer.logit_cap is None else layer.logit_cap * np.tanh(logits / layer.logit_cap)
            weights = softmax(logits, allowed)
        scores.append(weights)
        outputs.append(weights @ v[:, :, head // group])
    output = dense(layer.output_projection, np.concatenate(outputs, axis=-1))
    return np.where(allowed.any(-1)[..., None], output, 0.0), np.stack(scores, axis=1)


def gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def block(layer, tokens, mask=None, context=None, context_mask=None, causal=False) -> np.ndarray:
    """Output of a `TransformerBlock` with neither dropout nor gains."""
    tokens = tokens + attention(layer.attention, layer_norm(layer.attention_norm, tokens), None, mask, causal)[0]
    if layer.cross is not None:
        tokens = tokens + attention(layer.cross, layer_norm(layer.cross_norm, tokens), context, context_mask)[0]
    feed = layer.feed_forward
    hidden = gelu(dense(feed.hidden, layer_norm(layer.feed_forward_norm, tokens)))
    return tokens + dense(feed.output_dense, hidden)


def memory_attention(layer, query, memory, mask=None) -> tuple[np.ndarray, np.ndarray]:
    """Context ``[B, Dm]`` and weights ``[B, H, S]`` of additive or multiplicative attention, asked by ``[B, D]``."""
    mask = np.ones(memory.shape[:2], bool) if mask is None else mask
    memory = np.where(mask[..., None], memory, 0.0)
    key = memory if layer.memory_projection is None else dense(layer.memory_projection, memory)
    asked = dense(layer.query_projection, query) if hasattr(layer, "query_projection") else query
    heads, contexts, scores = layer.num_heads, [], []
    for head in range(heads):
        q, k, value = (np.split(x, heads, axis=-1)[head] for x in (asked, key, memory))
        if hasattr(layer, "energy"):
            logits = np.tanh(q[:, None] + k) @ to_numpy(layer.energy)[head]
        else:
            logits = (q[:, None] * k).sum(-1) * (q.shape[-1] ** -0.5 if layer.scaled else 1.0)
        scores.append(softmax(logits, mask))
        contexts.append((scores[-1][..., None] * value).sum(1))
    return np.concatenate(contexts, axis=-1), np.stack(scores, axis=1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def attentive_lstm(layer, tokens, memory, tokens_mask=None, memory_mask=None, reverse=False) -> dict[str, np.ndarray]:
    """Hidden states, contexts and weights of an `AttentiveLSTM`, step by step."""
    tokens_mask = np.ones(tokens.shape[:2], bool) if tokens_mask is None else tokens_mask
    real = np.ones(memory.shape[:2], bool) if memory_mask is None else memory_mask
    mean = np.where(real[..., None], memory, 0.0).sum(1) / np.maximum(real.sum(1, keepdims=True), 1)
    h, c = np.tanh(dense(layer.first_hidden, mean)), np.tanh(dense(layer.first_cell, mean))
    steps: dict[int, tuple] = {}
    for t in reversed(range(tokens.shape[1])) if reverse else range(tokens.shape[1]):
        context, weights = memory_attention(layer.attend, h, memory, memory_mask)
        context = sigmoid(dense(layer.gate, h)) * context
        now = tokens_mask[:, t, None]
        gates = dense(layer.inputs, np.where(now, tokens[:, t], 0.0)) + dense(layer.recurrent, h) + dense(layer.seen, context)
        enter, forget, candidate, leave = np.split(gates, 4, axis=-1)
        new_c = sigmoid(forget + 1) * c + sigmoid(enter) * np.tanh(candidate)
        h, c = np.where(now, sigmoid(leave) * np.tanh(new_c), h), np.where(now, new_c, c)
        steps[t] = (h, context, weights)
    hidden, context, weights = (np.stack([steps[t][i] for t in sorted(steps)], axis=1) for i in range(3))
    return {"hidden": hidden, "context": context, "weights": weights.swapaxes(1, 2)}
