"""Sampling: each token drawn from what the model thinks likely."""

from __future__ import annotations

from typing import Any

from keras import KerasTensor, ops

from mmfusion.decoding._stepping import (
    StepFunction,
    Stepper,
    check_at_least_one,
    check_options,
    known_vocabulary,
    repeat_rows,
)
from mmfusion.decoding._uniform import mixed, uniform
from mmfusion.decoding._writing import write_rows
from mmfusion.decoding.outputs import BeamOutput
from mmfusion.decoding.token_rules import TokenRules
from mmfusion.errors import ConfigError


def sample(
    step: StepFunction,
    state: Any,
    *,
    batch_size: int | KerasTensor,
    start_id: int,
    end_id: int,
    pad_id: int,
    max_tokens: int,
    seeds: KerasTensor | int = 0,
    num_samples: int = 1,
    temperature: float | KerasTensor = 1.0,
    top_k: int | None = None,
    top_p: float | KerasTensor = 1.0,
    rules: TokenRules | None = None,
    shared: Any = None,
    limit: int | KerasTensor | None = None,
) -> BeamOutput:
    """Draws texts: token t from ``p(token) ∝ exp(log p / temperature)`` among the likeliest.

    Of the `top_k` likeliest tokens, made to sum to 1, those are drawn from that are among the fewest likeliest whose
    probability together reaches `top_p` (the nucleus). A text depends on its own seed alone: not on the other texts of its
    batch, and not on the backend (but for rounding).

    `temperature`, `top_p` and `limit`, and `min_tokens` of the rules, may be scalar tensors, so that one graph serves all their
    values. Those are not checked: whoever makes the graph does.

    Runs eagerly, in `tf.function` (with ``jit_compile`` too) and under `jax.jit`.

    Args:
        step: ``(token_ids int32[B·K], state) -> (logits float[B·K, V], state)``, see `beam_search`.
        state: What `step` carries, for a batch of B, see `beam_search`.
        batch_size: B; an ``int32[]`` tensor where it is free.
        start_id: The token to begin with, not part of the result.
        end_id: The token that ends a text.
        pad_id: What follows the end; never written before it.
        max_tokens: L, most tokens to write, the end token included.
        seeds: ``int[B]``, a seed for each example, or one for all, which then stands for B of its own. Default 0.
        num_samples: K, texts about each example. Default 1.
        temperature: Above 0; below 1 sharpens, above flattens. Default 1.
        top_k: Only so many tokens are drawn from, and those as likely as the last of them. Default None, all.
        top_p: In ``(0, 1]``, the probability that the nucleus reaches. Default 1, all.
        rules: What may be written, see `TokenRules`. Default: all but the padding.
        shared: Which tensors of the state belong to the example, see `beam_search`.
        limit: Most tokens to write this time, 1 to L. Default: L.

    Returns:
        The texts, the likeliest first; their scores are the mean log-probabilities of their tokens by the model itself, whatever
        the temperature.

    Raises:
        ConfigError: If an option is impossible, or `step` gives what it should not.

    Example:
        >>> import numpy as np
        >>> from mmfusion.decoding import sample
        >>> chance = np.log(np.array([[1e-9, 1e-9, 0.5, 0.4, 0.1]], "float32"))
        >>> output = sample(
        ...     lambda token_ids, state: (np.repeat(chance, len(token_ids), 0), state),
        ...     (), batch_size=1, num_samples=200, top_p=0.8, start_id=1, end_id=4, pad_id=0, max_tokens=1)
        >>> sorted(set(output.token_ids[0, :, 0].numpy().tolist()))
        [2, 3]

    Source: top k: Fan et al. 2018 (arXiv:1805.04833); the nucleus: Holtzman et al. 2020 (arXiv:1904.09751).
    """
    rules = (rules or TokenRules()).checked(max_tokens)
    check_at_least_one(num_samples=num_samples, top_k=1 if top_k is None else top_k)
    check_options(
        ("temperature", temperature, ops.is_tensor(temperature) or temperature > 0, "above 0 (greedy is the limit of 0)"),
        ("top_p", top_p, ops.is_tensor(top_p) or 0 < top_p <= 1, "above 0, up to 1"),
    )
    temperature, top_p = (ops.cast(x, "float32") if ops.is_tensor(x) else x for x in (temperature, top_p))
    words = _words(seeds, batch_size, num_samples)
    stepper = Stepper(step, state, shared)
    stepper.leaves = [repeat_rows(leaf, num_samples, batch_size) for leaf in stepper.leaves]

    def choose(scores: KerasTensor, position: KerasTensor) -> KerasTensor:
        known_vocabulary(scores)
        scores = scores / temperature
        if top_k is not None and top_k < scores.shape[-1]:
            last = ops.top_k(scores, top_k)[0][:, -1:]
            scores = ops.where(scores < last, float("-inf"), scores)
        highest = ops.max(scores, axis=-1, keepdims=True)
        # Rows where nothing is possible are no probabilities; what is chosen there is not used.
        weights = ops.exp(scores - ops.where(highest > float("-inf"), highest, 0.0))
        return _drawn(weights, mixed(words, position), top_p)

    texts = write_rows(
        stepper,
        choose,
        rows=batch_size * num_samples,
        start_id=start_id,
        end_id=end_id,
        pad_id=pad_id,
        max_tokens=max_tokens,
        rules=rules.repeated(num_samples),
        limit=limit,
    )
    return _best_first(texts.token_ids, texts.scores, texts.lengths, num_samples)


def _words(seeds: KerasTensor | int, batch_size: int | KerasTensor, num_samples: int) -> KerasTensor:
    """``uint32[B·K]``, where the numbers of each text begin."""
    seeds = ops.convert_to_tensor(seeds, "int32")
    shape, expected = tuple(seeds.shape), batch_size if isinstance(batch_size, int) else None
    if len(shape) > 1 or (shape and None not in (shape[0], expected) and shape[0] != expected):
        raise ConfigError("seeds do not fit the batch", where="seeds", expected=f"one, or int[{expected}]", found=list(shape))
    words = ops.cast(seeds, "uint32")
    if not shape:
        words = mixed(words, ops.arange(batch_size, dtype="int32"))
    return ops.reshape(mixed(words[:, None], ops.arange(num_samples, dtype="int32")[None, :]), (-1,))


def _drawn(weights: KerasTensor, words: KerasTensor, top_p: float | KerasTensor) -> KerasTensor:
    """A token of each row with a chance in proportion to ``float32[N, V]``, of its nucleus alone."""
    sums = ops.cumsum(weights, axis=-1)
    total = sums[:, -1:]

    def draw(words: KerasTensor) -> KerasTensor:
        # The first token whose sum is above the number drawn: one of weight 0 never is.
        below = ops.cast(sums <= uniform(words)[:, None] * total, "int32")
        return ops.minimum(ops.sum(below, axis=-1), weights.shape[-1] - 1)

    token = draw(words)
    chosen_later = ops.is_tensor(top_p)
    if not chosen_later and top_p == 1.0:
        return token

    def outside(token: KerasTensor) -> KerasTensor:
        own = ops.take_along_axis(weights, token[:, None], axis=-1)
        above = ops.sum(ops.where(weights > own, weights, 0.0), axis=-1, keepdims=True)
        wrong = ops.logical_and(above >= top_p * total, total > 0)[:, 0]
        # Rounding would put the least likely tokens outside of all.
        return ops.logical_and(wrong, top_p < 1.0) if chosen_later else wrong

    # What is drawn outside of the nucleus is drawn again: the same chances as sorting the vocabulary gives, without sorting.
    def again(turn: KerasTensor, token: KerasTensor, wrong: KerasTensor) -> tuple[KerasTensor, ...]:
        new = ops.where(wrong, draw(mixed(words, turn)), token)
        return turn + 1, new, outside(new)

    first = ops.zeros((), "int32"), token, outside(token)
    return ops.while_loop(lambda turn, token, wrong: ops.any(wrong), again, first)[1]


def _best_first(tokens: KerasTensor, scores: KerasTensor, lengths: KerasTensor, count: int) -> BeamOutput:
    tokens = ops.reshape(tokens, (-1, count, tokens.shape[-1]))
    scores, order = ops.top_k(ops.reshape(scores, (-1, count)), count)
    lengths = ops.take_along_axis(ops.reshape(lengths, (-1, count)), order, axis=1)
    return BeamOutput(ops.take_along_axis(tokens, order[..., None], axis=1), scores, lengths)
